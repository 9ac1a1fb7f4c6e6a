"""The lane on uvloop: the same answers, in the same order, whatever is cut short."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from support.proxy import Fault, FaultProxy, is_script
from support.servers import Server

from asyncsession import SessionManager, StoreUnavailable, merge


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
