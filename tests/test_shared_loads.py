"""Loads of one session that are asked for at once share a call, and none sees less for it."""

from __future__ import annotations

import asyncio
import random

import pytest
from support.backends import Backend
from support.proxy import Fault, FaultProxy, is_script

from asyncsession import SessionManager, StoreUnavailable, merge
from asyncsession.transport.link import Link


async def numbered(manager: SessionManager) -> str:
    async with manager.session() as session:
        session["n"] = 0
    return session.id


async def runs(backend: Backend) -> int:
    """Return how many scripts the server has run."""
    stats = await backend.redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


def the_link(manager: SessionManager) -> Link:
    ((lane,),) = manager._transport._lanes.values()  # type: ignore[attr-defined]
    link = lane._link
    assert isinstance(link, Link)
    return link


async def test_loads_of_one_tick_are_one_call_and_whoever_reads_for_itself(valkey: Backend) -> None:
    manager = valkey.manager()
    session_id = await numbered(manager)
    before = await runs(valkey)
    sessions = await asyncio.gather(*(manager.load(session_id) for _ in range(32)))
    assert await runs(valkey) - before == 2
    assert [session["n"] for session in sessions] == [0] * 32
    sessions[0]["n"] = 1
    assert sessions[1]["n"] == 0


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
async def test_a_session_that_others_have_changed_or_that_nobody_here_knows(
    valkey: Backend, cache_bytes: int
) -> None:
    """The replies go on from what the one that was sent had known, and not its sharers."""
    writer, reader = valkey.manager(), valkey.manager(cache_bytes=cache_bytes)
    session_id = await numbered(writer)
    for number in range(40):  # through compactions, too
        session = await writer.load(session_id)
        session["n"] = number
        session[f"key{number % 3}"] = "x" * 50
        await writer.save(session)
        if number % 4 == 3:
            loaded = await asyncio.gather(*(reader.load(session_id) for _ in range(4)))
            assert {dict(one)["n"] for one in loaded} == {number}
            assert {one.version for one in loaded} == {number + 2}


async def test_sharers_that_know_different_logs(valkey: Backend) -> None:
    """Each of these has learned of another commit right before it loads."""
    manager = valkey.manager(merge={"n": merge.counter})
    session_id = await numbered(manager)

    async def count() -> None:
        for _ in range(30):
            session = await manager.load(session_id)
            before, session["n"] = session["n"], session["n"] + 1
            await manager.save(session)
            assert session["n"] > before
            assert (await manager.load(session_id))["n"] >= session["n"]

    before = await runs(valkey)
    await asyncio.gather(*(count() for _ in range(16)))
    assert (await manager.load(session_id))["n"] == 480
    assert await runs(valkey) - before < 3 * 480 / 1.5


async def test_what_was_acknowledged_before_a_load_began_is_in_it(real_backend: Backend) -> None:
    """Whoever commits is another process as far as the readers can tell."""
    writer, reader = real_backend.manager(), real_backend.manager()
    session_id = await numbered(writer)
    acknowledged, is_done = 0, False

    async def write() -> None:
        nonlocal acknowledged, is_done
        session = await writer.load(session_id)
        for number in range(1, 300):
            session["n"] = number
            await writer.save(session)
            acknowledged = number
        is_done = True

    async def read(seed: int) -> None:
        rng = random.Random(seed)
        while not is_done:
            least = acknowledged
            assert (await reader.load(session_id))["n"] >= least
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)

    await asyncio.gather(write(), *map(read, range(12)))


async def test_a_command_that_is_written_is_joined_by_nobody(valkey: Backend) -> None:
    """A reply to it might come from before a commit that is acknowledged by now."""
    manager = valkey.manager()
    await numbered(manager)
    link = the_link(manager)
    first = link.post(("PING",), 1, 1)
    shared = link.post(("ECHO", "a"), 1, 1, ("name", "note"))
    link_start = asyncio.create_task(link._pump())
    joined = link.join("name", 1, 1)
    assert joined is not None
    assert link.join("another", 1, 1) is None
    assert await joined[0] == b"a" == await shared
    assert joined[1] == "note"
    assert await first == b"PONG"
    await link_start

    shared = link.post(("ECHO", "b"), 1, 1, ("name", "note"))
    await asyncio.sleep(0)  # the turn in which it is written
    assert not shared.done()
    assert link.join("name", 1, 1) is None
    await link._pump()


@pytest.mark.parametrize("cancelled", [(0,), (1,), (2,), (1, 2), (0, 1, 2, 3)])
async def test_cancelling_some_of_them_leaves_the_others_theirs(
    valkey: Backend, cancelled: tuple[int, ...]
) -> None:
    manager = valkey.manager()
    session_id = await numbered(manager)
    for turns in range(4):
        loads = [asyncio.create_task(manager.load(session_id)) for _ in range(5)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for number in cancelled:
            loads[number].cancel()
        results = await asyncio.gather(*loads, return_exceptions=True)
        for number, result in enumerate(results):
            if number in cancelled and turns:
                assert isinstance(result, asyncio.CancelledError)
            elif number not in cancelled:
                assert not isinstance(result, BaseException)
                assert result["n"] == 0


async def test_each_has_a_deadline_of_its_own(valkey: Backend) -> None:
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS, delay=0.3) as proxy:
        manager = valkey.manager(proxy.url, timeout=8)
        session_id = await numbered(manager)
        link = the_link(manager)
        proxy.decide = lambda request: Fault.DELAY if is_script(request) else Fault.PASS
        busy = asyncio.create_task(manager.load(session_id))
        await asyncio.sleep(0)
        shared = [asyncio.create_task(manager.load(session_id)) for _ in range(3)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(manager.load(session_id), 0.01)
        first = link.post(("PING",), 5, 5, ("x", None))
        hasty = link.join("x", 0.001, 5)
        assert hasty is not None
        with pytest.raises(Exception, match="TimeoutError"):
            await hasty[0]
        assert await first == b"PONG"
        assert {session["n"] for session in await asyncio.gather(busy, *shared)} == {0}


async def test_a_connection_that_breaks_is_told_to_all_of_them(valkey: Backend) -> None:
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        manager = valkey.manager(proxy.url, timeout=0.3)
        session_id = await numbered(manager)
        for fault in (Fault.DROP, Fault.CUT, Fault.SWALLOW):
            faults = iter([fault, fault])
            proxy.decide = lambda r, f=faults: next(f, Fault.PASS) if is_script(r) else Fault.PASS  # type: ignore[misc]
            loads = (manager.load(session_id) for _ in range(6))
            assert {session["n"] for session in await asyncio.gather(*loads)} == {0}, fault
        proxy.decide = lambda request: Fault.DROP if is_script(request) else Fault.PASS
        results = await asyncio.gather(
            *(manager.load(session_id) for _ in range(6)), return_exceptions=True
        )
        assert {type(result) for result in results} == {StoreUnavailable}


async def test_a_server_that_has_forgotten_the_script_is_told_it_again(valkey: Backend) -> None:
    manager = valkey.manager()
    session_id = await numbered(manager)
    await valkey.redis.script_flush()
    sessions = await asyncio.gather(*(manager.load(session_id) for _ in range(6)))
    assert {session["n"] for session in sessions} == {0}
