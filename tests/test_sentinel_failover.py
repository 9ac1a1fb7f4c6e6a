"""Sentinels that choose another master, while sessions are in use."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from support.cluster import wait_until
from support.failing import Load, both_managers, crash, started
from support.sentinel import SentinelGroup
from support.servers import Server, available

from asyncsession import CommitOutcomeUnknown, StoreUnavailable


@pytest.fixture(scope="module")
def group() -> Iterator[SentinelGroup]:
    """A master with two replicas, watched by three Sentinels."""
    with SentinelGroup(available()[0]) as started:
        yield started


def caught_up(master: Server, replicas: list[Server]) -> None:
    """Wait until replicas have what a master has now."""
    offset = master.run("INFO", "replication")["master_repl_offset"]
    for replica in replicas:
        wait_until(
            lambda: replica.run("INFO", "replication")["slave_repl_offset"] >= offset,  # noqa: B023
            "a replica that is up to date",
        )


async def test_a_master_is_killed_under_load(group: SentinelGroup) -> None:
    victim = await asyncio.to_thread(group.master)
    replicas = await asyncio.to_thread(group.replicas)
    await crash(
        group.url,
        "crash",
        is_hit=lambda session: True,
        settle=lambda: asyncio.to_thread(caught_up, victim, replicas),
        kill=lambda: asyncio.to_thread(group.kill, victim),
        takeover=lambda: asyncio.to_thread(group.wait_for_takeover, victim),  # type: ignore[arg-type]
        repair=lambda: asyncio.to_thread(group.restart, victim),
    )


@pytest.mark.soak
async def test_what_all_replicas_have_confirmed_survives_their_master(group: SentinelGroup) -> None:
    managers = both_managers(group.url, "durable", timeout=4, min_replicas=2, durability_timeout=1)
    sessions = [await started(managers[0], log=[]) for _ in range(6)]
    for _ in range(2):
        victim = await asyncio.to_thread(group.master)
        async with Load(managers, sessions) as load:
            await load.progress(30)
            await asyncio.to_thread(group.kill, victim)
            await asyncio.to_thread(group.wait_for_takeover, victim)
            await asyncio.to_thread(group.restart, victim)
            await load.progress()
        for session in sessions:
            log = (await managers[0].load(session.id))["log"]
            assert len(log) == len(set(log)), "something was done twice"
            assert load.acknowledged()[session.id] <= set(log)
        assert all(
            isinstance(one, CommitOutcomeUnknown | StoreUnavailable) for one in load.failures
        )
    for manager in managers:
        await manager.aclose()


async def test_a_handover_is_followed_without_one_failed_save(group: SentinelGroup) -> None:
    managers = both_managers(group.url, "handover", timeout=10)
    sessions = [await started(managers[0], log=[]) for _ in range(6)]
    async with Load(managers, sessions) as load:
        await load.progress()
        await asyncio.to_thread(group.fail_over)
        over = load.acknowledged()
        await load.progress()
    assert load.failures == []
    for session in sessions:
        log = (await managers[0].load(session.id))["log"]
        assert len(log) == len(set(log)), "something was done twice"
        # What the old master acknowledged while it was being replaced may be lost with it.
        assert load.acknowledged()[session.id] - over[session.id] <= set(log)
    for manager in managers:
        await manager.aclose()
