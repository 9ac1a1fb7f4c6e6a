"""Signing out everywhere where not all of it can be done, or where somebody else's keys are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.backends import Backend
from test_principals import USER, device, entries

from asyncsession import (
    CommitOutcomeUnknown,
    InvalidSessionData,
    Session,
    SessionError,
    StoreUnavailable,
    principals,
)
from asyncsession.blob import FORMAT, Kind
from asyncsession.ids import store_key
from asyncsession.machine import Budget
from asyncsession.protocol import Call, Lost, Refused

STORES = ("memory", "valkey9", "redis-system", "sync-memory", "sync-valkey9")


def key_of(backend: Backend, session: Session) -> str:
    return store_key(backend.prefix, session.handle)


def fail(manager: Any, error: Callable[[Call], Exception | None]) -> Callable[[], None]:
    """Have calls of a manager fail; return what ends that."""
    transport = manager._transport

    class Failing:
        async def call(self, call: Call) -> list[Any]:
            if (fault := error(call)) is not None:
                raise fault
            answer: list[Any] = await transport.call(call)
            return answer

        async def aclose(self) -> None:
            await transport.aclose()

    manager._transport = Failing()

    def end() -> None:
        manager._transport = transport

    return end


async def names(manager: Any) -> set[str]:
    return {one["name"] for one in await manager.sessions_of(USER)}


# What cannot be ended.


async def test_those_behind_one_that_fails_are_ended_all_the_same(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(principals, "_AT_ONCE", 2)
    manager = backend.manager()
    sessions = [await device(manager, f"d{number}") for number in range(7)]
    bad = {key_of(backend, sessions[number]) for number in (0, 3)}

    def refuse(call: Call) -> Exception | None:
        is_bad = call.script == "destroy" and bad & {*call.keys}
        return Refused("OOM: used memory", passing=False) if is_bad else None

    end = fail(manager, refuse)
    with pytest.raises(StoreUnavailable, match=r"2 of 7 listed were not ended: .*OOM"):
        await manager.destroy_all(USER)
    end()
    assert await names(manager) == {"d0", "d3"}
    assert await manager.destroy_all(USER) == 2
    assert await entries(backend) == []


async def test_an_unknown_outcome_of_one_is_that_of_the_whole(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(principals, "_AT_ONCE", 2)
    manager = backend.manager(timeout=0.3)
    refused, lost, third = [await device(manager, f"d{number}") for number in range(3)]

    def strike(call: Call) -> Exception | None:
        if call.script == "destroy" and key_of(backend, refused) in call.keys:
            return Refused("OOM: used memory", passing=False)
        if call.script == "destroy" and key_of(backend, lost) in call.keys:
            return Lost("no answer")
        return None

    end = fail(manager, strike)
    with pytest.raises(CommitOutcomeUnknown, match="of 3 listed were not ended: sent, and never"):
        await manager.destroy_all(USER)
    end()
    assert await names(manager) >= {"d0", "d1"}
    assert third.handle


async def test_one_that_is_lost_makes_no_secret_of_the_others_fate(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of theirs was sent, so for them it is certain that they live."""
    manager = backend.manager(timeout=0.3)
    sessions = [await device(manager, f"d{number}") for number in range(2)]
    told: list[SessionError] = []
    caught = principals._caught

    def note(machine: Any) -> Any:
        outcome = yield from caught(machine)
        told.append(outcome.error)
        return outcome

    def strike(call: Call) -> Exception | None:
        if call.script != "destroy":
            return None
        is_first = key_of(backend, sessions[0]) in call.keys
        return Lost("no answer") if is_first else Refused("down", passing=True)

    monkeypatch.setattr(principals, "_caught", note)
    end = fail(manager, strike)
    with pytest.raises(CommitOutcomeUnknown):
        await manager.destroy_all(USER)
    end()
    assert {type(one) for one in told} == {CommitOutcomeUnknown, StoreUnavailable}


async def test_when_time_is_over_nothing_more_is_tried(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(principals, "_AT_ONCE", 1)
    manager = backend.manager()
    sessions = [await device(manager, f"d{number}") for number in range(4)]
    tried: set[str] = set()

    def refuse(call: Call) -> Exception | None:
        if call.script == "index":
            return None
        tried.update(call.keys)
        return Refused("connection refused", passing=True)

    end = fail(manager, refuse)
    with monkeypatch.context() as patch:
        patch.setattr(Budget, "pause", lambda _: None)  # as when the deadline has come
        with pytest.raises(StoreUnavailable, match="4 of 4 listed were not ended"):
            await manager.destroy_all(USER)
    end()
    assert len(tried) == 1
    assert await manager.destroy_all(USER) == len(sessions)


async def test_a_damaged_mark_is_told_of_when_the_others_have_ended(backend: Backend) -> None:
    """Nobody can tell where it leads; so it cannot be said that all is done."""
    manager = backend.manager()
    broken, _fine = await device(manager, "broken"), await device(manager, "fine")
    mark = FORMAT + Kind.MOVED + broken.incarnation
    await backend.redis.set(key_of(backend, broken), mark)
    with pytest.raises(InvalidSessionData, match="1 of 2 listed were not ended"):
        await manager.destroy_all(USER)
    assert [one.is_unreadable for one in await manager.sessions_of(USER)] == [True]
    assert await backend.redis.get(key_of(backend, broken)) == mark


# What is somebody else's.


async def overwrite(backend: Backend, session: Session, kind: str) -> Callable[[], Any]:
    """Put what is no session under a session's key; return what reads it."""
    redis: Any = backend.redis
    key = key_of(backend, session)
    await redis.delete(key)
    if kind == "list":
        await redis.rpush(key, "theirs")
        return lambda: redis.lrange(key, 0, -1)
    if kind == "hash":
        await redis.hset(key, "field", "theirs")
        return lambda: redis.hgetall(key)
    await redis.set(key, b"theirs")
    return lambda: redis.get(key)


@pytest.mark.parametrize("kind", ["text", "list", "hash"])
@pytest.mark.parametrize("rotated", [False, True])
async def test_a_key_that_somebody_else_has_overwritten(
    backend: Backend, kind: str, rotated: bool
) -> None:
    manager = backend.manager()
    lost, fine = await device(manager, "lost"), await device(manager, "fine")
    if rotated:
        await manager.rotate(lost)
    theirs = await overwrite(backend, lost, kind)
    before = await theirs()
    listed = await manager.sessions_of(USER)
    assert [one.is_unreadable for one in listed] == ([False, True] if kind == "text" else [False])
    assert await manager.destroy_all(USER) == 1, "there was one, and it has ended"
    assert (await manager.load(fine.id)).is_new
    assert await theirs() == before, "what is there is left alone"
    assert await entries(backend) == []
    assert await manager.destroy_all(USER) == 0
    assert await manager.sessions_of(USER) == []


@pytest.mark.parametrize("kind", ["text", "list"])
@pytest.mark.parametrize("when_full", ["end_oldest", "refuse"])
async def test_a_key_of_somebody_elses_keeps_nobody_from_logging_in(
    backend: Backend, kind: str, when_full: str
) -> None:
    manager = backend.manager(max_sessions=2, when_full=when_full)
    lost, _fine = await device(manager, "lost"), await device(manager, "fine")
    theirs = await overwrite(backend, lost, kind)
    before = await theirs()
    if kind == "text" and when_full == "refuse":
        assert await manager.destroy_all(USER) == 1  # until then it counts: nothing is ended
    await device(manager, "new")
    assert "new" in await names(manager)
    assert await theirs() == before
