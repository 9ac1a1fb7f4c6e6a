"""The sessions of a principal as a user sees them: their devices, when seen, and how to end one."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.backends import EVERYWHERE, Backend
from support.logs import DEADLINE, blob, set_
from support.proxy import Fault, FaultProxy, is_script
from test_docs import ROOT, run

from asyncsession import (
    InvalidSessionData,
    Session,
    SessionGone,
    SessionManager,
    StoreUnavailable,
    principals,
    verbs,
)
from asyncsession.blob import FORMAT, encode_frame
from asyncsession.errors import SessionError
from asyncsession.ids import index_key, store_key
from asyncsession.log import Log
from asyncsession.protocol import Call, Refused, Together
from asyncsession.scripts import SCRIPTS

STORES = EVERYWHERE
USER = "user:42"
HOUR = dt.timedelta(hours=1)
STAMP = 22  # bytes from the end of a log at which its last stamp begins


async def device(manager: SessionManager, name: str, principal: str = USER) -> Session:
    """Return a session that has logged in."""
    session = await manager.load()
    session["name"], session.principal = name, principal
    await manager.save(session)
    return session


async def stored(backend: Backend, session: Session) -> bytes:
    blob: bytes = await backend.redis.get(store_key(backend.prefix, session.handle))
    return blob


async def rewrite(backend: Backend, session: Session, blob: bytes) -> None:
    key = store_key(backend.prefix, session.handle)
    await backend.redis.set(key, blob, keepttl=True)


async def age(backend: Backend, session: Session, by: dt.timedelta) -> None:
    """Have the session been seen so much earlier."""
    blob = await stored(backend, session)
    stamp = int.from_bytes(blob[-STAMP : -STAMP + 6], "big") - round(by / dt.timedelta(0, 0, 1000))
    await rewrite(backend, session, blob[:-STAMP] + stamp.to_bytes(6, "big") + blob[-STAMP + 6 :])


async def entries(backend: Backend, principal: str = USER) -> list[bytes]:
    found = await backend.redis.zrange(index_key(backend.prefix, principal), 0, -1)
    return [entry for entry in found if entry]


# What is listed.


async def test_devices_come_last_seen_first(backend: Backend) -> None:
    manager = backend.manager()
    phone, laptop, tv = [await device(manager, name) for name in ("phone", "laptop", "tv")]
    await device(manager, "stranger's", "user:1")
    await age(backend, laptop, 2 * HOUR)
    await age(backend, tv, HOUR)
    found = await manager.sessions_of(USER, current=laptop)
    assert [one["name"] for one in found] == ["phone", "tv", "laptop"]
    assert [one.is_current for one in found] == [False, False, True]
    assert [one.created_at for one in found] == [s.created_at for s in (phone, tv, laptop)]
    assert found[0].last_seen == phone.last_seen
    assert phone.last_seen is not None
    assert found[1].last_seen is not None
    assert phone.last_seen - found[1].last_seen > HOUR - dt.timedelta(minutes=1)
    assert not any(one.is_current for one in await manager.sessions_of(USER))


async def test_the_current_one_is_known_by_any_of_its_ids(backend: Backend) -> None:
    manager = backend.manager()
    session = await device(manager, "phone")
    before = await manager.load(session.id)
    await manager.rotate(session)
    for current in (session, before, await manager.load(session.id)):
        (found,) = await manager.sessions_of(USER, current=current)
        assert found.is_current
    (found,) = await manager.sessions_of(USER, current=await manager.load())
    assert not found.is_current


async def test_a_new_session_was_never_seen(backend: Backend) -> None:
    session = await backend.manager().load()
    assert session.last_seen is None
    assert not session.is_current


async def test_loads_move_last_seen_once_in_an_interval(backend: Backend) -> None:
    manager = backend.manager()
    session = await device(manager, "phone")
    seen = session.last_seen
    assert seen is not None
    await age(backend, session, dt.timedelta(seconds=50))
    untouched = await stored(backend, session)
    await manager.load(session.id)
    assert await stored(backend, session) == untouched, "within the minute nothing is written"
    await age(backend, session, dt.timedelta(seconds=10))
    loaded = await manager.load(session.id)
    assert loaded.last_seen is not None
    assert loaded.last_seen >= seen
    assert dict(loaded) == {"name": "phone"}
    (listed,) = await manager.sessions_of(USER)
    assert listed.last_seen == loaded.last_seen
    session["n"] = 1  # loaded before the stamp moved, which is none of a commit's business
    assert (await manager.save(session)).version == 2


@pytest.mark.parametrize("verb", ["touch", "save", "rotate"])
async def test_other_uses_move_last_seen(backend: Backend, verb: str) -> None:
    manager = backend.manager()
    session = await device(manager, "phone")
    seen = session.last_seen
    assert seen is not None
    await age(backend, session, HOUR)
    (listed,) = await manager.sessions_of(USER)
    assert listed.last_seen == seen - HOUR
    listed["n"] = 1
    await getattr(manager, verb)(listed)
    assert listed.last_seen >= seen
    (again,) = await manager.sessions_of(USER)
    assert again.last_seen == listed.last_seen


async def test_last_seen_never_moves_back(backend: Backend) -> None:
    """A commit's stamp may be ahead of the server's clock a little, and ids are forgotten by it."""
    manager = backend.manager()
    session = await device(manager, "phone")
    await age(backend, session, -HOUR)
    ahead = await stored(backend, session)
    await manager.touch(await manager.load(session.id))
    assert await stored(backend, session) == ahead


async def test_it_moves_also_where_the_absolute_timeout_is_near(backend: Backend) -> None:
    """There the idle timeout can't be put off any more, which hides nobody."""
    manager = backend.manager(idle_timeout=3600, absolute_timeout=3600)
    session = await device(manager, "phone")
    seen = session.last_seen
    await age(backend, session, HOUR / 2)
    loaded = await manager.load(session.id)
    assert loaded.last_seen is not None
    assert seen is not None
    assert loaded.last_seen >= seen


async def test_listing_is_no_use_of_a_session(backend: Backend) -> None:
    manager = backend.manager(idle_timeout=1000)
    session = await device(manager, "phone")
    await age(backend, session, HOUR)
    key = store_key(backend.prefix, session.handle)
    await backend.redis.pexpire(key, 100_000)
    before = await stored(backend, session)
    await manager.sessions_of(USER, current=session)
    assert await stored(backend, session) == before
    assert await backend.redis.pttl(key) <= 100_000


def test_damaged_stamps_are_moments_all_the_same() -> None:
    whole = blob([{"a": set_(1)}])
    for stamp in (0, 2**48 - 1):
        log = Log.parse(whole[:-STAMP] + stamp.to_bytes(6, "big") + whole[-STAMP + 6 :])
        seen = Session("", log, "{abc}:handle").last_seen
        assert seen is not None
        assert seen.timestamp() * 1000 in (0, DEADLINE)


async def test_a_damaged_log_is_left_as_it_is(backend: Backend) -> None:
    manager = backend.manager()
    session = await device(manager, "phone")
    await age(backend, session, HOUR)
    # Which ends in a stamp of long ago, and is no room either.
    damaged = await stored(backend, session) + b"\1" + bytes(29)
    await rewrite(backend, session, damaged)
    with pytest.raises(InvalidSessionData):
        await manager.load(session.id)
    assert await stored(backend, session) == damaged


# What cannot be read.


def newer_format(blob: bytes) -> bytes:
    return blob[:2] + bytes([FORMAT[2] + 1]) + blob[3:]


def cut_off(blob: bytes) -> bytes:
    return blob[:-1]


def a_value_of_a_newer_version(blob: bytes) -> bytes:
    frame = encode_frame({"new": set_(1)[:1] + b"\xd4\x63\x00"})  # an ext type nobody knows yet
    return blob + frame + blob[-STAMP:]


@pytest.mark.parametrize("damage", [newer_format, cut_off, a_value_of_a_newer_version])
async def test_one_that_cannot_be_read_is_listed_and_can_be_ended(
    backend: Backend, damage: Callable[[bytes], bytes]
) -> None:
    manager = backend.manager()
    broken, fine = await device(manager, "broken"), await device(manager, "fine")
    await manager.rotate(broken)
    await age(backend, fine, HOUR)
    damaged = damage(await stored(backend, broken))
    await rewrite(backend, broken, damaged)
    last = (await manager.sessions_of(USER, current=fine))[-1]
    assert [one.is_unreadable for one in await manager.sessions_of(USER)] == [False, True]
    assert (last.handle, dict(last), last.is_new) == (broken.handle, {}, False)
    assert last.created_at is last.expires_at is last.last_seen is None
    last["a"] = 1
    acts: list[Callable[[Session], Awaitable[Any]]]
    acts = [manager.save, manager.rotate, manager.refresh, manager.touch]
    for act in acts:
        with pytest.raises(InvalidSessionData):
            await act(last)
    assert await stored(backend, broken) == damaged
    await manager.destroy(last)
    assert last.is_destroyed
    assert [one["name"] for one in await manager.sessions_of(USER)] == ["fine"]
    assert (await manager.load(broken.id)).is_new


async def test_sign_out_everywhere_ends_what_cannot_be_read(backend: Backend) -> None:
    manager = backend.manager()
    broken, fine = await device(manager, "broken"), await device(manager, "fine")
    await rewrite(backend, broken, newer_format(await stored(backend, broken)))
    assert await manager.destroy_all(USER, keep=fine) == 1
    assert [one["name"] for one in await manager.sessions_of(USER)] == ["fine"]


async def test_sign_out_everywhere_ends_it_behind_a_lost_reply_too(
    valkey: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert valkey.port
    monkeypatch.setattr(principals, "_AT_ONCE", 1)
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        manager = valkey.manager(proxy.url, timeout=2)
        sessions = [await device(manager, str(number)) for number in range(3)]
        broken = sessions[-1]
        await rewrite(valkey, broken, newer_format(await stored(valkey, broken)))
        cuts = iter([Fault.CUT])
        sha = SCRIPTS["destroy"].sha.encode()
        proxy.decide = lambda request: next(cuts, Fault.PASS) if sha in request else Fault.PASS
        assert await manager.destroy_all(USER) == len(sessions)
        assert proxy.faults[Fault.CUT] == 1
        assert await manager.sessions_of(USER) == []


# Ending one.


async def test_the_guides_device_page(valkey: Backend) -> None:
    names = await run(ROOT / "docs" / "guide.md", valkey.url)
    async with names["manager"] as manager, names["strict"] as strict:
        mine, phone, other = [
            await device(manager, name, principal)
            for name, principal in (("mine", "page:1"), ("phone", "page:1"), ("other", "page:2"))
        ]
        shown = await names["devices"](mine)
        assert [one["handle"] for one in shown if one["this one"]] == [mine.handle]
        await names["end_device"](mine, other.handle)
        assert not (await manager.load(other.id)).is_new, "not by another user's handle"
        await names["end_device"](mine, phone.handle)
        assert (await manager.load(phone.id)).is_new
        assert len(await names["devices"](mine)) == 1
        answers = []
        for _ in range(6):
            session = await strict.load()
            answers.append(await names["strict_login"](session, 7))
            await strict.save(session)
        assert answers == ["Welcome"] * 5 + ["You are logged in 5 times. Log out somewhere first."]
        assert session.is_new, "what was refused left nothing behind"
        await strict.destroy_all("user:7")
        await manager.destroy_all("page:1")
        await manager.destroy_all("page:2")


async def test_a_handle_is_of_no_use_as_an_id(backend: Backend) -> None:
    manager = backend.manager()
    session = await device(manager, "phone")
    await manager.destroy(session.handle)
    assert not (await manager.load(session.id)).is_new
    assert (await manager.load(session.handle)).is_new


# The index.


async def drive_until(manager: SessionManager, machine: Any, calls: int) -> None:
    """Perform so many calls of a machine's, and then abandon it, as a cancelled task does."""
    step = next(machine)
    for _ in range(calls):
        step = machine.send(await manager._transport.call(step))
    machine.close()


async def test_a_login_under_way_stays_on_the_list(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = backend.manager()
    await device(manager, "phone", "user:1")  # the clock is known from then on
    session = await manager.load()
    session.principal = USER
    await drive_until(manager, verbs.save(manager._settings, session), 1)
    for _ in range(2):
        assert await manager.sessions_of(USER) == []
        assert await manager.destroy_all(USER) == 0
        assert await entries(backend) == [b"?" + session.handle.encode()]
    monkeypatch.setattr(principals, "HORIZON", -10_000)  # as if half a minute had passed
    assert await manager.sessions_of(USER) == []
    assert await entries(backend) == []


async def test_a_login_that_was_cut_off_after_its_commit_is_listed(backend: Backend) -> None:
    manager = backend.manager()
    await device(manager, "phone", "user:1")
    session = await manager.load()
    session.principal = USER
    await drive_until(manager, verbs.save(manager._settings, session), 2)
    assert await entries(backend) == [b"?" + session.handle.encode()]
    (found,) = await manager.sessions_of(USER)
    assert found.incarnation == session.incarnation
    await manager.save(session)
    assert await entries(backend) == [session.handle.encode()]
    assert await manager.destroy_all(USER) == 1
    assert (await manager.load(session.id)).is_new


async def test_a_login_cut_off_during_a_sign_out_ends_with_the_next_save(backend: Backend) -> None:
    manager = backend.manager()
    await device(manager, "phone", "user:1")
    session = await manager.load()
    session.principal = USER
    machine = verbs.save(manager._settings, session)
    step = machine.send(await manager._transport.call(next(machine)))  # type: ignore[arg-type]
    await manager.destroy_all(USER)
    await manager._transport.call(step)  # type: ignore[arg-type]
    machine.close()
    with pytest.raises(SessionGone):
        await manager.save(session)
    assert (await manager.load(session.id)).is_new


async def test_hundreds_of_devices(valkey: Backend) -> None:
    manager = valkey.manager()
    sessions = await asyncio.gather(*(device(manager, f"d{n}") for n in range(150)))
    found = await manager.sessions_of(USER)
    assert {one["name"] for one in found} == {one["name"] for one in sessions}
    seen = [one.last_seen for one in found if one.last_seen is not None]
    assert len(seen) == 150
    assert seen == sorted(seen, reverse=True)
    assert await manager.destroy_all(USER, keep=sessions[0]) == 149
    assert len(await entries(valkey)) == 1


async def test_sessions_are_looked_up_at_once(backend: Backend) -> None:
    manager = backend.manager()
    for number in range(3):
        await device(manager, f"d{number}")
    machine = principals.sessions_of(manager._settings, USER)
    step = next(machine)
    assert isinstance(step, Call)
    step = machine.send(await manager._transport.call(step))
    assert isinstance(step, Together)
    assert len(step.machines) == 3
    machine.close()


async def test_round_trips(valkey: Backend) -> None:
    assert valkey.port
    calls: Counter[str] = Counter()

    def count(request: list[bytes]) -> Fault:
        calls.update(["script"] if is_script(request) else [])
        return Fault.PASS

    async with FaultProxy(valkey.port, count) as proxy:
        manager = valkey.manager(proxy.url, max_sessions=3, when_full="refuse")
        session = await device(manager, "d0")
        await manager.sessions_of(USER)
        for _ in range(2):
            calls.clear()
            await device(manager, "next")
            assert calls.total() == 3, "listed, committed, confirmed; the limit costs nothing"
        for use, expected in (
            (lambda: manager.sessions_of(USER, current=session), 4),
            (lambda: manager.refresh(session), 1),
            (lambda: manager.rotate(session), 3),
        ):
            calls.clear()
            await use()
            assert calls.total() == expected


async def test_one_that_fails_keeps_nobody_else_alive(backend: Backend) -> None:
    """A sign-out everywhere that fails has ended whatever it could, and says that it failed."""
    manager = backend.manager()
    sessions = [await device(manager, f"d{number}") for number in range(4)]
    transport = manager._transport
    bad = store_key(backend.prefix, sessions[1].handle)

    class Failing:
        async def call(self, call: Call) -> Any:
            if bad in call.keys:
                raise Refused("OOM", passing=False)
            return await transport.call(call)

        async def aclose(self) -> None:
            await transport.aclose()

    manager._transport = Failing()
    with pytest.raises(SessionError) as caught:
        await manager.destroy_all(USER)
    assert isinstance(caught.value, StoreUnavailable)
    left = [task for task in asyncio.all_tasks() if "_drive" in repr(task.get_coro())]
    assert not left, "nothing goes on behind the caller's back"
    manager._transport = transport
    assert [one["name"] for one in await manager.sessions_of(USER)] == ["d1"]
    assert await manager.destroy_all(USER) == 1
