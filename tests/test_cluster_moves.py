"""Slots that move from node to node while their sessions are in use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redis.crc import key_slot
from support.cluster import Cluster, wait_until
from support.failing import Load, both_managers, started
from support.servers import Server

from asyncsession import Session
from asyncsession.ids import store_key


def slot_of(session: Session) -> int:
    return key_slot(store_key("", session.handle).encode())


def errors(nodes: list[Server], name: str) -> int:
    found = [node.run("INFO", "errorstats").get(f"errorstat_{name}") for node in nodes]
    return sum(int(one["count"]) for one in found if one)


def move(cluster: Cluster, slot: int, target: Server) -> None:
    """Move a slot, and wait in each state of its way until somebody has run into it."""
    begun = errors(cluster.nodes, "ASK")
    cluster.begin_move(slot, target)
    cluster.move_keys(slot, target)
    wait_until(lambda: errors(cluster.nodes, "ASK") > begun + 4, "sessions asked for there")
    moved = errors(cluster.nodes, "MOVED")
    cluster.end_move(slot, target)
    wait_until(lambda: errors(cluster.nodes, "MOVED") > moved, "sessions looked for here")


async def test_slots_move_under_load_without_one_failed_save(
    get_server: Callable[[str], Any],
) -> None:
    cluster: Cluster = await asyncio.to_thread(get_server, "cluster")
    managers = both_managers(cluster.url, "moves")
    sessions = [await started(managers[0], log=[]) for _ in range(4)]
    homes = {slot_of(s): await asyncio.to_thread(cluster.owner, slot_of(s)) for s in sessions}
    rotations = 0

    async def rotate(manager: Any) -> None:
        """Log in again and again, in the slots that move: their second keys are nowhere yet."""
        nonlocal rotations
        mine = await started(manager, user=1)
        while not is_over.is_set():
            await manager.rotate(mine)
            assert dict(await manager.load(mine.id)) == {"user": 1}
            rotations += 1

    is_over = asyncio.Event()
    async with Load(managers, sessions) as load:
        turning = [asyncio.create_task(rotate(manager)) for manager in managers]
        await load.progress()
        for slot, home in homes.items():
            target = next(node for node in cluster.nodes if node is not home)
            await asyncio.to_thread(move, cluster, slot, target)
            await asyncio.to_thread(cluster.move_slot, slot, home)
        await load.progress()
        is_over.set()
        await asyncio.gather(*turning)
    assert load.failures == []
    assert rotations > 10
    for session in sessions:
        log = (await managers[0].load(session.id))["log"]
        assert sorted(log) == sorted(load.acknowledged()[session.id])
        await managers[0].destroy(session)
    for manager in managers:
        await manager.aclose()
