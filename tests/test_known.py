"""What the load script answers early, it would have answered just the same further down."""

from __future__ import annotations

import random
from typing import Any

import pytest
from support.backends import Backend
from support.mutants import rewrite

from asyncsession import Session, SessionManager, merge
from asyncsession.ids import store_key
from asyncsession.protocol import Call

MERGE = {"n": merge.counter}
EARLY = "    if left > 0 and due < interval and known - number(tip, 1, 6) < interval then"
NEVER = "    if false then"
IDLE = 1000  # seconds; the interval is a minute
TEN_YEARS = 315_360_000


async def grown(manager: SessionManager, commits: int, size: int) -> Session:
    session = await manager.load()
    session.update({"n": 0, "text": "x" * size})
    await manager.save(session)
    for _ in range(commits):
        session["n"] += 1
        await manager.save(session)
    return session


async def both(backend: Backend, step: Call, key: str) -> tuple[Any, Any]:
    """Make a call as it is and as if nothing were answered early, on the same state."""
    state, ttl = await backend.redis.get(key), await backend.redis.pttl(key)
    replies = []
    for is_early in (True, False):
        await backend.redis.set(key, state, px=ttl if ttl > 0 else None)
        with pytest.MonkeyPatch.context() as patch:
            if not is_early:
                rewrite(patch, "load", EARLY, NEVER)
            replies.append(await backend.manager()._transport.call(step))
    return replies[0], replies[1]


def tried(session: Session, now: int, idle: int) -> bytes:
    """Return the terms of a load by somebody who knows a session's log."""
    assert session.log is not None
    return (idle * 1000).to_bytes(6, "big") + now.to_bytes(6, "big") + session.log.base


async def test_an_early_answer_is_that_of_all_others(backend: Backend) -> None:
    rng = random.Random(7)
    manager = backend.manager(merge=MERGE, idle_timeout=IDLE, cache_bytes=0)
    early = 0
    for commits, size in ((0, 10), (3, 300), (40, 300), (2, 5000), (300, 10)):
        session = await grown(manager, commits, size)
        key = store_key(backend.prefix, session.handle)
        behind = await manager.load(session.id)
        for others in (0, 1, 30):
            for _ in range(others):
                mine = await manager.load(session.id)
                mine["n"] += 1
                await manager.save(mine)
            for known in (behind, await manager.load(session.id)):
                assert known.log is not None
                for _ in range(6):
                    now = known.log.stamp + rng.choice((-10, 0, 1, 59_000, 61_000, 10**11))
                    await backend.redis.pexpire(key, rng.choice((900_000, 941_000, 1_000_000)))
                    idle = rng.choice((1, 900, IDLE, 2 * IDLE))
                    step = Call("load", (key,), (tried(known, now, idle),), 1)
                    one, other = await both(backend, step, key)
                    if type(one) is list:  # it has asked the clock, and may have written it
                        assert (one[0], len(one[2])) == (other[0], len(other[2]))
                        continue
                    assert one == other
                    early += one == b"+" + known.log.base[4:10]
    assert early > 20, "most loads are answered early"


async def test_no_early_answer_to_another_base_or_behind_the_deadline(backend: Backend) -> None:
    session = await grown(backend.manager(merge=MERGE, idle_timeout=IDLE), 2, 300)
    assert session.log is not None
    key, now = store_key(backend.prefix, session.handle), session.log.stamp + 1000
    terms = tried(session, now, IDLE)
    length = session.log.length + 1
    other_length = terms[:12] + length.to_bytes(4, "big") + terms[16:]
    one, other = await both(backend, Call("load", (key,), (other_length,), 1), key)
    assert one == other
    assert one[:1] == b"-", "it is told where its base is"
    other_tip = terms[:16] + (session.log.stamp - 1).to_bytes(6, "big") + terms[22:]
    one, other = await both(backend, Call("load", (key,), (other_tip,), 1), key)
    assert one == other == await backend.redis.get(key), "the whole log"
    await backend.redis.setrange(key, 18, (now - 500).to_bytes(6, "big"))  # the deadline
    one, other = await both(backend, Call("load", (key,), (terms,), 1), key)
    assert type(one) is type(other) is list


async def test_timeouts_of_ten_years_are_set_as_such(backend: Backend) -> None:
    """A server might be told such numbers of ms in a notation that it doesn't take."""
    manager = backend.manager(idle_timeout=TEN_YEARS - 15_360_000, absolute_timeout=TEN_YEARS)
    session = await manager.load()
    session["n"] = 1
    await manager.save(session)
    key = store_key(backend.prefix, session.handle)
    for use in (manager.touch, manager.save):
        await backend.redis.pexpire(key, 10_000)
        session["n"] += 1
        await use(session)
        assert 299_999_000_000 < await backend.redis.pttl(key) <= 300_000_000_000
    await backend.redis.pexpire(key, 10_000)
    await backend.manager(idle_timeout=TEN_YEARS - 15_360_000, absolute_timeout=TEN_YEARS).load(
        session.id
    )
    assert 299_999_000_000 < await backend.redis.pttl(key) <= 300_000_000_000
