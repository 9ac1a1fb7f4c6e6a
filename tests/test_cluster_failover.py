"""Redis Cluster while masters fail, hand over and come back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from redis.crc import key_slot
from support.cluster import Cluster, wait_until
from support.failing import Load, both_managers, crash, started
from support.servers import Server, available

from asyncsession import Session, StoreUnavailable
from asyncsession.ids import store_key


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three masters with a replica each."""
    with Cluster(available()[0], replicas=1) as started:
        yield started


def slot_of(session: Session) -> int:
    return key_slot(store_key("", session.handle).encode())


def caught_up(master: Server, replicas: list[Server]) -> None:
    """Wait until replicas have what a master has now."""
    offset = master.run("INFO", "replication")["master_repl_offset"]
    for replica in replicas:
        wait_until(
            lambda: replica.run("INFO", "replication")["slave_repl_offset"] >= offset,  # noqa: B023
            "a replica that is up to date",
        )


async def test_a_master_is_killed_under_load(cluster: Cluster) -> None:
    victim = await asyncio.to_thread(cluster.owner, 0)
    replicas = await asyncio.to_thread(cluster.replicas_of, victim)
    ranges = await asyncio.to_thread(victim.run, "CLUSTER", "SLOTS")
    theirs = [(low, high) for low, high, master, *_ in ranges if master[1] == victim.port]
    await crash(
        cluster.url,
        "crash",
        is_hit=lambda session: any(low <= slot_of(session) <= high for low, high in theirs),
        settle=lambda: asyncio.to_thread(caught_up, victim, replicas),
        kill=lambda: asyncio.to_thread(cluster.kill, victim),
        takeover=lambda: asyncio.to_thread(cluster.wait_for_takeover, *replicas),  # type: ignore[arg-type]
        repair=lambda: asyncio.to_thread(cluster.restart, victim),
    )


async def test_an_orderly_handover_loses_nothing_and_refuses_nothing(cluster: Cluster) -> None:
    managers = both_managers(cluster.url, "handover")
    sessions = [await started(managers[0], log=[]) for _ in range(12)]
    async with Load(managers, sessions) as load:
        for slot in (0, 8000, 16_000):
            await load.progress()
            master = await asyncio.to_thread(cluster.owner, slot)
            await asyncio.to_thread(cluster.fail_over, master)
        await load.progress()
    assert load.failures == []
    for session in sessions:
        log = (await managers[0].load(session.id))["log"]
        assert sorted(log) == sorted(load.acknowledged()[session.id])
    for manager in managers:
        await manager.aclose()


async def test_a_node_without_a_successor_is_away_and_the_others_are_not() -> None:
    with Cluster(available()[0], cluster_require_full_coverage="no", appendonly="yes",
                 appendfsync="always") as lone:  # fmt: skip
        managers = both_managers(lone.url, "away")
        sessions = [await started(managers[0], log=[]) for _ in range(12)]
        victim = await asyncio.to_thread(lone.owner, slot_of(sessions[0]))
        hit = [s for s in sessions if await asyncio.to_thread(lone.owner, slot_of(s)) is victim]
        await asyncio.to_thread(lone.kill, victim)
        managers += both_managers(lone.url, "away")  # they start while it is down
        for manager in managers:
            for session in sessions:
                if session not in hit:
                    assert not (await manager.load(session.id)).is_new
        hit[0]["log"].append(1)
        for hasty in both_managers(lone.url, "away", timeout=0.3):
            with pytest.raises(StoreUnavailable):
                await hasty.load(hit[0].id)
            with pytest.raises(StoreUnavailable):
                await hasty.save(hit[0])
            await hasty.aclose()
        await asyncio.to_thread(lone.restart, victim)
        await managers[0].save(hit[0])
        for manager in managers:
            for session in sessions:
                assert not (await manager.load(session.id)).is_new
            await manager.aclose()


async def test_writes_that_wait_for_replicas_follow_a_slot_that_moves(cluster: Cluster) -> None:
    """A WAIT goes along behind ASKING and the call, on the connection that has written."""
    managers = both_managers(cluster.url, "durable", min_replicas=1)
    for manager in managers:
        session = await started(manager, log=[])
        slot = slot_of(session)
        source = await asyncio.to_thread(cluster.owner, slot)
        target = next(node for node in await asyncio.to_thread(cluster.masters) if node != source)
        await asyncio.to_thread(cluster.begin_move, slot, target)
        await asyncio.to_thread(cluster.move_keys, slot, target)
        before = target.run("INFO", "commandstats").get("cmdstat_wait", {"calls": 0})["calls"]
        session["log"].append(1)
        assert (await manager.save(session)).attempts == 1
        after = target.run("INFO", "commandstats")["cmdstat_wait"]["calls"]
        assert after - before in (1, 2), "a connection of the pool's first asks for the right"
        await asyncio.to_thread(cluster.end_move, slot, target)
        session["log"].append(2)
        await manager.save(session)
        assert (await manager.load(session.id))["log"] == [1, 2]
        await manager.aclose()
