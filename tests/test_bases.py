"""What a session is known by, after touches and after a failover that lost commits."""

from __future__ import annotations

from typing import Any

import pytest
from support.backends import Backend

from asyncsession import Session, SessionConflict, SessionManager, merge, verbs
from asyncsession.ids import store_key
from asyncsession.outcome import Rerun
from asyncsession.protocol import Call, Lost

LENGTHS = pytest.mark.parametrize("other", ["as long", "of another length"])


async def touched(manager: SessionManager, session: Session) -> None:
    """Touch a session until that is noted; in the same millisecond there is nothing to note."""
    seen = session.last_seen
    while session.last_seen == seen:
        await manager.touch(session)


async def done_again(
    backend: Backend, reader: SessionManager, other: str, monkeypatch: pytest.MonkeyPatch
) -> Session:
    """Return a session as the reader has loaded it before a failover that lost a commit.

    Another stands in its place by now, and the one after it was done again.
    """
    one, two, three = (backend.manager() for _ in range(3))
    first = await one.load()
    first["form"] = "x" * 300
    await one.save(first)
    key = store_key(one._settings.prefix, first.handle)
    lost, kept, again = [await manager.load(first.id) for manager in (one, two, three)]
    replicated = await backend.redis.get(key)
    lost["b"] = "lost"
    kept["b"] = "kept" if other == "as long" else "something longer"
    again["c"] = "done again"
    await one.save(lost)
    call = three._transport.call
    loaded: list[Session] = []

    async def failing_over(step: Call) -> Any:
        reply = await call(step)
        if loaded:
            return reply
        loaded.append(await reader.load(first.id))
        await backend.redis.set(key, replicated, px=80_000_000)
        await two.save(kept)
        raise Lost("by the test")

    monkeypatch.setattr(three._transport, "call", failing_over)
    await three.save(again)
    assert loaded[0]["b"] == "lost"
    return loaded[0]


@LENGTHS
async def test_a_touch_makes_no_base_of_what_was_lost(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    reader = backend.manager()
    session = await done_again(backend, reader, other, monkeypatch)
    await touched(reader, session)
    kept = dict(await backend.manager().load(session.id))
    assert dict(await reader.load(session.id)) == kept
    session["n"] = 0
    await reader.save(session)
    assert dict(session) == kept | {"n": 0}
    for number in range(40):
        session["n"] = number
        await reader.save(session)
    assert dict(await backend.manager().load(session.id)) == kept | {"n": 39}


async def test_a_touch_leaves_the_base_where_others_have_committed(backend: Backend) -> None:
    manager, others = (backend.manager(merge={"k": merge.reject}) for _ in range(2))
    async with manager.session() as session:
        session["k"] = 1
    async with others.session(session.id) as other:
        other["b"] = 1
    await touched(manager, session)
    session["k"] = 2
    assert (await manager.save(session)).attempts == 1, "nobody touched what is guarded"
    assert dict(session) == {"k": 2, "b": 1}


async def test_a_touch_behind_a_rotation_tells_nobody_what_that_request_sees(
    backend: Backend,
) -> None:
    manager = backend.manager()
    async with manager.session() as session:
        session["k"] = 1
    old = await manager.load(session.id)
    await manager.rotate(session)
    old["k"] = 2
    await manager.save(old)
    latest = (await manager.load(session.id)).log
    assert latest is not None
    await touched(manager, old)
    known = manager._settings.cache.get(session.handle)
    assert known is not None
    assert (known.length, known.version) == (latest.length, latest.version)


@LENGTHS
async def test_a_tip_that_was_done_again_makes_no_base_of_what_was_lost(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    reader = backend.manager(merge={"b": merge.reject})
    session = await done_again(backend, reader, other, monkeypatch)
    await reader.load(session.id)  # another request of the process sees what was kept
    session["b"] += "!"
    serial = await reader._drive(verbs.save_serial(reader._settings, session))
    assert isinstance(serial, Rerun)
    with pytest.raises(SessionConflict):
        await reader.save(session)


async def test_all_commits_know_that_the_session_was_seen_since(backend: Backend) -> None:
    manager = backend.manager(merge={"k": merge.reject})
    async with manager.session() as session:
        session["k"] = 1
    session, same = [await manager.load(session.id) for _ in range(2)]
    await touched(manager, same)
    session["k"] = 2
    assert (await manager.save(session)).attempts == 1


async def test_an_update_does_not_run_again_because_somebody_looked(backend: Backend) -> None:
    """A load or touch of another process moves the stamp of what the update rests on."""
    manager, others = backend.manager(), backend.manager()
    async with manager.session() as session:
        session.update(a=1, b=1)
    runs: list[Any] = []

    async def change(loaded: Session) -> None:
        runs.append(loaded["a"])
        other = await others.load(session.id)
        await touched(others, other)
        if len(runs) == 1:
            other["b"] = 2  # which the update has nothing to do with
            await others.save(other)
        loaded["c"] = len(runs)

    await manager.update(session.id, change)
    assert runs == [1]
    assert dict(await others.load(session.id)) == {"a": 1, "b": 2, "c": 1}
