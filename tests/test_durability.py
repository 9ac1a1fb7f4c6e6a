"""What was acknowledged with `min_replicas` is on the replicas, whatever happens on the way."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from support.proxy import Fault, FaultProxy
from support.replicas import Pair
from support.threads import InThreads

from asyncsession import (
    CommitOutcomeUnknown,
    Session,
    SessionConflict,
    SessionManager,
    StoreUnavailable,
    SyncSessionManager,
    merge,
)
from asyncsession.ids import index_key
from asyncsession.machine import Budget
from asyncsession.migration import Starsessions
from asyncsession.scripts import SCRIPTS

HASTY: dict[str, Any] = {"durability_timeout": 0.05}  # for replicas that are not going to answer
SLOW = 0.03  # seconds to the replica, and long enough to get to it before what it has to confirm
EITHER = ["async", "sync"]


@pytest.fixture(params=EITHER)
async def opened(
    request: pytest.FixtureRequest, pair: Pair
) -> AsyncIterator[Callable[..., SessionManager]]:
    """A function that opens either manager, with a prefix of the test's own."""
    managers: list[Any] = []
    prefix = f"test-{secrets.token_hex(6)}"

    def open_manager(url: str | None = None, **options: Any) -> Any:
        given = {"prefix": prefix, "min_replicas": 1, "durability_timeout": 2.0, **options}
        store, is_async = url or pair.url, request.param == "async"
        manager = (
            SessionManager(store, **given)
            if is_async
            else InThreads(SyncSessionManager(store, **given))
        )
        managers.append(manager)
        return manager

    yield open_manager
    for manager in managers:
        await manager.aclose()


Opened = Callable[..., SessionManager]
FLAVOURS = pytest.mark.parametrize("pair", ["valkey9", "redis8", "redis-system"], indirect=True)


async def begun(manager: SessionManager, **content: Any) -> Session:
    session = await manager.load()
    session.update(content)
    await manager.save(session)
    return session


def failed_over(opened: Opened, pair: Pair) -> SessionManager:
    """Return a manager that sees what would be left if the replica took over now."""
    return opened(pair.replica.url, min_replicas=0)


@FLAVOURS
async def test_what_is_acknowledged_is_on_the_replica(pair: Pair, opened: Opened) -> None:
    manager, after = opened(merge={"n": merge.counter}), failed_over(opened, pair)
    sessions = [await begun(manager, n=0) for _ in range(4)]

    async def count(session: Session) -> None:
        for n in range(1, 16):
            session["n"] += 1
            await manager.save(session)
            assert (await after.load(session.id))["n"] == n

    with pair.slow(0.003):
        await asyncio.gather(*map(count, sessions))


async def saved(manager: SessionManager, session: Session) -> str:
    session["n"] = 1
    await manager.save(session)
    return session.id


async def updated(manager: SessionManager, session: Session) -> str:
    def change(mine: Session) -> None:
        mine["n"] = 1

    await manager.update(session.id, change)
    return session.id


async def rotated(manager: SessionManager, session: Session) -> str:
    session["n"] = 1
    await manager.rotate(session)
    return session.id


async def destroyed(manager: SessionManager, session: Session) -> str:
    await manager.destroy(session)
    return session.id


async def destroyed_by_id(manager: SessionManager, session: Session) -> str:
    await manager.destroy(session.id)
    return session.id


async def signed_out_everywhere(manager: SessionManager, session: Session) -> str:
    await manager.destroy_all("user:1")
    return session.id


VERBS: dict[str, tuple[Callable[[SessionManager, Session], Awaitable[str]], bool]] = {
    "save": (saved, True),
    "update": (updated, True),
    "rotate": (rotated, True),
    "destroy": (destroyed, False),
    "destroy by id": (destroyed_by_id, False),
    "destroy_all": (signed_out_everywhere, False),
}


@pytest.mark.parametrize("verb", VERBS)
async def test_each_verb_waits(pair: Pair, opened: Opened, verb: str) -> None:
    manager, after = opened(), failed_over(opened, pair)
    session = await begun(manager, n=0)
    session.principal = "user:1"
    await manager.save(session)
    before = session.id
    perform, lives = VERBS[verb]
    assert (await after.load(before)).principal == "user:1"
    with pair.slow(SLOW):
        session_id = await perform(manager, session)
        left = await after.load(session_id)
        assert dict(left) == ({"n": 1} if lives else {})
        assert (await after.load(before)).is_new is (before != session_id or not lives)


async def test_a_login_is_acknowledged_with_its_entry_in_the_index(
    pair: Pair, opened: Opened
) -> None:
    manager = opened()
    session = await begun(manager, n=0)
    session.principal = "user:2"
    async with Redis.from_url(pair.replica.url) as replica:
        await replica.ping()
        with pair.slow(SLOW):
            await manager.save(session)
            key = index_key(manager._settings.prefix, "user:2")
            assert await replica.zrange(key, 0, -1) == [session.handle.encode()]


async def test_a_session_of_another_library_is_taken_over_on_the_replica_too(
    pair: Pair, opened: Opened
) -> None:
    manager, after = opened(), failed_over(opened, pair)
    prefix, peer_id = f"{manager._settings.prefix}.", secrets.token_hex(16)
    source = Starsessions(pair.url, prefix=prefix)
    async with Redis.from_url(pair.url) as redis:
        await redis.set(prefix + peer_id, json.dumps({"user": 1}), ex=100)
        with pair.slow(SLOW):
            session = await manager.load_through(source, peer_id)
            assert dict(await after.load(session.id)) == {"user": 1}
        await redis.set(prefix + peer_id[::-1], json.dumps({"user": 1}), ex=100)
        hasty = opened(**HASTY)
        with pair.held(), pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
            await hasty.load_through(source, peer_id[::-1])
        assert dict(await manager.load_through(source, peer_id[::-1])) == {"user": 1}
    await source.aclose()
    await asyncio.to_thread(source.close)


async def test_too_few_replicas_and_saving_again_commits_once(pair: Pair, opened: Opened) -> None:
    manager, hasty = (opened(merge={"n": merge.counter}, **how) for how in ({}, HASTY))
    after, plain = failed_over(opened, pair), opened(min_replicas=0)
    session = await begun(manager, n=0)
    session["n"] += 1
    with pair.held():
        for _ in range(3):
            with pytest.raises(CommitOutcomeUnknown, match="0 of 1 replicas confirmed it within"):
                await hasty.save(session)
            found = await plain.load(session.id)
            assert (found["n"], found.version) == (1, 2)
            assert (await after.load(session.id)).version == 1
    await manager.save(session)
    assert (session["n"], session.version, session.modified) == (1, 2, False)
    assert (await after.load(session.id))["n"] == 1


async def test_more_replicas_than_there_are(pair: Pair, opened: Opened) -> None:
    with pytest.raises(CommitOutcomeUnknown, match=r"1 of 2 replicas confirmed it within 0\.2 s"):
        await begun(opened(min_replicas=2, durability_timeout=0.2), n=0)


async def test_a_call_is_given_the_time_to_wait_on_top(pair: Pair, opened: Opened) -> None:
    """A quarter of `timeout` is for the call itself, and less than the replicas have here."""
    hasty = opened(timeout=0.4, durability_timeout=0.2)
    with pair.held(), pytest.raises(CommitOutcomeUnknown, match="0 of 1 replicas"):
        await begun(hasty, n=0)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "update"])
async def test_each_verb_says_if_too_few_replicas_have_it_and_may_be_repeated(
    pair: Pair, opened: Opened, verb: str
) -> None:
    manager, hasty, after = opened(), opened(**HASTY), failed_over(opened, pair)
    session = await begun(manager, n=0)
    if verb == "destroy_all":
        session.principal = "user:1"
        await manager.save(session)
    perform, lives = VERBS[verb]
    kinds = (
        (CommitOutcomeUnknown, StoreUnavailable) if verb == "destroy_all" else CommitOutcomeUnknown
    )
    with pair.held():
        for _ in range(2):
            with pytest.raises(kinds, match="0 of 1 replicas"):
                await perform(hasty, session)
    session_id = await perform(manager, session)
    assert dict(await after.load(session_id)) == ({"n": 1} if lives else {})


async def test_a_login_that_was_not_confirmed_is_finished(pair: Pair, opened: Opened) -> None:
    manager, hasty = opened(), opened(**HASTY)
    session = await begun(manager, n=0)
    session.principal = "user:4"
    with pair.held():
        with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):  # before its commit
            await hasty.save(session)
        assert (await manager.load(session.id)).principal is None
    await manager.save(session)
    assert [one.handle for one in await manager.sessions_of("user:4")] == [session.handle]


@FLAVOURS
async def test_a_commit_whose_answer_was_lost_is_waited_for_on_the_next_connection(
    pair: Pair, opened: Opened
) -> None:
    """There, WAIT by itself covers nothing (redis#6393), and tells of all replicas."""
    sha = SCRIPTS["commit"].sha.encode()
    faults = iter([Fault.CUT])
    async with FaultProxy(pair.primary.port, lambda _: Fault.PASS) as proxy:
        manager, hasty = opened(), opened(proxy.url, **HASTY)
        after = failed_over(opened, pair)
        session = await begun(manager, n=0)
        proxy.decide = lambda words: next(faults, Fault.PASS) if sha in words else Fault.PASS
        session["n"] = 1
        with pair.held(), pytest.raises(CommitOutcomeUnknown, match="0 of 1 replicas"):
            await hasty.save(session)
        assert proxy.faults[Fault.CUT]
        commit = await manager.save(session)
        assert (commit.version, (await after.load(session.id))["n"]) == (2, 1)


@pytest.mark.parametrize("verb", [verb for verb, (_, lives) in VERBS.items() if not lives])
async def test_a_destroy_whose_answer_was_lost_is_waited_for_on_the_next_connection(
    pair: Pair, opened: Opened, verb: str
) -> None:
    sha = SCRIPTS["destroy"].sha.encode()
    faults = iter([Fault.CUT])
    async with FaultProxy(pair.primary.port, lambda _: Fault.PASS) as proxy:
        manager, hasty = opened(), opened(proxy.url, **HASTY)
        after = failed_over(opened, pair)
        session = await begun(manager, n=0)
        if verb == "destroy_all":
            session.principal = "user:1"
            await manager.save(session)
        proxy.decide = lambda words: next(faults, Fault.PASS) if sha in words else Fault.PASS
        with pair.held():
            with pytest.raises((CommitOutcomeUnknown, StoreUnavailable), match="0 of 1 replicas"):
                await VERBS[verb][0](hasty, session)
            assert not (await after.load(session.id)).is_new
        await VERBS[verb][0](manager, session)
        assert (await after.load(session.id)).is_new


async def test_a_takeover_whose_answer_was_lost_is_waited_for_on_the_next_connection(
    pair: Pair, opened: Opened
) -> None:
    sha, faults = SCRIPTS["adopt"].sha.encode(), iter([Fault.CUT])
    peer_id = secrets.token_hex(16)
    async with (
        FaultProxy(pair.primary.port, lambda _: Fault.PASS) as proxy,
        Redis.from_url(pair.url) as redis,
    ):
        manager, hasty = opened(), opened(proxy.url, **HASTY)
        prefix = f"{manager._settings.prefix}."
        source = Starsessions(pair.url, prefix=prefix)
        for name in (peer_id, peer_id[::-1]):
            await redis.set(prefix + name, json.dumps({"user": 1}), ex=100)
        await manager.load_through(source, peer_id[::-1])  # the server knows the script then
        proxy.decide = lambda words: (
            next(faults, Fault.PASS) if words[1:3] == [sha, b"2"] else Fault.PASS
        )
        with pair.held(), pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
            await hasty.load_through(source, peer_id)
        assert proxy.faults[Fault.CUT]
        assert dict(await manager.load_through(source, peer_id)) == {"user": 1}
    await source.aclose()
    await asyncio.to_thread(source.close)


async def test_a_refusal_stays_a_refusal_without_replicas(pair: Pair, opened: Opened) -> None:
    manager, hasty = (opened(merge={"n": merge.reject}, **how) for how in ({}, HASTY))
    session, other = await begun(manager, n=0), await begun(manager, n=0)
    mine, theirs = await manager.load(session.id), await manager.load(session.id)
    mine["n"], theirs["n"] = 1, 2
    await manager.save(theirs)
    with pair.held():
        other["n"] = 1
        with pytest.raises(CommitOutcomeUnknown):
            await hasty.save(other)  # what WAIT waits for on this connection from now on
        with pytest.raises(SessionConflict):
            await hasty.save(mine)


async def test_nobody_is_asked_to_wait_without_min_replicas(pair: Pair, opened: Opened) -> None:
    before = await asyncio.to_thread(pair.waits)
    await begun(opened(min_replicas=0), n=0)
    assert await asyncio.to_thread(pair.waits) == before


async def test_reading_waits_for_nobody(pair: Pair, opened: Opened) -> None:
    manager = opened()
    session, other = await begun(manager, n=0), await begun(manager, n=0)
    session["n"] = 1
    with pair.held():
        saving = asyncio.create_task(manager.save(session))
        while not (await manager.load(session.id))["n"]:
            pass  # a load may show what is not on the replicas yet
        for _ in range(20):
            await manager.load(other.id)
            await manager.sessions_of("user:1")
            await manager.touch(other)
            await manager.refresh(other)
        assert not saving.done()
    await saving


async def test_the_right_to_wait_is_missing(
    pair: Pair, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Redis.from_url(pair.url) as redis:
        await redis.acl_setuser("hasty", enabled=True, passwords=["+p"], categories=["+@all"],
                                commands=["-wait"], keys=["*"])  # fmt: skip
        manager = opened(f"redis://hasty:p@127.0.0.1:{pair.primary.port}/0",
                         timeout=0.5, **HASTY)  # fmt: skip
        session = await manager.load()
        session["n"] = 0
        with monkeypatch.context() as patch:
            patch.setattr(Budget, "pause", None)  # it is not tried again
            with pytest.raises(StoreUnavailable, match=r"NOPERM.*wait"):
                await manager.save(session)
        assert session.is_new
        assert (await opened(min_replicas=0).load(session.id)).is_new, "nothing was written"
        await redis.acl_setuser("hasty", commands=["+wait"])
        assert (await manager.save(session)).version == 1, "on the same connection"
        await redis.acl_setuser("hasty", commands=["-wait"])
        session["n"] = 1
        with pytest.raises(CommitOutcomeUnknown):
            await manager.save(session)  # taken away behind the manager's back: it was done
        other = await manager.load()
        other["n"] = 0
        with pytest.raises(StoreUnavailable, match=r"NOPERM.*wait"):
            await manager.save(other)
        await redis.acl_deluser("hasty")


async def test_a_connection_that_breaks_while_it_asks(pair: Pair, opened: Opened) -> None:
    """Nothing was written there yet, so that is certain."""
    cuts = iter([Fault.CUT])
    async with FaultProxy(pair.primary.port, lambda _: Fault.PASS) as proxy:
        proxy.decide = lambda w: next(cuts, Fault.PASS) if w[:2] == [b"WAIT", b"0"] else Fault.PASS
        manager = opened(proxy.url, timeout=0.6, durability_timeout=0.3)
        session = await begun(manager, n=0)
        assert proxy.faults[Fault.CUT] == 1
        await manager.aclose()
        proxy.decide = lambda w: Fault.CUT if w[0] == b"WAIT" else Fault.PASS
        session["n"] = 1
        with pytest.raises(StoreUnavailable):
            await manager.save(session)
