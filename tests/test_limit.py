"""A limit on the sessions of a principal: never more of them, however logins race."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import pytest
from support.backends import WITH_SOAK, Backend
from support.faults import is_commit
from support.proxy import Fault, FaultProxy

from asyncsession import (
    CommitOutcomeUnknown,
    ConfigurationError,
    Session,
    SessionError,
    SessionGone,
    SessionManager,
    TooManySessions,
    principals,
    verbs,
)
from asyncsession.ids import index_key, new_id, store_key
from asyncsession.scripts import SCRIPTS

STORES = WITH_SOAK
USER = "user:42"
POLICIES = ["refuse", "end_oldest"]


async def login(manager: SessionManager, name: str = "", *, rotate: bool = False) -> Session:
    session = await manager.load()
    if rotate:
        session["cart"] = 1
        await manager.save(session)
    session["name"], session.principal = name, USER
    await (manager.rotate(session) if rotate else manager.save(session))
    return session


async def names(manager: SessionManager) -> list[str]:
    return sorted(session["name"] for session in await manager.sessions_of(USER))


async def entries(backend: Backend) -> list[bytes]:
    found = await backend.redis.zrange(index_key(backend.prefix, USER), 0, -1)
    return [entry for entry in found if entry]


async def age(backend: Backend, session: Session, minutes: int) -> None:
    """Have the session been seen so much earlier."""
    key = store_key(backend.prefix, session.handle)
    blob = await backend.redis.get(key)
    stamp = int.from_bytes(blob[-22:-16], "big") - minutes * 60_000
    await backend.redis.set(key, blob[:-22] + stamp.to_bytes(6, "big") + blob[-16:], keepttl=True)


# One after the other.


@pytest.mark.parametrize("options", [
    {"max_sessions": 0}, {"max_sessions": -1}, {"max_sessions": 2.0}, {"max_sessions": True},
    {"max_sessions": "3"}, {"when_full": "block"}, {"when_full": None},
])  # fmt: skip
def test_what_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        SessionManager("memory://limit", **options)


async def test_one_that_cannot_be_read_makes_room_first(backend: Backend) -> None:
    """Such as one of a newer version: it has a place like any other, and keeps nobody out."""
    manager = backend.manager(max_sessions=2, when_full="end_oldest")
    broken, _ = await login(manager, "broken"), await login(manager, "fine")
    key = store_key(backend.prefix, broken.handle)
    blob = await backend.redis.get(key)
    await backend.redis.set(key, blob[:2] + bytes([blob[2] + 1]) + blob[3:], keepttl=True)
    await login(manager, "new")
    assert await names(manager) == ["fine", "new"]
    assert (await manager.load(broken.id)).is_new


async def test_refuse(backend: Backend) -> None:
    manager = backend.manager(max_sessions=2, when_full="refuse")
    first, _ = await login(manager, "a"), await login(manager, "b", rotate=True)
    session = await manager.load()
    session["cart"] = ["apple"]
    await manager.save(session)
    kept, before = sorted(await backend.keys()), await entries(backend)
    session["name"], session.principal = "c", USER
    for act in (manager.save, manager.rotate):
        with pytest.raises(TooManySessions) as caught:
            await act(session)
        assert caught.value.limit == 2
        assert sorted(await backend.keys()) == kept, "nothing is written"
        assert set(await entries(backend)) <= set(before), "and nobody is listed"
        assert (session["name"], session.principal) == ("c", USER), "to be saved later"
    stored = await manager.load(session.id)
    assert (dict(stored), stored.principal) == ({"cart": ["apple"]}, None)
    session.principal = None
    await manager.save(session)
    assert await names(manager) == ["a", "b"]
    await manager.destroy(first)
    session.principal = USER
    await manager.rotate(session)
    assert await names(manager) == ["b", "c"]


async def test_end_oldest(backend: Backend) -> None:
    manager = backend.manager(max_sessions=3)
    sessions = {name: await login(manager, name) for name in "abc"}
    for name, minutes in (("a", 1), ("b", 3), ("c", 2)):
        await age(backend, sessions[name], minutes)
    sessions["d"] = await login(manager, "d", rotate=True)
    assert await names(manager) == ["a", "c", "d"]
    with pytest.raises(SessionGone):
        await manager.touch(sessions["b"])
    await manager.load(sessions["c"].id)  # this one is in use
    sessions["e"] = await login(manager, "e")
    assert await names(manager) == ["c", "d", "e"]
    assert len(await entries(backend)) == 3, "what has ended is off the list"


async def test_a_limit_of_one(backend: Backend) -> None:
    manager = backend.manager(max_sessions=1)
    for name in "abc":
        session = await login(manager, name)
        assert await names(manager) == [name]
    assert dict(await manager.load(session.id)) == {"name": "c"}


@pytest.mark.parametrize("policy", POLICIES)
async def test_what_is_no_more_does_not_count(backend: Backend, policy: Any) -> None:
    manager = backend.manager(max_sessions=2, when_full=policy)
    kept = await login(manager, "kept")
    for end in ("destroyed", "expired", "logged out", "another's"):
        session = await login(manager, end)
        if end == "destroyed":
            await manager.destroy(session)
        elif end == "expired":
            await backend.redis.delete(store_key(backend.prefix, session.handle))
        else:
            session.principal = None if end == "logged out" else "user:1"
            await manager.save(session)
    last = await login(manager, "last")
    assert await names(manager) == ["kept", "last"]
    for session in (kept, last):
        assert not (await manager.load(session.id)).is_new


@pytest.mark.parametrize("policy", POLICIES)
async def test_logging_in_again_counts_once(backend: Backend, policy: Any) -> None:
    manager = backend.manager(max_sessions=2, when_full=policy)
    sessions = [await login(manager, name) for name in "ab"]
    for _ in range(3):
        for session in sessions:
            session.principal = USER
            await manager.rotate(session)
            await manager.save(session)
    assert await names(manager) == ["a", "b"]
    strict = backend.manager(max_sessions=1, when_full=policy)
    for session in sessions:
        await strict.rotate(session)  # who is in keeps the place, also under a limit lowered since
    assert await names(manager) == ["a", "b"]


async def test_lowering_the_limit_takes_effect_with_the_next_login(backend: Backend) -> None:
    for name in "abcdef":
        await login(backend.manager(), name)
    with pytest.raises(TooManySessions):
        await login(backend.manager(max_sessions=3, when_full="refuse"))
    manager = backend.manager(max_sessions=3)
    await login(manager, "g")
    assert len(await names(manager)) == 3
    assert "g" in await names(manager)


async def test_what_cannot_be_read_has_a_place_and_goes_first(backend: Backend) -> None:
    manager = backend.manager(max_sessions=2)
    broken, fine = await login(manager, "broken"), await login(manager, "fine")
    await age(backend, fine, 5)
    key = store_key(backend.prefix, broken.handle)
    blob = await backend.redis.get(key)
    await backend.redis.set(key, blob + b"x")
    with pytest.raises(TooManySessions):
        await login(backend.manager(max_sessions=2, when_full="refuse"))
    await login(manager, "next")
    assert await names(manager) == ["fine", "next"]


async def test_in_an_update(backend: Backend) -> None:
    manager = backend.manager(max_sessions=1, when_full="refuse")
    await login(manager, "a")

    def change(session: Session) -> None:
        session.principal = USER

    with pytest.raises(TooManySessions):
        await manager.update(None, change)
    assert await names(manager) == ["a"]


# Cut off.


async def until(manager: SessionManager, machine: Any, calls: int) -> bool:
    """Perform so many calls of a machine's and abandon it; tell whether it had come to its end."""
    step = next(machine)
    try:
        for _ in range(calls):
            step = machine.send(await manager._transport.call(step))
    except StopIteration:
        return True
    machine.close()
    return False


async def carry_on(manager: SessionManager, machine: Any, step: Any) -> None:
    """Perform the calls of a machine from `step` to its end."""
    with contextlib.suppress(StopIteration):
        while True:
            step = machine.send(await manager._transport.call(step))


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_login_that_was_left_behind_has_a_place(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, policy: Any
) -> None:
    manager = backend.manager(max_sessions=1, when_full=policy)
    await manager.load(new_id())  # the clock is known from then on
    session = await manager.load()
    session["name"], session.principal = "left", USER
    assert not await until(manager, verbs.save(manager._settings, session), 2)
    monkeypatch.setattr(principals, "HORIZON", -10_000)  # as if half a minute had passed
    if policy == "refuse":
        with pytest.raises(TooManySessions):
            await login(manager)
        assert await names(manager) == ["left"]
    else:
        await login(manager, "next")
        assert await names(manager) == ["next"]


@pytest.mark.parametrize("policy", POLICIES)
async def test_saving_again_finishes_a_login_that_was_cut_off_anywhere(
    backend: Backend, policy: Any
) -> None:
    for calls in range(30):
        manager = backend.manager(prefix=f"{backend.prefix}:{calls}", max_sessions=2,
                                  when_full=policy)  # fmt: skip
        await login(manager, "a")
        session = await manager.load()
        session["name"], session.principal = "b", USER
        ended = await until(manager, verbs.save(manager._settings, session), calls)
        with contextlib.suppress(TooManySessions):
            await login(manager, "c")
        if policy == "end_oldest":
            await login(manager, "d")
        try:
            await manager.save(session)
        except TooManySessions:
            assert (await manager.load(session.id)).is_new
        except SessionGone:
            assert policy == "end_oldest"
        assert len(await names(manager)) == 2, calls
        if ended:
            return
    raise AssertionError("it never came to its end")


async def test_an_unanswered_login_may_lose_its_place(valkey: Backend) -> None:
    """Its commit may have been done, so it is not refused before it: it ends."""
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        options: Any = {"max_sessions": 1, "when_full": "refuse"}
        manager = valkey.manager(proxy.url, timeout=0.4, **options)
        await manager.destroy(await login(manager))
        session = await manager.load()
        session.principal = USER
        proxy.decide = lambda r: Fault.SWALLOW if is_commit(r) else Fault.PASS
        with pytest.raises(CommitOutcomeUnknown):
            await manager.save(session)
        proxy.decide = lambda _: Fault.PASS
        await login(valkey.manager(**options), "faster")
        with pytest.raises(TooManySessions):
            await manager.save(session)
        assert session.is_destroyed
        assert await names(manager) == ["faster"]
        assert (await manager.load(session.id)).is_new


async def test_who_has_lost_the_place_is_told_however_late(valkey: Backend) -> None:
    """Also where its end had no answer: the next save does not take a dead session for admitted."""
    assert valkey.port
    options: Any = {"max_sessions": 1, "when_full": "refuse"}
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        manager = valkey.manager(proxy.url, timeout=0.4, **options)
        await manager.load(new_id())
        session = await manager.load()
        session["name"], session.principal = "slow", USER
        assert not await until(manager, verbs.save(manager._settings, session), 2)
        winner = await login(valkey.manager(), "faster")
        proxy.decide = partial(swallow, SCRIPTS["destroy"].sha.encode())
        with pytest.raises(CommitOutcomeUnknown):
            await manager.save(session)
        proxy.decide = lambda _: Fault.PASS
        await proxy.drained()
        assert await names(manager) == ["faster"]
        await manager.destroy(winner)
        with pytest.raises(SessionGone):
            await manager.save(session)


async def test_who_was_ended_while_joining_ends_nobody_else(backend: Backend) -> None:
    manager = backend.manager(max_sessions=2)
    for name in "ab":
        await login(manager, name)
    session = await manager.load()
    session.principal = USER
    machine = verbs.save(manager._settings, session)
    step: Any = next(machine)
    while step.script != "index" or "confirm" not in step.args:
        step = machine.send(await manager._transport.call(step))
    await manager.destroy(session.id)
    with pytest.raises(SessionGone):
        await carry_on(manager, machine, step)
    assert await names(manager) == ["a", "b"]


async def test_a_second_tab_is_no_second_session(backend: Backend) -> None:
    manager = backend.manager(max_sessions=1, when_full="refuse")
    session = await manager.load()
    session["name"] = "tab"
    await manager.save(session)
    tabs = [await manager.load(session.id) for _ in range(2)]
    for tab in tabs:
        tab.principal = USER
        await manager.rotate(tab)
    assert [tab.is_stale for tab in tabs] == [False, True]
    assert await names(manager) == ["tab"]


def swallow(word: bytes, request: list[bytes]) -> Fault:
    return Fault.SWALLOW if word in request else Fault.PASS


async def test_an_unanswered_rotation_keeps_its_place(valkey: Backend) -> None:
    assert valkey.port
    await login(valkey.manager(), "other")
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        manager = valkey.manager(proxy.url, timeout=0.4, max_sessions=1, when_full="refuse")
        session = await login(valkey.manager(), "mine")
        mine = await manager.load(session.id)
        for lost in (b"confirm", b"join"):
            proxy.decide = partial(swallow, lost)
            with pytest.raises(SessionError):
                await manager.rotate(mine)
            proxy.decide = partial(swallow, b"nothing")
            await manager.rotate(mine)
        assert await names(manager) == ["mine", "other"]
