"""Bringing a session in long use up to date: all that others did, and nothing of ours lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.backends import WITH_SOAK, Backend
from support.logs import Store, small_values
from support.proxy import Fault, FaultProxy, is_script
from support.strategies import edited, image, items
from support.strategies import stored as kept

from asyncsession import (
    CommitOutcomeUnknown,
    InvalidSessionData,
    Session,
    SessionConflict,
    SessionError,
    SessionGone,
    merge,
    verbs,
)
from asyncsession.ids import store_key
from asyncsession.log import Log
from asyncsession.merge import Policies

STORES = WITH_SOAK


async def stored(backend: Backend, **values: Any) -> Session:
    session = await backend.manager().load()
    session.update(values)
    await backend.manager().save(session)
    return session


async def change(backend: Backend, session: Session, **values: Any) -> None:
    """Somebody else changes the session."""
    async with backend.manager().session(session.id) as other:
        other.update(values)


async def test_a_refreshed_session_shows_what_others_did(backend: Backend) -> None:
    session = await stored(backend, prefs={"theme": "light"}, n=1, gone=1)
    socket = await backend.manager().load(session.id)
    prefs, version = socket["prefs"], socket.version
    assert socket["n"] == 1
    async with backend.manager().session(session.id) as other:
        other["prefs"]["theme"], other["n"], other["new"] = "dark", 2, True
        other.principal = "user:42"
        del other["gone"]
    await backend.manager().refresh(socket)
    assert dict(socket) == {"prefs": {"theme": "dark"}, "n": 2, "new": True}
    assert (socket.principal, socket.version) == ("user:42", version + 1)
    assert socket["prefs"] is prefs, "what was handed out stays the session's"
    assert not socket.modified
    await backend.manager().refresh(socket)
    assert socket.version == version + 1


async def test_unsaved_changes_stay_and_go_on_top(backend: Backend) -> None:
    """By the policies of the manager, also in a session that was never saved with it."""
    manager = backend.manager(merge={"n": merge.counter, "most": merge.maximum})
    session = await stored(backend, n=1, most=5, cart={"a": 1}, list=[1], gone=1)
    socket = await manager.load(session.id)
    socket["n"] += 1
    socket["most"] = 7
    socket["cart"]["mine"] = 1
    socket["list"].append("mine")
    socket["own"] = True
    del socket["gone"]
    theirs = {"n": 11, "most": 6, "cart": {"a": 2, "theirs": 1}, "list": [1, "theirs"], "their": 1}
    await change(backend, session, **theirs)
    await manager.refresh(socket)
    merged = {
        "n": 12,
        "most": 7,
        "cart": {"a": 2, "theirs": 1, "mine": 1},
        "list": [1, "theirs", "mine"],
        "own": True,
        "their": 1,
    }
    assert dict(socket) == merged
    assert socket.modified
    await manager.refresh(socket)
    assert dict(socket) == merged, "nothing is put on top twice"
    commit = await manager.save(socket)
    assert (commit.attempts, commit.overwritten, commit.dropped) == (1, (), ())
    assert dict(await manager.load(session.id)) == dict(socket) == merged


async def test_what_has_to_be_refused_or_reported_still_is(backend: Backend) -> None:
    manager = backend.manager(merge={"seat": merge.reject})
    session = await stored(backend, seat=None, name="")
    socket = await manager.load(session.id)
    socket["seat"] = socket["name"] = "ours"
    await change(backend, session, seat="theirs", name="theirs")
    await manager.refresh(socket)
    assert (socket["seat"], socket["name"]) == ("ours", "ours")
    with pytest.raises(SessionConflict) as caught:
        await manager.save(socket)
    assert caught.value.keys == ("seat",)
    socket["seat"] = "theirs"
    assert (await manager.save(socket)).overwritten == ("name",)
    assert dict(await manager.load(session.id)) == {"seat": "theirs", "name": "ours"}


POLICIES = {"plain": merge.three_way, "n": merge.counter, "tags": merge.union,
            "log": merge.append, "most": merge.maximum, "last": merge.last_write}  # fmt: skip


@given(st.sampled_from(sorted(POLICIES)), st.integers(1, 2), st.data())
@settings(max_examples=200)
def test_refreshing_before_a_save_changes_nothing_that_is_stored(
    key: str, refreshes: int, data: st.DataObject
) -> None:
    policies = Policies(POLICIES, merge.three_way)
    kind = {"n": st.integers(-9, 9), "most": st.integers(0, 9)}.get(key, small_values)
    base, theirs, ours = (data.draw(kind) for _ in range(3))
    if key not in ("n", "most"):
        theirs, ours = (data.draw(edited(kept(base), items)) for _ in "ab")
    results = []
    for count in (0, refreshes):
        store = Store(**{key: base})
        session, other = store.load(), store.load()
        session[key], other[key] = kept(ours), kept(theirs)
        store.commit(other.changes(policies))
        for _ in range(count):
            session.refresh(Log.parse(store.blob), policies)
        sent = session.changes(policies)
        store.commit(sent)
        store.settle(session, sent)
        results.append(image(store.state()))
        assert image(dict(session)) == results[-1]
    assert results[0] == results[1]


async def test_refreshing_is_no_use_and_writes_nothing(backend: Backend) -> None:
    manager = backend.manager(idle_timeout=1000)
    session = await stored(backend, a=1)
    key = store_key(backend.prefix, session.handle)
    await backend.redis.pexpire(key, 100_000)
    before = await backend.redis.get(key)
    session["a"] = 2
    await manager.refresh(session)
    assert session["a"] == 2
    assert await backend.redis.get(key) == before
    assert await backend.redis.pttl(key) <= 100_000


async def test_gone_is_told(backend: Backend) -> None:
    manager = backend.manager()
    for end in ("destroyed", "expired", "another"):
        session = await stored(backend, a=1)
        socket = await manager.load(session.id)
        socket["a"] = 2
        if end == "destroyed":
            await manager.destroy(session)
        elif end == "expired":
            await backend.redis.delete(store_key(backend.prefix, session.handle))
        else:
            other = await stored(backend, a=3)
            blob = await backend.redis.get(store_key(backend.prefix, other.handle))
            await backend.redis.set(store_key(backend.prefix, session.handle), blob)
        for _ in range(2):
            with pytest.raises(SessionGone):
                await manager.refresh(socket)
            assert socket.is_destroyed
            assert socket["a"] == 2
    await manager.destroy(socket)
    for act in (manager.refresh, manager.touch):
        with pytest.raises(SessionGone):
            await act(socket)


async def test_nothing_is_shown_of_a_successor(backend: Backend) -> None:
    """Whoever planted an id and waits on a socket is not shown the login of their victim."""
    manager = backend.manager()
    victim = await stored(backend, cart=[])
    socket = await manager.load(victim.id)
    socket["own"] = 1
    victim["secret"], victim.principal = 1, "user:victim"
    await manager.rotate(victim)
    for _ in range(2):
        await manager.refresh(socket)
        assert socket.is_stale
        assert dict(socket) == {"cart": [], "own": 1}
        assert (socket.principal, socket.version) == (None, 1)
        await change(backend, victim, more=1)
    await manager.save(socket)
    assert dict(await manager.load(victim.id)) == {"cart": [], "secret": 1, "more": 1, "own": 1}
    await manager.refresh(socket)
    assert dict(socket) == {"cart": [], "own": 1}
    socket.principal = "user:attacker"
    with pytest.raises(SessionConflict):
        await manager.save(socket)
    await manager.destroy(victim)
    with pytest.raises(SessionGone):
        await manager.refresh(socket)
    assert socket.is_destroyed


@pytest.mark.parametrize("verb", ["refresh", "touch"])
async def test_a_socket_in_use_outlives_the_grace_of_a_rotation(
    backend: Backend, verb: str
) -> None:
    manager = backend.manager()
    session = await stored(backend, n=0)
    socket = await manager.load(session.id)
    old = store_key(backend.prefix, session.handle)
    await manager.rotate(session)
    await getattr(manager, verb)(socket)
    await backend.redis.delete(old)  # as if two minutes had passed
    await getattr(manager, verb)(socket)
    socket["late"] = 1
    await manager.save(socket)
    assert dict(await manager.load(session.id)) == {"n": 0, "late": 1}


async def test_what_cannot_be_read_leaves_the_session_as_it_was(backend: Backend) -> None:
    manager = backend.manager()
    session = await stored(backend, a=1)
    socket = await manager.load(session.id)
    key = store_key(backend.prefix, session.handle)
    for junk in (b"aS\x02L" + bytes(60), (await backend.redis.get(key)) + b"x"):
        await backend.redis.set(key, junk)
        with pytest.raises(InvalidSessionData):
            await manager.refresh(socket)
        assert (dict(socket), socket.version, socket.is_destroyed) == ({"a": 1}, 1, False)


async def test_a_new_session_is_left_as_it_is(valkey: Backend) -> None:
    assert valkey.port
    calls = 0

    def count(request: list[bytes]) -> Fault:
        nonlocal calls
        calls += is_script(request)
        return Fault.PASS

    async with FaultProxy(valkey.port, count) as proxy:
        manager = valkey.manager(proxy.url)
        session = await manager.load()
        session["a"] = 1
        await manager.refresh(session)
        assert (dict(session), calls) == ({"a": 1}, 0)


async def test_an_unanswered_commit_is_left_to_the_next_save(valkey: Backend) -> None:
    """Shown on top of what is stored, its changes would count twice."""
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        manager = valkey.manager(proxy.url, merge={"n": merge.counter}, timeout=0.4)
        session = await manager.load()
        session["n"] = 1
        await manager.save(session)
        session["n"] += 1
        proxy.decide = lambda r: Fault.SWALLOW if is_script(r) else Fault.PASS
        with pytest.raises(CommitOutcomeUnknown):
            await manager.save(session)
        proxy.decide = lambda _: Fault.PASS
        await change(valkey, session, other=1)
        for _ in range(2):
            with pytest.raises(CommitOutcomeUnknown):
                await manager.refresh(session)
            assert dict(session) == {"n": 2}
        await manager.save(session)
        await manager.refresh(session)
    assert dict(session) == dict(await valkey.manager().load(session.id)) == {"n": 2, "other": 1}


async def test_a_cancelled_save_is_left_to_the_next_one_too(valkey: Backend) -> None:
    manager = valkey.manager(merge={"n": merge.counter})
    session = await manager.load((await stored(valkey, n=1)).id)
    session["n"] += 1
    machine = verbs.save(manager._settings, session)
    next(machine)
    machine.close()
    with pytest.raises(CommitOutcomeUnknown):
        await manager.refresh(session)
    await manager.save(session)
    await manager.refresh(session)
    assert dict(session) == {"n": 2}


async def test_one_task_at_a_time(real_backend: Backend) -> None:
    manager = real_backend.manager()
    session = await stored(real_backend, a=1)
    session["a"] = 2
    for first, second in ((manager.save, manager.refresh), (manager.refresh, manager.save)):
        results = await asyncio.gather(first(session), second(session), return_exceptions=True)
        assert isinstance(results[1], SessionError)
        assert not isinstance(results[0], Exception)
        session["a"] += 1
    assert not session.is_saving


async def test_refreshing_among_writers(real_backend: Backend) -> None:
    """A socket that counts, refreshing and saving in turn, beside requests that count too."""
    manager = real_backend.manager(merge={"n": merge.counter})
    session = await stored(real_backend, n=0, tags=[])
    socket = await manager.load(session.id)

    async def request(number: int) -> None:
        async with manager.session(session.id) as mine:
            mine["n"] += 1
            mine["tags"].append(number)

    async def listen() -> None:
        for turn in range(40):
            socket["n"] += 1
            socket["tags"].append(f"s{turn}")
            await manager.refresh(socket)
            if turn % 3 == 0:
                await manager.save(socket)

    await asyncio.gather(listen(), *map(request, range(40)))
    await manager.save(socket)
    assert socket["n"] == len(socket["tags"]) == len({*socket["tags"]}) == 80
    assert dict(await manager.load(session.id)) == dict(socket)


async def test_refreshing_twice_claims_nothing_that_others_did(backend: Backend) -> None:
    """What they added is theirs: it is not added again, and stays deleted if they delete it."""
    for deleted in (False, True):
        manager = backend.manager()
        async with manager.session() as session:
            session["d"] = {"a": 1}
        mine = await manager.load(session.id)
        mine["d"]["a"] = 2
        async with manager.session(session.id) as theirs:
            theirs["d"]["a"], theirs["d"]["c"] = 3, ["item"]
        await manager.refresh(mine)
        await manager.refresh(mine)
        if deleted:
            async with manager.session(session.id) as theirs:
                del theirs["d"]["c"]
        commit = await manager.save(mine)
        assert commit.overwritten == ("d",)
        stored = dict(await manager.load(session.id))
        assert stored == {"d": {"a": 2} if deleted else {"a": 2, "c": ["item"]}}
