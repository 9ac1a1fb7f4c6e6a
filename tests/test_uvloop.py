"""The lane on uvloop: the same answers, in the same order, whatever is cut short."""

from __future__ import annotations

import asyncio
import random
import select
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from support.proxy import Fault, FaultProxy, is_script
from support.servers import Server

from asyncsession import SessionManager, StoreUnavailable, merge
from asyncsession.handles import LOOK
from asyncsession.protocol import Call, Lost


def run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


@pytest.mark.parametrize("flavour", ["valkey9", "redis8"])
def test_parallel_writers_with_some_cancelled(
    get_server: Callable[[str], Server], flavour: str
) -> None:
    async def work() -> None:
        async with SessionManager(
            get_server(flavour).url, prefix="uvloop", merge={"n": merge.counter}
        ) as manager:
            session = await manager.load()
            session["n"] = 0
            await manager.save(session)
            started = done = 0

            async def write(number: int) -> None:
                nonlocal started, done
                mine = await manager.load(session.id)
                mine["n"] += 1
                mine[f"key{number}"] = number
                started += 1
                await manager.save(mine)
                done += 1

            rng = random.Random(1)
            for first in range(0, 320, 32):
                tasks = [asyncio.create_task(write(first + number)) for number in range(32)]
                for task in rng.sample(tasks, 8):
                    for _ in range(rng.randrange(3)):
                        await asyncio.sleep(0)
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            final = await manager.load(session.id)
            assert done >= 240
            assert done <= final["n"] <= started
            assert final["n"] == len(final) - 1
            assert all(final[f"key{n}"] == n for n in range(320) if f"key{n}" in final)

    run(work())


def test_a_silent_server_is_given_up_and_found_again(get_server: Callable[[str], Server]) -> None:
    async def work() -> None:
        server = get_server("valkey9")
        async with FaultProxy(server.port, lambda _: Fault.PASS) as proxy:
            manager = SessionManager(proxy.url, timeout=0.4)
            async with manager.session() as session:
                session["n"] = 1
            proxy.decide = lambda r: Fault.SWALLOW if is_script(r) else Fault.PASS
            loads = (manager.load(session.id) for _ in range(8))
            results = await asyncio.gather(*loads, return_exceptions=True)
            assert {type(result) for result in results} == {StoreUnavailable}
            proxy.decide = lambda _: Fault.PASS
            assert (await manager.load(session.id))["n"] == 1
            await manager.aclose()

    run(work())


def test_a_hasty_call_gives_up_alone(get_server: Callable[[str], Server]) -> None:
    async def work() -> None:
        async with (
            FaultProxy(get_server("valkey9").port, lambda _: Fault.PASS, delay=0.3) as proxy,
            SessionManager(proxy.url, prefix="uvloop") as manager,
        ):
            async with manager.session() as session:
                session["n"] = 1
            ((lane,),) = manager._transport._lanes.values()  # type: ignore[attr-defined]
            link = lane._link
            delays = iter([Fault.DELAY])
            proxy.decide = lambda r: next(delays, Fault.PASS) if is_script(r) else Fault.PASS
            with pytest.raises(Lost):
                await manager._transport.call(Call("load", ("k",), LOOK, 0.02))
            assert not link.is_idle, "the reply is still to come"
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            assert (await manager.load(session.id))["n"] == 1
            assert lane._link is link

    run(work())


class Resetter(threading.Thread):
    """Carries connections to a server, one after the other, until they are to be reset."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._target = port
        self._tell, self._told = socket.socketpair()
        self.start()

    def run(self) -> None:
        while True:
            client, _ = self._listener.accept()
            upstream = socket.create_connection(("127.0.0.1", self._target))
            with client, upstream:
                sources = [client, upstream, self._told]
                while self._told not in (ready := select.select(sources, [], [])[0]):
                    for one, other in ((client, upstream), (upstream, client)):
                        if one in ready and not (data := one.recv(65536)):
                            sources = [self._told]
                        elif one in ready:
                            other.sendall(data)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if self._told.recv(1) == b"e":
                return

    def reset(self, last: bytes = b"r") -> None:
        self._tell.send(last)

    def end(self) -> None:
        self.reset(b"e")
        self.join()
        for one in (self._listener, self._tell, self._told):
            one.close()


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_idle_connection_that_was_reset(
    get_server: Callable[[str], Server], make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    between = Resetter(get_server("valkey9").port)

    async def work() -> None:
        manager = SessionManager(f"redis://127.0.0.1:{between.port}")
        async with manager.session() as session:
            session["n"] = 1
        for together in (1, 3):
            between.reset()
            await asyncio.sleep(0.05)
            loads = await asyncio.gather(*(manager.load(session.id) for _ in range(together)))
            assert {load["n"] for load in loads} == {1}
        await manager.aclose()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(work())
    between.end()
