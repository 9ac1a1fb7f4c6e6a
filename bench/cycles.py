"""Load, change one key, save: asyncsession beside hand-written GET and SET, in one run.

    python -m bench.cycles

Distinct sessions, on an embedded Valkey over a unix socket, client and server on one machine: the
share of the client's own work is larger here than over a network. The two ways alternate, and the
medians of the repeats are compared. The hand-written one loses updates; it is here as the floor.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis

from asyncsession import SessionManager
from asyncsession.transport import embedded

REPEATS = 5
CYCLES = 1_500
SIZES = {"0.3 KB": 3, "4 KB": 40, "60 KB": 580}
TASKS = (1, 16, 64)

Cycle = Callable[[int], Awaitable[None]]


def content(items: int) -> dict[str, Any]:
    return {"n": 0, "user": 42, **{f"key{number}": "x" * 90 for number in range(items)}}


async def by_hand(redis: Redis, items: int, tasks: int) -> Cycle:
    for task in range(tasks):
        await redis.set(f"hand:{task}", json.dumps(content(items)), ex=3600)

    async def cycle(task: int) -> None:
        data = json.loads(await redis.get(f"hand:{task}") or "")
        data["n"] += 1
        await redis.set(f"hand:{task}", json.dumps(data), ex=3600)

    return cycle


async def by_session(manager: SessionManager, items: int, tasks: int) -> Cycle:
    ids = []
    for _ in range(tasks):
        session = await manager.load()
        session.update(content(items))
        await manager.save(session)
        ids.append(session.id)

    async def cycle(task: int) -> None:
        session = await manager.load(ids[task])
        session["n"] += 1
        await manager.save(session)

    return cycle


async def rate(cycle: Cycle, tasks: int) -> float:
    async def worker(task: int) -> None:
        for _ in range(CYCLES // tasks):
            await cycle(task)

    begin = time.perf_counter()
    await asyncio.gather(*map(worker, range(tasks)))
    return CYCLES // tasks * tasks / (time.perf_counter() - begin)


async def main() -> None:
    path = await asyncio.to_thread(embedded.socket_path, "bench")
    print(f"{'session':>8} {'tasks':>5} {'by hand/s':>10} {'asyncsession/s':>14} {'ratio':>6}")
    async with Redis(unix_socket_path=path) as redis, SessionManager("embedded://bench") as manager:
        for size, items in SIZES.items():
            for tasks in TASKS:
                ways = [await by_hand(redis, items, tasks), await by_session(manager, items, tasks)]
                runs = [[await rate(way, tasks) for way in ways] for _ in range(REPEATS)]
                hand, ours = (statistics.median(run[way] for run in runs) for way in (0, 1))
                ratio = statistics.median(run[1] / run[0] for run in runs)
                print(f"{size:>8} {tasks:>5} {hand:>10.0f} {ours:>14.0f} {ratio:>6.2f}")


if __name__ == "__main__":
    asyncio.run(main())
