"""Many writes behind one WAIT: who is told what when some give up, or the primary does."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from redis.asyncio import Redis
from support.proxy import Fault, FaultProxy
from support.replicas import Pair
from support.threads import InThreads

from asyncsession import (
    CommitOutcomeUnknown,
    ConfigurationError,
    Session,
    SessionManager,
    StoreUnavailable,
    SyncSessionManager,
    merge,
)
from asyncsession.blob import HEADER_BYTES, scan
from asyncsession.draft import Draft
from asyncsession.protocol import Call, Durability, Lost, Refused
from asyncsession.scripts import SCRIPTS
from asyncsession.transport import group


@pytest.fixture
async def manager(pair: Pair) -> AsyncIterator[SessionManager]:
    async with SessionManager(pair.url, **options()) as opened:
        yield opened


def options(**own: Any) -> dict[str, Any]:
    prefix = f"test-{secrets.token_hex(6)}"
    return {"prefix": prefix, "min_replicas": 1, "durability_timeout": 2.0, **own}


async def owned(manager: SessionManager, count: int) -> list[Session]:
    """Return new sessions that know their number."""
    sessions = []
    for number in range(count):
        async with manager.session() as session:
            session.update({"owner": number, "n": 0})
        sessions.append(session)
    return sessions


async def test_many_commits_wait_together(pair: Pair, manager: SessionManager) -> None:
    sessions = await owned(manager, 32)
    before = await asyncio.to_thread(pair.waits)
    for session in sessions:
        session["n"] = 1
    with pair.slow(0.01):
        await asyncio.gather(*map(manager.save, sessions))
    assert await asyncio.to_thread(pair.waits) - before <= 2


async def test_a_large_group_is_parted(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "_MOST", 3)
    sessions = await owned(manager, 10)
    for session in sessions:
        session["n"] = 1
    commits = await asyncio.gather(*map(manager.save, sessions))
    assert {commit.version for commit in commits} == {2}


async def test_writes_have_a_connection_beside_that_for_reads(
    pair: Pair, manager: SessionManager
) -> None:
    async with Redis.from_url(pair.url) as redis:
        before = {client["id"] for client in await redis.client_list()}
        sessions = await owned(manager, 4)
        await asyncio.gather(*(manager.load(session.id) for session in sessions))
        after = {client["id"] for client in await redis.client_list()}
        assert len(after - before) == 2
        await manager.aclose()
        while not {client["id"] for client in await redis.client_list()} <= before:
            pass


@pytest.mark.parametrize("seed", range(3))
async def test_cancelled_tasks_leave_the_others_their_own_answers(pair: Pair, seed: int) -> None:
    rng = random.Random(seed)
    seen = 0
    async with SessionManager(pair.url, **options(merge={"n": merge.counter})) as manager:
        ids = [session.id for session in await owned(manager, 12)]

        async def count(number: int) -> None:
            nonlocal seen
            session = await manager.load(ids[number])
            session["n"] += 1
            version = session.version
            commit = await manager.save(session)
            assert (session["owner"], commit.version) == (number, version + 1)
            seen += 1

        for _ in range(20):
            tasks = [asyncio.create_task(count(number)) for number in range(12)]
            for task in rng.sample(tasks, rng.randrange(12)):
                for _ in range(rng.randrange(6)):
                    await asyncio.sleep(0)
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(r) for r in results} <= {type(None), asyncio.CancelledError}
    assert seen > 40


async def test_a_save_that_was_given_up_is_finished_once(
    pair: Pair, manager: SessionManager
) -> None:
    session, other = await owned(manager, 2)
    session["n"], other["n"] = 1, 1
    with pair.held():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(manager.save(session), 0.02)
        waiting = asyncio.create_task(manager.save(other))
    await waiting
    assert (await manager.save(session)).version == 2
    assert (await manager.load(session.id)).version == 2


async def test_what_waits_for_its_group_is_not_done(pair: Pair, manager: SessionManager) -> None:
    """It is left out when its time is up, and nothing is unknown about it."""
    first, second = await owned(manager, 2)
    call = manager._transport.call
    with pair.held():
        first["n"] = 1
        saving = asyncio.create_task(manager.save(first))
        while not (await manager.load(first.id))["n"]:
            pass  # it is on its way
        destroy = ("destroy", (manager._settings.key(second.handle),), (b"aS", 1000))
        with pytest.raises(Refused):
            await call(Call(*destroy, 0.01, Durability(1, 2.0)))
        assert not saving.done()
    await saving
    assert not (await manager.load(second.id)).is_new
    with pair.held(), pytest.raises(Lost):  # this one is a group by itself, and sent
        await call(Call(*destroy, 0.01, Durability(1, 2.0)))
    assert (await manager.load(second.id)).is_new


async def test_a_server_that_cannot_be_reached() -> None:
    async with SessionManager(
        "redis://127.0.0.1:1", **options(timeout=0.1, durability_timeout=0.1)
    ) as manager:
        manager._settings.clock.observe(1)
        sessions = [Session() for _ in range(3)]
        for session in sessions:
            session["n"] = 1
        saves = await asyncio.gather(*map(manager.save, sessions), return_exceptions=True)
        assert {type(outcome) for outcome in saves} == {StoreUnavailable}


async def test_closing_while_a_connection_is_being_opened() -> None:
    """Nothing was sent, so nothing is unknown; and the connection is closed, too."""
    is_asked = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_asked.set()
        while await reader.read(1000):
            pass
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    hasty = options(timeout=0.4, durability_timeout=0.4)
    async with server, SessionManager(f"redis://127.0.0.1:{port}", **hasty) as manager:
        manager._settings.clock.observe(1)
        session = Session()
        session["n"] = 1
        saving = asyncio.create_task(manager.save(session))
        await is_asked.wait()
        await manager.aclose()
        with pytest.raises(StoreUnavailable):
            await saving


async def test_closing_tells_whoever_waits(pair: Pair) -> None:
    async with SessionManager(pair.url, **options(timeout=0.4, durability_timeout=0.4)) as manager:
        sessions = await owned(manager, 3)
        for session in sessions:
            session["n"] = 1
        with pair.held():
            saves = [asyncio.create_task(manager.save(session)) for session in sessions]
            while not (await manager.load(sessions[-1].id))["n"]:
                pass
            await manager.aclose()
            outcomes = await asyncio.gather(*saves, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {CommitOutcomeUnknown}
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others or not (await asyncio.wait(others, timeout=1))[1]


def test_saving_while_all_tasks_are_cancelled(pair: Pair) -> None:
    """The end of a program cancels the lane's own task, too; what is saved then gets through."""
    saved: list[int] = []

    async def work() -> None:
        manager = SessionManager(pair.url, **options())
        sessions, is_busy = await owned(manager, 4), asyncio.Event()

        async def worker(session: Session) -> None:
            try:
                while True:
                    session["n"] += 1
                    if (await manager.save(session)).version == 4:
                        is_busy.set()
            finally:
                async with asyncio.timeout(1):
                    await manager.save(session)
                saved.append(session["owner"])

        with pair.slow(0.002):
            workers = [asyncio.create_task(worker(session)) for session in sessions]
            await is_busy.wait()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await manager.aclose()

    asyncio.run(work())
    assert sorted(saved) == [0, 1, 2, 3]


@pytest.mark.parametrize("fault", [Fault.DROP, Fault.CUT, Fault.LATE])
async def test_a_wait_that_is_lost_is_asked_for_again(pair: Pair, fault: Fault) -> None:
    faults = iter([fault])
    async with FaultProxy(pair.primary.port, lambda _: Fault.PASS) as proxy:
        async with SessionManager(proxy.url, **options()) as manager:
            (session,) = await owned(manager, 1)
            proxy.decide = lambda w: next(faults, Fault.PASS) if w[0] == b"WAIT" else Fault.PASS
            session["n"] = 1
            with pair.slow(0.01):
                commit = await manager.save(session)
            assert (commit.version, proxy.faults[fault]) == (2, 1)
        async with SessionManager(pair.replica.url, prefix=manager._settings.prefix) as after:
            assert (await after.load(session.id))["n"] == 1


async def rotated_twice(pair: Pair, manager: SessionManager) -> tuple[Session, Session]:
    """Return a session with a rotation that was done and not answered, and its next successor."""
    sha = SCRIPTS["commit"].sha.encode()
    async with FaultProxy(pair.primary.port, lambda _: Fault.PASS) as proxy:
        lossy = SessionManager(proxy.url, prefix=manager._settings.prefix)
        async with lossy:
            (session,) = await owned(lossy, 1)
            is_cut = asyncio.Event()

            def cut(words: list[bytes]) -> Fault:
                if sha not in words:
                    return Fault.PASS
                is_cut.set()
                return Fault.CUT

            proxy.decide = cut
            session["n"] = 1
            rotating = asyncio.create_task(lossy.rotate(session))
            await is_cut.wait()
            rotating.cancel()
            await asyncio.gather(rotating, return_exceptions=True)
            await proxy.drained()
    assert isinstance(session.unanswered, Draft)
    successor = await manager.load(session.unanswered.new_id)
    assert (successor["n"], successor.version) == (1, 2)
    await manager.rotate(successor)
    return session, successor


async def test_a_commit_that_was_found_in_the_successor_is_waited_for(pair: Pair) -> None:
    hasty = options(durability_timeout=0.05)
    async with (
        SessionManager(pair.url, **hasty) as impatient,
        SessionManager(pair.url, **hasty | {"durability_timeout": 2}) as manager,
    ):
        session, successor = await rotated_twice(pair, manager)
        with pair.held(), pytest.raises(CommitOutcomeUnknown, match="0 of 1 replicas"):
            await impatient.save(session)
        await manager.save(session)
        assert (session.is_stale, session.modified) == (True, False)
        assert (await manager.load(successor.id)).version == successor.version


async def test_a_commit_that_was_found_and_lost_again_is_not_done_anew(
    pair: Pair, manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By now it would reach the session of somebody else, perhaps with their principal."""
    session, successor = await rotated_twice(pair, manager)
    key = manager._settings.key(successor.handle)
    transport, call = manager._transport, manager._transport.call
    async with Redis.from_url(pair.url) as redis:
        blob = await redis.get(key)
        assert isinstance(blob, bytes)
        _, _, end = next(scan(blob[HEADER_BYTES:]))
        older = blob[: HEADER_BYTES + end]

        async def fail_over(made: Call) -> Any:
            reply = await call(made)
            if made.script == "load":
                await redis.set(key, older, px=60_000)
            return reply

        monkeypatch.setattr(transport, "call", fail_over)
        with pytest.raises(CommitOutcomeUnknown):
            await manager.save(session)
        assert await redis.get(key) == older


async def test_a_primary_that_becomes_a_replica_while_it_waits() -> None:
    """It says UNBLOCKED, and may take back what it had done; so the outcome is open until asked."""
    patient = options(timeout=10, durability_timeout=5)
    with await asyncio.to_thread(Pair, "valkey9") as pair:
        async with (
            Redis.from_url(pair.url) as primary,
            SessionManager(pair.url, **patient) as manager,
            InThreads(SyncSessionManager(pair.url, **patient)) as threaded,
        ):
            session, other = await owned(manager, 2)
            session["n"] = other["n"] = 1
            with pair.held():
                saves = [
                    asyncio.create_task(manager.save(session)),
                    asyncio.create_task(threaded.save(other)),
                ]
                while (await primary.info("clients"))["blocked_clients"] < 2:
                    assert not any(save.done() for save in saves)
                await primary.replicaof("127.0.0.1", "1")
                while not (await primary.info("errorstats")).get("errorstat_READONLY"):
                    assert not any(save.done() for save in saves)
                await primary.replicaof("no", "one")
            commits = await asyncio.gather(*saves)
            assert [commit.version for commit in commits] == [2, 2]
            assert (await manager.load(session.id))["n"] == 1


@pytest.mark.parametrize("kind", [SessionManager, SyncSessionManager])
@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"min_replicas": -1}, "min_replicas"),
        ({"min_replicas": True}, "min_replicas"),
        ({"min_replicas": 1.0}, "min_replicas"),
        ({"durability_timeout": 0}, "durability_timeout"),
        ({"durability_timeout": -1}, "durability_timeout"),
        ({"durability_timeout": True}, "durability_timeout"),
        ({"durability_timeout": "1"}, "durability_timeout"),
        ({"durability_timeout": float("nan")}, "durability_timeout"),
        ({"durability_timeout": timedelta(0)}, "durability_timeout"),
        ({"durability_timeout": 6}, "at most `timeout`, 5 seconds"),
        ({"timeout": 0.2, "durability_timeout": 0.3}, "at most `timeout`, 0.2 seconds"),
    ],
    ids=str,
)
def test_options_that_cannot_work(kind: Any, given: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        kind("redis://localhost", **({"min_replicas": 1} | given))


@pytest.mark.parametrize("url", ["memory://durable", "embedded://durable"])
@pytest.mark.parametrize("kind", [SessionManager, SyncSessionManager])
def test_stores_without_replicas(kind: Any, url: str) -> None:
    with pytest.raises(ConfigurationError, match="no replicas"):
        kind(url, min_replicas=1)
    kind(url, min_replicas=0, timeout=0.1)  # where the default of durability_timeout is no matter


def test_a_client_of_fakeredis_has_no_replicas() -> None:
    import fakeredis

    with pytest.raises(ConfigurationError, match="no replicas"):
        SessionManager(fakeredis.FakeAsyncRedis(), min_replicas=1)


def test_a_timedelta_is_as_good() -> None:
    settings = SessionManager(min_replicas=2, durability_timeout=timedelta(seconds=1))._settings
    assert settings.durability == Durability(2, 1.0)
