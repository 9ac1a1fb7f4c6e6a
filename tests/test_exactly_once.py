"""Exactly once, whatever the network does."""

from __future__ import annotations

import asyncio

import pytest
from support.backends import Backend
from support.commits import at_another_time
from support.faults import is_commit
from support.proxy import Decide, Fault, FaultProxy, is_script, seeded
from support.scenarios import (
    POLICIES,
    failover_to_an_older_copy,
    faulted_commits,
    late_create,
    late_duplicate_after_compaction,
    late_duplicate_of_a_forgotten_commit,
)

from asyncsession import CommitOutcomeUnknown, SessionTooLarge, StoreUnavailable
from asyncsession.ids import index_key, store_key
from asyncsession.protocol import Code

LOSSES = (Fault.DROP, Fault.CUT, Fault.SWALLOW, Fault.LOST, Fault.LATE, Fault.TWICE)


def once(*faults: Fault) -> Decide:
    """Return a `decide` that gives these faults to the next scripts, one each."""
    left = iter(faults)
    return lambda request: next(left, Fault.PASS) if is_script(request) else Fault.PASS


async def test_two_thousand_faulted_commits(valkey: Backend) -> None:
    assert valkey.port
    async with FaultProxy(valkey.port, seeded(1, 0.10, LOSSES)) as proxy:
        tallies = await asyncio.gather(  # in four sessions: what one takes grows with what is in it
            *(faulted_commits(valkey, proxy, writers=10, commits=50, timeout=2) for _ in range(4))
        )
    assert sum(tally.total for tally in tallies) == 2000
    assert sum(len(tally.acknowledged) for tally in tallies) > 0.98 * 2000
    assert sum(proxy.faults.values()) > 200


async def test_most_calls_faulted(valkey: Backend) -> None:
    """Where most calls go wrong many commits fail, and still every answer is true."""
    assert valkey.port
    async with FaultProxy(valkey.port, seeded(3, 0.85, LOSSES)) as proxy:
        tally = await faulted_commits(valkey, proxy, writers=32, commits=5, timeout=0.4)
    assert tally.unknown
    assert tally.acknowledged


async def test_a_reply_that_was_cut_is_one_commit(valkey: Backend) -> None:
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        manager = valkey.manager(proxy.url, merge=POLICIES, timeout=1)
        session = await manager.load()
        session["n"] = 1
        await manager.save(session)
        proxy.decide = once(Fault.CUT, Fault.SWALLOW, Fault.CUT)
        session["n"] += 1
        commit = await manager.save(session)
        assert commit.attempts == 1, "lost replies are not attempts: the script answered once"
        assert dict(session) == {"n": 2}
        session["n"] += 1
        await manager.save(session)
    again = await valkey.manager().load(session.id)
    assert (again["n"], again.version) == (3, 3)


async def test_an_unanswered_commit_is_unknown_and_an_unsent_one_is_not(valkey: Backend) -> None:
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        manager = valkey.manager(proxy.url, timeout=0.4)
        session = await manager.load()
        session["a"] = 1
        await manager.save(session)
        proxy.decide = seeded(0, 1, [Fault.SWALLOW])
        session["a"] = 2
        with pytest.raises(CommitOutcomeUnknown):
            await manager.save(session)
        with pytest.raises(StoreUnavailable):
            await manager.load(session.id)
        proxy.decide = lambda _: Fault.PASS
        await manager.save(session)
        assert (session["a"], session.version) == (2, 2), "the same commit, finished"
    unreachable = valkey.manager(f"redis://127.0.0.1:{proxy.port}/0", timeout=0.3)
    session["a"] = 3
    with pytest.raises(StoreUnavailable):
        await unreachable.save(session)


async def test_a_refusal_that_passes_leaves_no_lost_copy_unknown(valkey: Backend) -> None:
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        manager = valkey.manager(proxy.url, timeout=5)
        session = await manager.load()
        session["a"] = 1
        await manager.save(session)
        key = store_key(valkey.prefix, session.handle)
        blob = await valkey.redis.get(key)
        assert isinstance(blob, bytes)
        proxy.decide = once(Fault.DROP)
        await valkey.redis.delete(key)
        await valkey.redis.sadd(key, "x")  # a refusal that does not pass by itself
        session["a"] = 2
        save = asyncio.create_task(manager.save(session))
        while not (await valkey.redis.info("errorstats")).get("errorstat_WRONGTYPE"):
            assert not save.done()
        await valkey.redis.set(key, blob, px=60_000)
        await save
        assert (await manager.load(session.id))["a"] == 2


async def test_saving_again_after_an_unknown_create(valkey: Backend) -> None:
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        manager = valkey.manager(proxy.url, merge=POLICIES, timeout=0.4)
        await manager.load("abc." + "x" * 32)
        session = await manager.load()
        session["n"], session.principal = 1, "user:1"
        proxy.decide = lambda r: Fault.SWALLOW if is_commit(r) else Fault.PASS
        for _ in range(2):
            with pytest.raises(CommitOutcomeUnknown):
                await manager.save(session)
        session["n"] += 1
        proxy.decide = lambda _: Fault.PASS
        await manager.save(session)
        assert (session["n"], session.version) == (2, 2)
        assert dict(await manager.load(session.id)) == {"n": 2}
        assert await manager.destroy_all("user:1") == 1


async def test_rotating_again_after_an_unknown_rotation(valkey: Backend) -> None:
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        manager = valkey.manager(proxy.url, merge=POLICIES, timeout=0.4)
        session = await manager.load()
        session["n"] = 1
        await manager.save(session)
        session["n"] += 1
        session.principal = "user:1"
        proxy.decide = lambda r: Fault.SWALLOW if is_commit(r) else Fault.PASS
        with pytest.raises(CommitOutcomeUnknown):
            await manager.rotate(session)
        proxy.decide = lambda _: Fault.PASS
        await manager.rotate(session)
        assert dict(await manager.load(session.id)) == {"n": 2}
        (listed,) = await manager.sessions_of("user:1")
        assert listed.handle == session.handle
    sessions = [key for key in await valkey.keys() if b":of:" not in key]
    assert len(sessions) == 2, "it was rotated a second time"


async def test_a_rotation_whose_reply_was_lost_happens_once(valkey: Backend) -> None:
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        manager = valkey.manager(proxy.url, merge=POLICIES, timeout=2)
        session = await manager.load()
        session["n"] = 1
        await manager.save(session)
        old = session.id
        for fault in (Fault.CUT, Fault.SWALLOW, Fault.DROP, Fault.LATE):
            proxy.decide = once(fault)
            session["n"] += 1
            await manager.rotate(session)
            assert not session.is_stale
        await proxy.drained()
    direct = valkey.manager()
    assert (await direct.load(session.id))["n"] == 5
    assert (await direct.load(old)).is_new
    live = [key for key in await valkey.keys() if (await valkey.redis.get(key))[3:4] == b"L"]
    assert len(live) == 1


async def test_late_duplicates(valkey: Backend) -> None:
    await late_duplicate_after_compaction(valkey)
    await late_duplicate_of_a_forgotten_commit(valkey)
    await late_create(valkey)


async def test_a_failover_that_lost_a_write(valkey: Backend) -> None:
    await failover_to_an_older_copy(valkey)


async def test_a_copy_later_than_the_window_does_nothing(valkey: Backend) -> None:
    """Even with every trace of the first copy gone, a copy from long ago is refused."""
    assert valkey.port
    sent: list[list[bytes]] = []

    def keep(request: list[bytes]) -> Fault:
        if is_commit(request):
            sent.append(request)
        return Fault.PASS

    async with FaultProxy(valkey.port, keep) as proxy:
        manager = valkey.manager(proxy.url)
        session = await manager.load()
        session["user"] = 42
        await manager.save(session)
    await valkey.redis.flushdb()
    command = list(sent[-1])
    command[4] = at_another_time(command[4], -16_000)  # behind EVALSHA, digest, "1" and the key
    reply = await valkey.redis.execute_command(*command)
    assert reply[22] == Code.LATE
    assert await valkey.keys() == []


async def test_cancelled_saves_leave_no_connection_out_of_step(real_backend: Backend) -> None:
    """Each save is cancelled a little later than the one before; then everybody gets their own."""
    manager = real_backend.manager(merge=POLICIES)
    sessions = [await manager.load() for _ in range(4)]
    for number, session in enumerate(sessions):
        session["owner"] = number
        await manager.save(session)

    async def work(number: int) -> None:
        mine = await manager.load(sessions[number].id)
        assert mine["owner"] == number
        mine["n"] = mine.get("n", 0) + 1
        await manager.save(mine)

    for turns in range(60):
        task = asyncio.ensure_future(work(turns % 4))
        for _ in range(turns // 2):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.gather(*map(work, range(4)))


async def test_rotating_again_after_an_unknown_confirmation(valkey: Backend) -> None:
    """The rotation was committed, so a refusal of the next one must not pass for "not done"."""
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        manager = valkey.manager(proxy.url, timeout=0.4)
        session = await manager.load()
        session["n"] = 1
        await manager.save(session)
        old = session.id
        session.principal = "user:1"
        proxy.decide = lambda r: Fault.SWALLOW if b"confirm" in r else Fault.PASS
        with pytest.raises(CommitOutcomeUnknown):
            await manager.rotate(session)
        assert (await valkey.manager().load(old)).is_new
        await valkey.redis.rename(
            index_key(valkey.prefix, "user:1"), index_key(valkey.prefix, "user:2")
        )
        await valkey.redis.set(index_key(valkey.prefix, "user:1"), "no list")
        proxy.decide = lambda _: Fault.PASS
        with pytest.raises(CommitOutcomeUnknown):
            await manager.rotate(session)


async def test_what_was_refused_behind_an_unknown_confirmation_is_not_tried_for_ever(
    valkey: Backend,
) -> None:
    """It was never sent, so what is saved next is what the session holds then."""
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        manager = valkey.manager(proxy.url, timeout=0.4, max_bytes=1024)
        session = await manager.load()
        session["n"], session.principal = 1, "user:1"
        proxy.decide = lambda r: Fault.SWALLOW if b"confirm" in r else Fault.PASS
        with pytest.raises(CommitOutcomeUnknown):
            await manager.save(session)
        proxy.decide = lambda _: Fault.PASS
        session["big"] = "x" * 5000
        with pytest.raises(CommitOutcomeUnknown, match="limit is 1024") as unknown:
            await manager.save(session)
        assert isinstance(unknown.value.__cause__, SessionTooLarge)
        del session["big"]
        session["n"] = 2
        await manager.save(session)
        assert dict(await manager.load(session.id)) == {"n": 2}
        assert await manager.destroy_all("user:1") == 1
