"""Large sessions: a commit writes its frame, and not the session."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.backends import Backend, open_backend
from support.servers import Server

from asyncsession import InvalidSessionData, Session, SessionManager, merge
from asyncsession.blob import HEADER_BYTES
from asyncsession.ids import store_key
from asyncsession.protocol import Call, Lost

MERGE = {"n": merge.counter}
LARGE, SMALL = 20_000, 1_000


async def made(manager: SessionManager, size: int) -> Session:
    session = await manager.load()
    session.update({"n": 0} | {f"form {n}": "x" * 500 for n in range(size // 500)})
    await manager.save(session)
    return session


def key_of(manager: SessionManager, session: Session) -> str:
    return store_key(manager._settings.prefix, session.handle)


async def count(manager: SessionManager, session_id: str) -> Session:
    session = await manager.load(session_id)
    session["n"] += 1
    await manager.save(session)
    return session


async def calls(backend: Backend, name: str) -> int:
    stats: dict[str, Any] = await backend.redis.info("commandstats")
    return int(stats.get(f"cmdstat_{name}", {}).get("calls", 0))


async def test_the_room_is_filled_and_then_made_anew(backend: Backend) -> None:
    manager = backend.manager(merge=MERGE)
    session = await made(manager, LARGE)
    key = key_of(manager, session)
    first = await backend.redis.get(key)
    assert not first.endswith(b"\0"), "a session that is only created takes no more than it needs"
    sizes, rooms = [], []
    for number in range(1, 200):
        session = await count(manager, session.id)
        assert session.log is not None
        stored = await backend.redis.get(key)
        retired = int.from_bytes(stored[36:40], "big")
        end = HEADER_BYTES + retired + session.log.length
        assert stored[:end].endswith(session.log.tip)
        assert stored[end:] == bytes(len(stored) - end)
        assert len(stored) - end <= len(stored) / 16
        assert not 0 < len(stored) - end < 6, "too few zeros to tell the end by"
        sizes.append(len(stored))
        rooms.append(len(stored) - end)
        if number % 13 == 0:
            fresh = await backend.manager(merge=MERGE, cache_bytes=0).load(session.id)
            assert dict(fresh) == dict(session)
            assert fresh.version == number + 1
            assert fresh.log is not None
            assert fresh.log.length == session.log.length
            assert await backend.redis.pttl(key) > 86_000_000
    assert len(set(sizes)) < 30, "most commits leave the length of the string as it is"
    assert max(rooms) > 500


async def test_a_small_session_has_no_room(backend: Backend) -> None:
    manager = backend.manager(merge=MERGE)
    session = await made(manager, SMALL)
    for _ in range(40):
        session = await count(manager, session.id)
        stored = await backend.redis.get(key_of(manager, session))
        assert session.log is not None
        assert stored.endswith(session.log.tip)


async def test_only_few_commits_write_the_whole(valkey: Backend) -> None:
    manager = valkey.manager(merge=MERGE)
    session = await count(manager, (await made(manager, LARGE)).id)
    before = await calls(valkey, "set"), await calls(valkey, "setrange")
    for _ in range(60):
        await count(manager, session.id)
    assert await calls(valkey, "set") - before[0] <= 5
    assert await calls(valkey, "setrange") - before[1] >= 55


async def test_room_takes_a_sixteenth_at_the_most(valkey: Backend) -> None:
    manager = valkey.manager(merge=MERGE)
    for size in (5_000, 12_000, 30_000, 60_000):
        session = await count(manager, (await made(manager, size)).id)
        key = key_of(manager, session)
        stored = await valkey.redis.get(key)
        with_room = await valkey.redis.memory_usage(key)
        await valkey.redis.set(key, stored.rstrip(b"\0"))
        assert 50 < with_room - await valkey.redis.memory_usage(key) <= size / 12


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_base_that_was_moved_is_found(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Loads and commits that rest on it get what is new and no more."""
    ours, theirs = (backend.manager(merge=MERGE) for _ in range(2))
    session = await made(ours, size)
    others = await theirs.load(session.id)
    while others.log is not None and not others.log.outgrown:
        others = await count(theirs, session.id)
    known = await ours.load(session.id)  # the same log; theirs compacts it next
    replies: list[Any] = []
    call = ours._transport.call

    async def spy(step: Any) -> Any:
        replies.append(await call(step))
        return replies[-1]

    await count(theirs, session.id)
    monkeypatch.setattr(ours._transport, "call", spy)
    late = await ours.load(session.id)
    assert replies[-1][:1] == b"-"
    assert len(replies[-1]) < 150
    known["own"] = 1
    known["n"] += 1
    assert (await ours.save(known)).attempts == 1
    assert len(replies[-1]) < 24 + 200
    late["n"] += 1
    await ours.save(late)
    last = await ours.load(session.id)
    assert replies[-1][:1] == b"+"
    plain = await backend.manager(merge=MERGE, cache_bytes=0).load(session.id)
    assert dict(last) == dict(plain)
    assert last.log is not None
    assert plain.log is not None
    for name in ("version", "tip", "length", "frames", "stamp", "outgrown"):
        assert getattr(last.log, name) == getattr(plain.log, name), name


async def test_whoever_only_reads_does_not_keep_all_that_was_ever_written(
    backend: Backend,
) -> None:
    writer, reader = (backend.manager(merge=MERGE) for _ in range(2))
    session = await made(writer, 500)
    for number in range(200):
        session["n"] += 1
        if session.pop("flash", None) is None:
            session["flash"] = [number]
        await writer.save(session)
        await reader.load(session.id)
    log = (await reader.load(session.id)).log
    assert log is not None
    assert max(len(chain) for chain in log._chains.values() if type(chain) is tuple) < 80
    assert dict(await reader.load(session.id)) == dict(session)


async def test_a_commit_that_stands_behind_fewer_than_known_is_no_base(backend: Backend) -> None:
    """A failover has lost a commit, and the one after it was done again on the new primary."""
    ours, theirs = (backend.manager(merge=MERGE) for _ in range(2))
    session = await made(ours, SMALL)
    key = key_of(ours, session)
    start = await backend.redis.get(key)
    lost = await ours.load(session.id)
    lost["lost"] = 1
    await ours.save(lost)
    session = await count(ours, session.id)
    assert session.log is not None
    whole = await backend.redis.get(key)
    frames = whole[len(start) :]
    middle = int.from_bytes(frames[:4], "big") + 4
    await backend.redis.set(key, start + frames[middle:], px=80_000_000)
    back = await ours.load(session.id)
    assert "lost" not in back
    assert dict(back) == dict(await theirs.load(session.id))


async def test_of_many_writers_one_compacts(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that start from the same log in one process."""
    manager = backend.manager(merge=MERGE)
    session = await made(manager, SMALL)
    while session.log is not None and not session.log.outgrown:
        session = await count(manager, session.id)
    loaded = [await manager.load(session.id) for _ in range(8)]
    for number, one in enumerate(loaded):
        one["n"] += 1
        one[f"own {number}"] = number
    sent: list[Any] = []
    call = manager._transport.call

    async def spy(step: Any) -> Any:
        sent.append(step)
        return await call(step)

    monkeypatch.setattr(manager._transport, "call", spy)
    await asyncio.gather(*map(manager.save, loaded))
    words = [len(step.args) for step in sent]
    assert words.count(3) == 1, "one sends a snapshot, and goes by itself"
    assert sum(words) == 7 * 2 + 3, "the others go with others"
    plain = await backend.manager(merge=MERGE, cache_bytes=0).load(session.id)
    assert plain["n"] == session["n"] + 8
    assert all(plain[f"own {number}"] == number for number in range(8))


def loses(
    manager: SessionManager,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[], Awaitable[None]],
) -> None:
    """Have the answer to the next commit get lost, and something happen before it asks again."""
    call, lost = manager._transport.call, False

    async def losing(step: Call) -> Any:
        nonlocal lost
        reply = await call(step)
        if step.script != "commit" or lost:
            return reply
        lost = True
        await meanwhile()
        raise Lost("by the test")

    monkeypatch.setattr(manager._transport, "call", losing)


@pytest.mark.parametrize("history", ["large", "many commits"])
async def test_a_folded_copy_of_a_login_is_found_behind_a_rotation(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, history: str
) -> None:
    """Whoever yields to the rotation rests on a load, which does not tell the listed ids."""
    ours, theirs = (backend.manager(merge=MERGE) for _ in range(2))
    session = await made(ours, 6_000 if history == "large" else 300)
    for _ in range(520 if history == "many commits" else 0):
        session["k"] = session.version
        await ours.save(session)
    login, other = await ours.load(session.id), await theirs.load(session.id)
    login.principal = "user:1"
    login["n"] += 1

    async def rotated_and_folded() -> None:
        await theirs.rotate(other)
        for number in range(60):
            other["k"] = number
            await theirs.save(other)

    loses(ours, monkeypatch, rotated_and_folded)
    await ours.save(login)
    assert (await theirs.load(other.id))["n"] == 1


@pytest.mark.parametrize("other", ["as long", "of another length"])
async def test_a_commit_done_again_after_a_failover_is_another_base(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """The failover lost what stood before it, and something else stands there now."""
    reader, one, two, three = (backend.manager() for _ in range(4))
    session = await made(one, 300)
    key = key_of(one, session)
    lost, kept, again = [await manager.load(session.id) for manager in (one, two, three)]
    replicated = await backend.redis.get(key)
    lost["b"] = "lost"
    kept["d"] = "kept" if other == "as long" else "something longer"
    again["c"] = "done again"

    async def failover() -> None:
        assert set(await reader.load(session.id)) >= {"b", "c"}
        await backend.redis.set(key, replicated, px=80_000_000)
        await two.save(kept)

    await one.save(lost)
    loses(three, monkeypatch, failover)
    await three.save(again)
    expected = dict(await backend.manager(cache_bytes=0).load(session.id))
    assert set(expected) >= {"c", "d"}
    session = await reader.load(session.id)
    assert dict(session) == expected
    for number in range(30):
        session["number"] = number
        await reader.save(session)
    last = await backend.manager(cache_bytes=0).load(session.id)
    assert dict(last) == expected | {"number": 29}


@pytest.mark.parametrize("size", [100, LARGE])
async def test_a_damaged_kind_is_noticed_by_whoever_knows_the_session(
    backend: Backend, size: int
) -> None:
    manager = backend.manager()
    session = await made(manager, size)
    key = key_of(manager, session)
    damaged = b"X".join(((await backend.redis.get(key))[:3], (await backend.redis.get(key))[4:]))
    await backend.redis.set(key, damaged)
    with pytest.raises(InvalidSessionData):
        await manager.load(session.id)
    session["n"] = 5
    with pytest.raises(InvalidSessionData):
        await manager.save(session)
    assert await backend.redis.get(key) == damaged


async def test_a_scalar_that_was_taken_back_leaves_what_others_wrote(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = backend.manager(), backend.manager()
    session = await made(ours, 300)
    session["k"] = "a"
    await ours.save(session)
    async with theirs.session(session.id) as other:
        other["k"] = "c"
    call = ours._transport.call

    async def changing(step: Call) -> Any:
        session["k"] = "b"
        return await call(step)

    with monkeypatch.context() as patch:
        patch.setattr(ours._transport, "call", changing)
        session["n"] = 1
        await ours.save(session)
    session["k"] = "a"
    assert await ours.save(session) == (session.version, 0, (), (), ())
    assert session["k"] == (await theirs.load(session.id))["k"] == "c"


async def test_the_largest_session_with_room_can_be_read() -> None:
    """Stale writers may leave a log that is as long as one can be."""
    with Server("valkey9") as server:  # others look at how much theirs has sent
        async with open_backend("valkey9", lambda _: server) as valkey:
            await leave_the_largest(valkey)


async def leave_the_largest(valkey: Backend) -> None:
    managers = [valkey.manager(max_bytes=2**24, timeout=10) for _ in range(5)]
    session = await managers[0].load()
    session["k"] = ""
    await managers[0].save(session)
    key = key_of(managers[0], session)
    stale = [await manager.load(session.id) for manager in managers]
    for manager, one in zip(managers, stale, strict=True):
        left = 2**26 - len((await valkey.redis.get(key)).rstrip(b"\0"))
        one["k" if left > 2**24 else "z"] = "x" * (min(left, 2**24 - 100) - 60)
        await manager.save(one)
    assert await valkey.redis.strlen(key) > 2**26 + 4_000_000
    fresh = await valkey.manager(max_bytes=2**24, timeout=10).load(session.id)
    assert (fresh["k"], fresh["z"]) == (stale[3]["k"], stale[4]["z"])
