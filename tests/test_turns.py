"""Commits that can refuse each other take turns inside a process, and wait for nobody else."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from support.backends import Backend

from asyncsession import Session, SessionConflict, SessionManager, merge
from asyncsession.protocol import Call
from asyncsession.turns import Turns


def added(base: Any, ours: Any, theirs: Any) -> Any:
    return ours + theirs - base


def calls_of(manager: SessionManager, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list that the manager's calls to Redis will be added to."""
    made: list[str] = []
    call = manager._transport.call

    async def spy(step: Call) -> Any:
        made.append(step.script)
        return await call(step)

    monkeypatch.setattr(manager._transport, "call", spy)
    return made


async def number(manager: SessionManager) -> str:
    async with manager.session() as session:
        session["n"] = 0
    return session.id


@pytest.mark.parametrize("processes", [1, 2])
async def test_writers_with_a_custom_merge_do_not_fight(
    real_backend: Backend, processes: int
) -> None:
    managers = [real_backend.manager(merge={"n": added}, timeout=10) for _ in range(processes)]
    session_id = await number(managers[0])
    attempts: list[int] = []

    async def write(writer: int) -> None:
        manager = managers[writer % processes]
        for _ in range(5):
            session = await manager.load(session_id)
            session["n"] += 1
            attempts.append((await manager.save(session)).attempts)

    await asyncio.gather(*map(write, range(32)))
    assert (await managers[0].load(session_id))["n"] == 160
    assert sum(attempts) / len(attempts) <= (1.05 if processes == 1 else 3)


async def test_updates_do_not_fight(real_backend: Backend) -> None:
    manager = real_backend.manager(timeout=10)
    session_id = await number(manager)
    runs = 0

    def change(session: Session) -> None:
        nonlocal runs
        runs += 1
        session["n"] += 1

    await asyncio.gather(*(manager.update(session_id, change) for _ in range(32)))
    assert (await manager.load(session_id))["n"] == 32
    assert runs <= 3 * 32


async def test_alone_a_guarded_commit_costs_one_round_trip(
    valkey: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = valkey.manager(merge={"n": added})
    session = await manager.load(await number(manager))
    session["n"] += 1
    made = calls_of(manager, monkeypatch)
    await manager.save(session)
    assert made == ["commit"]


async def test_whoever_waited_starts_from_what_the_others_did(
    valkey: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = valkey.manager(merge={"n": added})
    session_id = await number(manager)
    sessions = [await manager.load(session_id) for _ in range(3)]
    for session in sessions:
        session["n"] += 1
    made = calls_of(manager, monkeypatch)
    commits = await asyncio.gather(*map(manager.save, sessions))
    assert [commit.attempts for commit in commits] == [1, 1, 1]
    assert sorted(made) == ["commit"] * 3 + ["load"] * 2
    assert (await manager.load(session_id))["n"] == 3


async def test_plain_commits_take_no_turn(valkey: Backend) -> None:
    manager = valkey.manager(merge={"n": merge.counter})
    session_id = await number(manager)
    session = await manager.load(session_id)
    turn = await manager._turns.take(session.handle, 1)
    session["n"] += 1
    session["other"] = 1
    await asyncio.wait_for(manager.save(session), 1)
    turn.end()


async def test_a_turn_that_never_ends_holds_nobody_up_for_ever(valkey: Backend) -> None:
    manager = valkey.manager(merge={"n": added}, timeout=0.4)
    session = await manager.load(await number(manager))
    turn = await manager._turns.take(session.handle, 1)
    session["n"] += 1
    await manager.save(session)
    assert (await manager.load(session.id))["n"] == 1
    turn.end()


async def test_an_update_may_save_the_session_it_changes(valkey: Backend) -> None:
    """Its inner save waits for the turn of the outer one in vain, and goes on without."""
    manager = valkey.manager(merge={"n": added}, timeout=0.4)
    session_id = await number(manager)
    runs = 0

    async def change(session: Session) -> None:
        nonlocal runs
        runs += 1
        session["n"] += 1
        if runs < 3:
            other = await manager.load(session_id)
            other["n"] += 10
            await manager.save(other)

    await manager.update(session_id, change)
    assert (await manager.load(session_id))["n"] == 21


async def test_a_refused_commit_passes_its_turn_on(valkey: Backend) -> None:
    manager = valkey.manager(merge={"n": merge.reject})
    session_id = await number(manager)
    sessions = [await manager.load(session_id) for _ in range(3)]
    for session in sessions:
        session["n"] += 1
    saves = await asyncio.gather(*map(manager.save, sessions), return_exceptions=True)
    assert sum(isinstance(outcome, SessionConflict) for outcome in saves) == 2
    assert (await manager.load(session_id))["n"] == 1


async def test_turns_are_in_order_and_survive_cancelled_tasks() -> None:
    turns, order = Turns(), []
    first = await turns.take("a", 1)
    assert not first.has_waited

    async def follow(number: int) -> None:
        turn = await turns.take("a", 1)
        assert turn.has_waited
        order.append(number)
        await asyncio.sleep(0)
        turn.end()

    tasks = []
    for count in range(4):
        tasks.append(asyncio.create_task(follow(count)))
        await asyncio.sleep(0)
    tasks[1].cancel()
    first.end()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 2, 3]


async def test_who_comes_when_a_turn_has_just_ended_waits_for_the_next_one_like_the_others() -> (
    None
):
    turns, over = Turns(), asyncio.Event()
    first = await turns.take("a", 1)

    async def follow() -> None:
        turn = await turns.take("a", 10)
        await over.wait()
        turn.end()

    follower = asyncio.create_task(follow())
    await asyncio.sleep(0)
    first.end()
    second = await asyncio.wait_for(turns.take("a", 0.05), 1)
    assert second.has_waited
    over.set()
    await follower
    second.end()


async def test_nothing_is_kept_of_a_session_that_nobody_is_at() -> None:
    turns = Turns()
    turn = await turns.take("a", 1)
    other = await turns.take("b", 1)
    assert not other.has_waited
    turn.end()
    del turn
    gc.collect()
    assert [handle for _, handle in turns._locks] == ["b"]
    other.end()
