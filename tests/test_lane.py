"""One connection for all tasks: nobody is given another's answer, whatever is cut short."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis
from support.backends import Backend
from support.proxy import Fault, FaultProxy, is_script
from support.servers import Server

from asyncsession import ConfigurationError, SessionManager, StoreUnavailable
from asyncsession.handles import LOOK
from asyncsession.protocol import Call, Lost
from asyncsession.transport import link
from asyncsession.transport.loops import PerLoop


async def owned(manager: SessionManager, count: int) -> list[str]:
    """Return the ids of sessions that know their number."""
    ids = []
    for number in range(count):
        async with manager.session() as session:
            session["owner"] = number
        ids.append(session.id)
    return ids


async def test_all_tasks_share_one_connection(valkey: Backend) -> None:
    manager = valkey.manager()
    ids = await owned(manager, 64)
    before = {client["id"] for client in await valkey.redis.client_list()}
    other = valkey.manager()
    sessions = await asyncio.gather(*map(other.load, ids))
    assert [session["owner"] for session in sessions] == list(range(64))
    after = {client["id"] for client in await valkey.redis.client_list()}
    assert len(after - before) == 1


async def test_replies_that_wait_for_slow_handlers_are_not_lost(
    valkey: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have come, and the loop is busy with those who were handed theirs before."""
    manager = valkey.manager(timeout=1)
    ids = await owned(manager, 300)
    call, lost = manager._transport.call, 0

    async def spy(step: Call) -> Any:
        nonlocal lost
        try:
            return await call(step)
        except Lost:
            lost += 1
            raise

    async def slow(session_id: str) -> None:
        session = await manager.load(session_id)
        busy = time.perf_counter() + 0.002
        while time.perf_counter() < busy:
            pass
        session["n"] = 1
        await manager.save(session)

    monkeypatch.setattr(manager._transport, "call", spy)
    await asyncio.gather(*map(slow, ids))
    assert lost < 10, "of 600"


@pytest.mark.parametrize("tasks", [15, 16, 17, 32, 48])
async def test_whoever_comes_right_after_the_others_gets_its_own_answer(
    valkey: Backend, tasks: int
) -> None:
    """A lane hands replies out in portions: nobody reads beside it between two of them."""
    manager = valkey.manager(cache_bytes=0)
    ids = await owned(manager, tasks)
    ((lane,),) = manager._transport._lanes.values()  # type: ignore[attr-defined]
    link = lane._link

    async def follow(number: int) -> None:
        for turn in range(20):
            owner = (number + turn) % tasks
            assert (await manager.load(ids[owner]))["owner"] == owner
            if turn % 3 == number % 3:
                await asyncio.sleep(0)

    await asyncio.gather(*map(follow, range(tasks)))
    assert lane._link is link, "nothing had to be asked again"


async def test_more_lanes_take_the_calls_in_turn(valkey: Backend) -> None:
    manager = valkey.manager()
    ids = await owned(manager, 64)
    before = {client["id"] for client in await valkey.redis.client_list()}
    other = valkey.manager(lanes=3)
    sessions = await asyncio.gather(*map(other.load, ids))
    assert [session["owner"] for session in sessions] == list(range(64))
    after = {client["id"] for client in await valkey.redis.client_list()}
    assert len(after - before) == 3
    await other.aclose()


@pytest.mark.parametrize("lanes", [0, 65, 1.5, True, "2"])
def test_a_number_of_lanes_that_cannot_be_meant(lanes: Any) -> None:
    with pytest.raises(ConfigurationError, match="lanes"):
        SessionManager(lanes=lanes)


@pytest.mark.parametrize("seed", range(3))
async def test_cancelled_tasks_leave_the_others_their_own_answers(
    real_backend: Backend, seed: int
) -> None:
    manager = real_backend.manager()
    ids = await owned(manager, 16)
    rng = random.Random(seed)
    seen = 0

    async def ask(number: int) -> None:
        nonlocal seen
        session = await manager.load(ids[number])
        assert session["owner"] == number
        session["seen"] = session.get("seen", 0) + 1
        await manager.save(session)
        seen += 1

    for _ in range(40):
        tasks = [asyncio.create_task(ask(number)) for number in range(16)]
        for task in rng.sample(tasks, rng.randrange(16)):
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(r) for r in results} <= {type(None), asyncio.CancelledError}
    assert seen > 100


async def test_cancel_scopes_that_insist(valkey: Backend) -> None:
    """anyio cancels again at every await until a scope is left; clean-up has to bear that."""
    manager = valkey.manager()
    ids = await owned(manager, 4)
    for patience in range(60):
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_later(patience / 20_000, scope.cancel)
            async with anyio.create_task_group() as group:
                for session_id in ids:
                    group.start_soon(manager.load, session_id)
        for number, session_id in enumerate(ids):
            assert (await manager.load(session_id))["owner"] == number


async def test_a_silent_server_fails_everybody_and_the_next_call_connects_anew(
    valkey: Backend,
) -> None:
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        manager = valkey.manager(proxy.url, timeout=0.2)
        ids = await owned(manager, 8)
        proxy.decide = lambda request: Fault.SWALLOW if is_script(request) else Fault.PASS
        results = await asyncio.gather(*map(manager.load, ids), return_exceptions=True)
        assert {type(result) for result in results} == {StoreUnavailable}
        proxy.decide = lambda _: Fault.PASS
        sessions = await asyncio.gather(*map(manager.load, ids))
        assert [session["owner"] for session in sessions] == list(range(8))


async def test_a_slow_server_is_not_taken_for_a_dead_one(valkey: Backend) -> None:
    """One caller's patience ends; the connection still brings answers, and goes on."""
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS, delay=0.3) as proxy:
        patient = valkey.manager(proxy.url, timeout=4)
        (session_id,) = await owned(patient, 1)
        delays = iter([Fault.DELAY])
        proxy.decide = lambda r: next(delays, Fault.PASS) if is_script(r) else Fault.PASS
        session = await patient.load(session_id)
        assert session["owner"] == 0


async def test_a_caller_in_a_hurry_does_not_break_the_connection_for_others(
    valkey: Backend,
) -> None:
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS, delay=0.3) as proxy:
        manager = valkey.manager(proxy.url, timeout=8)
        (session_id,) = await owned(manager, 1)
        proxy.decide = lambda r: Fault.DELAY if is_script(r) else Fault.PASS
        patient = [asyncio.create_task(manager.load(session_id)) for _ in range(3)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(manager.load(session_id), 0.01)
        transport = manager._transport
        hasty = Call("load", ("k",), LOOK, 0.001)
        with pytest.raises(Lost):
            await transport.call(hasty)
        ((only,),) = transport._lanes.values()  # type: ignore[attr-defined]
        link = only._link
        assert {session["owner"] for session in await asyncio.gather(*patient)} == {0}
        assert only._link is link, "nobody had to ask again"


async def test_an_error_reply_is_an_answer_to_one_call_alone(
    get_server: Callable[[str], Server],
) -> None:
    """What was sent behind a READONLY may have been done, if the replica was promoted between."""
    server = Server("valkey9")
    await asyncio.to_thread(server.start)
    try:
        async with Redis.from_url(server.url) as admin, SessionManager(server.url) as manager:
            (session_id,) = await owned(manager, 1)
            await manager.destroy(session_id)  # the server knows the script then
            await admin.replicaof("127.0.0.1", "1")
            transport = manager._transport
            calls = [Call("load", (f"k{n}",), LOOK, 1.0) for n in range(2)]
            touch = Call("destroy", ("k",), (b"aS\x01D" + b"i" * 8, 1000), 1.0)
            results = await asyncio.gather(
                *(transport.call(call) for call in (calls[0], touch, calls[1])),
                return_exceptions=True,
            )
            assert [type(result).__name__ for result in results][1:] == ["Refused", "Lost"]
    finally:
        await asyncio.to_thread(server.close)


def test_lanes_of_ended_loops_are_let_go(get_server: Callable[[str], Server]) -> None:
    """A synchronous caller that runs a loop for each request must not collect sockets."""
    manager = SessionManager(get_server("valkey9").url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # asyncio's, of loops nobody cleaned up
        for _ in range(5):
            asyncio.run(manager.load("abc." + "x" * 32))
        assert len(manager._transport._lanes) == 1  # type: ignore[attr-defined]
        asyncio.run(manager.aclose())
        manager._transport._lanes.clear()  # type: ignore[attr-defined]
        gc.collect()


def test_a_loop_that_ends_closes_its_connection(get_server: Callable[[str], Server]) -> None:
    """And leaves nothing to the garbage collector, which may be turned off."""
    server = get_server("valkey9")
    manager = SessionManager(server.url)
    gc.collect()
    gc.disable()
    try:
        files = Path("/proc/self/fd")
        before = len(list(files.iterdir()))
        for _ in range(5):
            asyncio.run(manager.load("abc." + "x" * 32))
        assert len(list(files.iterdir())) == before
    finally:
        gc.enable()
        gc.collect()


class EndedLoop:
    """A loop that another thread sees has ended at the same moment, and makes its own known."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self._meanwhile: Callable[[], object] | None = meanwhile

    def is_closed(self) -> bool:
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return True


def test_loops_of_several_threads_come_and_go() -> None:
    """As under a WSGI server with async views: `async_to_sync` makes a loop for each of them."""
    lanes: PerLoop[str] = PerLoop()
    here, there = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        ended: Any = EndedLoop(lambda: lanes.of(there, lambda: "there"))
        lanes[ended] = "ended"
        assert lanes.of(here, lambda: "here") == "here"
        assert dict(lanes) == {here: "here", there: "there"}
    finally:
        here.close()
        there.close()


async def test_more_calls_than_a_lane_carries_take_turns(
    valkey: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_MAX_WAITING", 3)
    manager = valkey.manager()
    ids = await owned(manager, 20)
    sessions = await asyncio.gather(*map(manager.load, ids))
    assert [session["owner"] for session in sessions] == list(range(20))


async def test_closing_tells_whoever_waits(valkey: Backend) -> None:
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        manager = valkey.manager(proxy.url, timeout=0.3)
        (session_id,) = await owned(manager, 1)
        proxy.decide = lambda r: Fault.SWALLOW if is_script(r) else Fault.PASS
        loads = [asyncio.create_task(manager.load(session_id)) for _ in range(3)]
        await asyncio.sleep(0)
        await manager.aclose()
        results = await asyncio.gather(*loads, return_exceptions=True)
        assert {type(result) for result in results} == {StoreUnavailable}
    assert len(asyncio.all_tasks()) == 1


def test_saving_while_all_tasks_are_cancelled(get_server: Callable[[str], Server]) -> None:
    """The end of a program cancels the link's own tasks, too; what is saved then is not held up."""
    saved: list[int] = []

    async def work() -> None:
        manager = SessionManager(get_server("valkey9").url)
        (session_id,) = await owned(manager, 1)

        async def worker(number: int) -> None:
            session = await manager.load(session_id)
            try:
                while True:
                    await manager.load(session_id)
            finally:
                session[f"key{number}"] = 1
                async with asyncio.timeout(1):
                    await manager.save(session)
                saved.append(number)

        tasks.extend(asyncio.create_task(worker(number)) for number in range(8))
        await asyncio.sleep(0.1)

    tasks: list[asyncio.Task[None]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # asyncio's: nobody closed the manager
        asyncio.run(work())
        tasks.clear()
        gc.collect()
    assert sorted(saved) == list(range(8))


async def test_a_process_that_was_busy_does_not_blame_the_server(valkey: Backend) -> None:
    manager = valkey.manager(timeout=1)
    (session_id,) = await owned(manager, 1)
    loads = [asyncio.create_task(manager.load(session_id)) for _ in range(3)]
    await asyncio.sleep(0)
    ((only,),) = manager._transport._lanes.values()  # type: ignore[attr-defined]
    link = only._link
    spin_until = time.monotonic() + 0.5
    while time.monotonic() < spin_until:
        pass
    assert {session["owner"] for session in await asyncio.gather(*loads)} == {0}
    assert only._link is link
