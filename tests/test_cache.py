"""What a process has seen of sessions saves bytes, and never shows anything that is not stored."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
from typing import Any

import pytest
from support.backends import Backend
from support.commits import terms
from support.logs import blob, set_

from asyncsession import (
    CommitOutcomeUnknown,
    ConfigurationError,
    Session,
    SessionConflict,
    SessionGone,
    SessionManager,
    merge,
)
from asyncsession.cache import Cache
from asyncsession.ids import store_key
from asyncsession.log import Log
from asyncsession.machine import Clock
from asyncsession.protocol import Call, Lost

MERGE = {"n": merge.counter, "tags": merge.union}
SIZES = pytest.mark.parametrize("size", [300, 20_000])  # read as a whole, and in part


def replies_of(manager: SessionManager, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list that the replies to the manager's loads will be added to."""
    replies: list[Any] = []
    call = manager._transport.call

    async def spy(step: Call) -> Any:
        reply = await call(step)
        if step.script == "load":
            replies.append(reply)
        return reply

    monkeypatch.setattr(manager._transport, "call", spy)
    return replies


async def made(manager: SessionManager, size: int) -> Session:
    session = await manager.load()
    session.update({"n": 0, "tags": set(), "nested": {"a": 1}, "draft": "x" * size})
    await manager.save(session)
    return session


@SIZES
async def test_a_load_fetches_only_what_is_new(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    ours, theirs = backend.manager(), backend.manager()
    session_id = (await made(ours, size)).id
    replies = replies_of(ours, monkeypatch)
    assert (await ours.load(session_id))["draft"] == "x" * size
    assert len(replies[-1]) == 7, "a mark and a stamp"
    async with theirs.session(session_id) as other:
        other["nested"]["b"] = 2
    session = await ours.load(session_id)
    assert 7 < len(replies[-1]) < 100
    assert (session["nested"], session["draft"]) == ({"a": 1, "b": 2}, "x" * size)
    session["n"] = 1
    await ours.save(session)
    assert (await ours.load(session_id))["n"] == 1
    assert len(replies[-1]) == 7
    whole = backend.manager(cache_bytes=0)
    seen = replies_of(whole, monkeypatch)
    for _ in range(2):
        assert (await whole.load(session_id))["n"] == 1
        assert len(seen[-1][2] if isinstance(seen[-1], list) else seen[-1]) > size


@SIZES
async def test_what_is_loaded_is_what_is_stored(backend: Backend, size: int) -> None:
    """Whoever has committed, compacted, rotated or ended the session in between."""
    chance = random.Random(size)
    managers = [backend.manager(merge=MERGE) for _ in range(3)]
    plain = backend.manager(merge=MERGE, cache_bytes=0)
    session_id, ended = (await made(managers[0], size)).id, 0
    for step in range(120):
        manager = chance.choice(managers)
        session = await manager.load(session_id)
        expected = await plain.load(session_id)
        assert dict(session) == dict(expected)
        if session.is_new:
            session_id, ended = (await made(manager, size)).id, ended + 1
            continue
        assert session.log is not None
        assert expected.log is not None
        for name in ("version", "incarnation", "created", "deadline", "tip", "length", "frames"):
            assert getattr(session.log, name) == getattr(expected.log, name), name
        session["n"] += 1
        session["tags"] ^= {chance.randrange(5)}
        session["nested"][str(chance.randrange(5))] = step
        session[f"own:{chance.randrange(8)}"] = step
        session.pop(f"own:{chance.randrange(8)}", None)
        await manager.save(session)
        match chance.randrange(20):
            case 0:
                await chance.choice(managers).destroy(session.id)
            case 1 | 2:
                other = await chance.choice(managers).load(session_id)
                await chance.choice(managers).rotate(other)
                stale = await chance.choice(managers).load(session_id)
                assert stale.is_stale
                assert stale.is_new
                session_id = other.id
    assert ended > 1


@SIZES
async def test_a_session_that_ended_elsewhere_is_seen_to_have(backend: Backend, size: int) -> None:
    ours, theirs = backend.manager(), backend.manager()
    for how in ("destroyed", "expired", "everywhere"):
        session = await made(ours, size)
        session.principal = "user:42"
        await ours.save(session)
        match how:
            case "destroyed":
                await theirs.destroy(session.id)
            case "expired":
                await backend.redis.delete(store_key(ours._settings.prefix, session.handle))
            case _:
                await theirs.destroy_all("user:42")
        late = await ours.load(session.id)
        assert late.is_new, how
        assert not late, how
        session["n"] = 1
        with pytest.raises(SessionGone):
            await ours.save(session)


@SIZES
async def test_an_older_state_that_was_brought_back_is_shown(backend: Backend, size: int) -> None:
    """As after a failover that lost writes, or from a backup."""
    manager = backend.manager(merge=MERGE)
    session = await made(manager, size)
    key = store_key(manager._settings.prefix, session.handle)
    older = await backend.redis.get(key)
    session["n"] += 5
    await manager.save(session)
    await backend.redis.set(key, older, ex=1000)
    back = await manager.load(session.id)
    assert (back["n"], back.version) == (0, 1)
    back["n"] += 1
    await manager.save(back)
    assert (await manager.load(session.id))["n"] == 1
    assert (await backend.manager().load(session.id))["n"] == 1


async def test_sessions_that_share_what_was_seen_share_no_values(backend: Backend) -> None:
    manager = backend.manager()
    session_id = (await made(manager, 300)).id
    one, other = await manager.load(session_id), await manager.load(session_id)
    one["nested"]["a"] = "changed"
    assert other["nested"] == {"a": 1}
    await manager.save(one)
    assert other["nested"] == {"a": 1}
    assert (await manager.load(session_id))["nested"] == {"a": "changed"}


async def test_a_commit_starts_from_what_the_process_has_seen(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its report tells what it met all the same."""
    manager = backend.manager(merge=MERGE)
    session_id = (await made(manager, 300)).id
    late = await manager.load(session_id)
    for number in range(6):
        async with manager.session(session_id) as session:
            session["n"] += 1
            session["draft"] = f"theirs {number}"
    latest = manager._settings.cache.get(late.handle)
    assert latest is not None
    sent: list[Call] = []
    call = manager._transport.call

    async def spy(step: Call) -> Any:
        sent.append(step)
        return await call(step)

    monkeypatch.setattr(manager._transport, "call", spy)
    late["n"] += 1
    late["draft"] = "ours"
    commit = await manager.save(late)
    assert len(sent) == 1
    assert terms(sent[0]).length == latest.length
    assert (commit.attempts, commit.merged, commit.overwritten) == (1, ("n",), ("draft",))
    assert (late["n"], late["draft"], late.version) == (7, "ours", 8)
    assert dict(await backend.manager(merge=MERGE).load(session_id)) == dict(late)


async def test_a_change_that_others_may_refuse_keeps_its_base(backend: Backend) -> None:
    """What this process has seen since is a conflict all the same."""
    manager = backend.manager(merge={"once": merge.reject, "sum": lambda b, o, t: o + t - b})
    async with manager.session() as session:
        session.update({"once": 0, "sum": 0})
    first, second = await manager.load(session.id), await manager.load(session.id)
    async with manager.session(session.id) as other:
        other.update({"once": 1, "sum": 5})
    first["sum"] += 1
    await manager.save(first)
    assert first["sum"] == 6
    second["once"] = 2
    with pytest.raises(SessionConflict, match="once"):
        await manager.save(second)


async def test_a_save_of_nothing_shows_nothing_else(backend: Backend) -> None:
    """What this process has seen may be gone by now; nobody asked."""
    manager = backend.manager()
    session_id = (await made(manager, 300)).id
    reader = await manager.load(session_id)
    nested = reader["nested"]
    async with manager.session(session_id) as other:
        other["nested"]["b"] = 2
    assert await manager.save(reader) == (1, 0, (), (), ())
    assert (nested, dict(reader)["nested"]) == ({"a": 1}, {"a": 1})


async def test_a_dict_in_another_order_is_not_modified_after_a_save(backend: Backend) -> None:
    manager = backend.manager()
    session = await made(manager, 300)
    session["nested"] = {"a": 1, "b": 2}
    await manager.save(session)
    loaded = await manager.load(session.id)
    loaded["nested"] = {"b": 2, "a": 1}
    loaded["n"] = 1
    await manager.save(loaded)
    assert not loaded.modified
    assert loaded["nested"] == {"a": 1, "b": 2}
    assert (await manager.save(loaded)).attempts == 0


async def test_a_session_is_not_modified_right_after_its_save(backend: Backend) -> None:
    """Also where what is stored has its keys in another order."""
    manager = backend.manager(merge=MERGE)
    session = await made(manager, 300)
    session["nested"] = {"x": 1, "y": 2}
    await manager.save(session)
    session = await manager.load(session.id)
    session["nested"]["x"] = session["nested"].pop("x") + 1
    session["n"] += 1
    session["tags"] |= {1, 2}
    del session["draft"]
    await manager.save(session)
    assert not session.modified
    assert dict(session) == dict(await manager.load(session.id))
    assert (await manager.save(session)).attempts == 0


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
@pytest.mark.parametrize("was_hers", [True, False])
async def test_saving_again_changes_nobodys_principal(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, was_hers: bool, cache_bytes: int
) -> None:
    """A slow request tries to be somebody else, in a session that was rotated meanwhile."""
    manager, elsewhere = backend.manager(cache_bytes=cache_bytes), backend.manager()
    session = await made(manager, 300)
    if was_hers:
        session.principal = "alice"
        await manager.save(session)
    slow = await manager.load(session.id)
    hers = await manager.load(session.id)
    hers.principal = "alice"
    await manager.save(hers)
    hers = await elsewhere.load(hers.id)
    await elsewhere.rotate(hers)
    slow.principal, slow["x"] = "mallory", "put by mallory"
    call, is_first = manager._transport.call, True

    async def lossy(step: Call) -> Any:
        nonlocal is_first
        if step.script == "commit" and is_first:
            is_first = False
            raise Lost("never arrived")
        return await call(step)

    monkeypatch.setattr(manager._transport, "call", lossy)
    for _ in range(2):
        with pytest.raises((CommitOutcomeUnknown, SessionConflict)):
            await manager.save(slow)
    stored = await elsewhere.load(hers.id)
    assert stored.principal == "alice"
    assert "x" not in stored


@SIZES
async def test_the_idle_timeout_is_put_off_all_the_same(real_backend: Backend, size: int) -> None:
    """Of a session that the process knows, too; and not more often than once in an interval."""
    manager = real_backend.manager(idle_timeout=10)  # the interval is a second
    session = await made(manager, size)
    key = store_key(manager._settings.prefix, session.handle)
    await real_backend.redis.pexpire(key, 9500)
    await manager.load(session.id)
    assert await real_backend.redis.pttl(key) <= 9500, "it was put off less than a second ago"
    seen = session.last_seen
    await asyncio.sleep(1.1)
    loaded = await manager.load(session.id)
    assert await real_backend.redis.pttl(key) > 9500
    assert loaded.last_seen is not None
    assert seen is not None
    assert loaded.last_seen > seen
    stored = await real_backend.manager().load(session.id)
    assert stored.last_seen == loaded.last_seen == (await manager.load(session.id)).last_seen


def test_a_clock_that_was_not_told_lately_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = Clock(), 100.0
    monkeypatch.setattr("asyncsession.machine.time.monotonic", lambda: now)
    assert clock.recent() == 0
    clock.observe(5_000_000)
    now += 59
    assert clock.recent() == clock.now() == 5_059_000
    now += 2
    assert clock.recent() == 0
    assert clock.now() == 5_061_000


def log_of(size: int) -> Log:
    return Log.parse(blob([{"a": set_("x" * size)}]))


def test_those_put_in_longest_ago_go_first() -> None:
    logs = {name: log_of(1000) for name in "abcd"}
    cache = Cache(3 * logs["a"].memory)
    for name in "abc":
        cache.put(name, logs[name])
    cache.put("a", logs["a"])
    cache.put("d", logs["d"])
    assert [name for name in "abcd" if cache.get(name)] == ["a", "c", "d"]
    cache.drop("a")
    cache.drop("unknown")
    cache.put("b", logs["b"])
    assert [name for name in "abcd" if cache.get(name)] == ["b", "c", "d"]
    cache.put("d", log_of(50_000))
    assert [name for name in "abcd" if cache.get(name)] == ["b", "c"], "too large is not kept"
    assert cache._taken == sum(logs[name].memory for name in "bc")


def test_threads_may_share_it() -> None:
    cache = Cache(20 * log_of(100).memory)

    def use(number: int) -> None:
        for turn in range(400):
            cache.put(f"{(number * turn) % 50}", log_of(100 + turn % 7))
            cache.get(f"{turn % 50}")
            cache.drop(f"{turn % 13}")

    threads = [threading.Thread(target=use, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache._taken == sum(log.memory for log in cache._logs.values()) <= cache._limit


FORKED = """
import os, sys, threading
from asyncsession.log import Log
from asyncsession.cache import Cache

log = Log(b"i" * 8, 0, 0, 0)
cache = Cache(20 * log.memory)
cache.put("old", log)
held, done = threading.Event(), threading.Event()

def hold():
    with cache._lock:
        held.set()
        done.wait()

threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child:
    done.set()
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

failed = []

def use(number):
    try:
        for turn in range(2000):
            cache.put(f"{number * turn % 50}", log)
            cache.drop(f"{turn % 13}")
    except BaseException as error:
        failed.append(error)

sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=use, args=(number,), daemon=True) for number in range(1, 5)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(10)
is_right = cache._taken == sum(log.memory for log in cache._logs.values())
is_stuck = any(thread.is_alive() for thread in threads)
os._exit(bool(failed) or is_stuck or not is_right or cache.get("old") is not None)
"""


def test_a_forked_child_begins_anew_whoever_held_the_lock() -> None:
    script = [sys.executable, "-W", "ignore", "-c", FORKED]
    assert subprocess.run(script, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("wrong", [-1, 1.5, None, True])
def test_a_wrong_size_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="cache_bytes"):
        SessionManager("memory://", cache_bytes=wrong)
