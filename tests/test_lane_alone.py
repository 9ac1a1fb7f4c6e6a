"""A call on an idle lane, which sends and reads in its own task: what ends it, and what is left."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from support.backends import Backend
from support.proxy import Fault, FaultProxy, is_script
from support.servers import Server

from asyncsession import SessionManager
from asyncsession.handles import LOOK
from asyncsession.protocol import Call, Lost
from asyncsession.transport.link import Link

HASTY = 0.03  # seconds
LONG = 0.1


class Slow:
    """A manager behind a proxy whose replies can be held up, on a link that has been in use."""

    def __init__(self, proxy: FaultProxy, manager: SessionManager, session_id: str) -> None:
        self.proxy, self.manager, self.session_id = proxy, manager, session_id
        self.link = self.current()

    def current(self) -> Link | None:
        ((lane,),) = self.manager._transport._lanes.values()  # type: ignore[attr-defined]
        link: Link | None = lane._link
        return link

    def hold_up(self, replies: int, seconds: float = LONG) -> None:
        self.proxy.delay = lambda: seconds  # type: ignore[method-assign]
        faults = iter([Fault.DELAY] * replies)
        self.proxy.decide = lambda r: next(faults, Fault.PASS) if is_script(r) else Fault.PASS

    def call(self, patience: float) -> Any:
        return self.manager._transport.call(Call("load", ("k",), LOOK, patience))

    async def check(self) -> None:
        """See that the next call gets its own answer, on the same connection."""
        assert (await self.manager.load(self.session_id))["n"] == 1
        assert self.current() is self.link, "one hasty call does not cost others the connection"


@pytest.fixture
async def slow(valkey: Backend) -> AsyncIterator[Slow]:
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS, delay=0) as proxy:
        manager = valkey.manager(proxy.url, timeout=8)
        async with manager.session() as session:
            session["n"] = 1
        yield Slow(proxy, manager, session.id)


def cancellations() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def test_a_hasty_call_gives_up_alone(slow: Slow) -> None:
    for _ in range(2):
        slow.hold_up(1, 0.5)
        with pytest.raises(Lost):
            await slow.call(HASTY)
        assert slow.link is not None
        assert not slow.link.is_idle, "the reply is still to come"
        assert cancellations() == 0, "nobody wanted this task to end"
        await slow.check()


async def test_others_that_joined_a_hasty_call_get_their_answers(slow: Slow) -> None:
    slow.hold_up(1)
    hasty = asyncio.create_task(slow.call(HASTY))
    await asyncio.sleep(0)
    patient = [asyncio.create_task(slow.manager.load(slow.session_id)) for _ in range(3)]
    with pytest.raises(Lost):
        await hasty
    assert {session["n"] for session in await asyncio.gather(*patient)} == {1}
    await slow.check()


@pytest.mark.parametrize("seed", range(4))
async def test_a_caller_with_a_time_limit_of_its_own(slow: Slow, seed: int) -> None:
    """Whichever of the two comes first, or both in the same turn of the loop."""
    rng = random.Random(seed)
    for _ in range(4):
        slow.hold_up(1)
        own = HASTY + rng.uniform(-0.002, 0.002)
        with pytest.raises((TimeoutError, Lost)):
            async with asyncio.timeout(own):
                await slow.call(HASTY)
        assert cancellations() == 0
        await slow.check()
        slow.hold_up(1)
        with anyio.move_on_after(own) as scope:
            with pytest.raises(Lost):
                await slow.call(HASTY)
            scope.cancel()
        assert cancellations() == 0
        await slow.check()


async def test_whoever_is_cancelled_at_the_moment_it_gives_up_is_cancelled(slow: Slow) -> None:
    slow.hold_up(1)
    call = asyncio.create_task(slow.call(HASTY))
    await asyncio.sleep(0)
    link = slow.current()
    assert link is not None
    link._cut()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await slow.check()


@pytest.mark.parametrize("is_closed", [False, True])
async def test_a_server_that_takes_nothing_more(is_closed: bool) -> None:
    """What is sent fills the buffers and waits there, until the caller's patience or ours ends."""
    server = Server("valkey9")
    await asyncio.to_thread(server.start)
    try:
        async with SessionManager(server.url) as manager:
            small = Call("load", ("k",), LOOK, 60.0)
            await manager._transport.call(small)  # it is connected then, and in no hurry
            large = Call("load", ("k",), (b"x" * 2**26,), 30.0 if is_closed else 0.2)
            os.kill(server.pid, signal.SIGSTOP)
            sending = asyncio.create_task(manager._transport.call(large))
            await asyncio.sleep(0)
            if is_closed:
                await manager.aclose()
            with pytest.raises(Lost):
                async with asyncio.timeout(5):
                    await sending
            assert sending.cancelling() == 0
            os.kill(server.pid, signal.SIGCONT)
            await manager._transport.call(small)
    finally:
        await asyncio.to_thread(server.close)
