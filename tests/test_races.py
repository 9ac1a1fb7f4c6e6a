"""Parallel writers on one session: nothing is lost, and hardly anything is tried twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.backends import WITH_SOAK, Backend
from support.scenarios import POLICIES, gone_is_gone, many_writers

from asyncsession import Session, SessionGone, merge

STORES = WITH_SOAK


async def test_32_writers_through_4_managers(real_backend: Backend) -> None:
    managers = [real_backend.manager(merge=POLICIES, max_bytes=2**20) for _ in range(4)]
    assert await many_writers(managers, writers=32, commits=20) <= 1.05


async def test_writers_on_the_fake(backend: Backend) -> None:
    managers = [backend.manager(merge=POLICIES) for _ in range(2)]
    assert await many_writers(managers, writers=6, commits=6) <= 1.05


async def test_custom_merges_under_contention(real_backend: Backend) -> None:
    def add_up(base: Any, ours: Any, theirs: Any) -> Any:
        return ours + theirs - base

    managers = [real_backend.manager(merge={"sum": add_up}) for _ in range(4)]
    session = await managers[0].load()
    session["sum"] = 0
    await managers[0].save(session)

    async def writer(number: int) -> None:
        for turn in range(5):
            async with managers[(number + turn) % 4].session(session.id) as mine:
                mine["sum"] += 1

    await asyncio.gather(*map(writer, range(16)))
    assert (await managers[0].load(session.id))["sum"] == 80


async def test_updates_under_contention(real_backend: Backend) -> None:
    manager = real_backend.manager()
    session = await manager.load()
    session["stock"] = 50
    await manager.save(session)
    sold = 0

    async def buy(_: int) -> None:
        nonlocal sold

        async def take(s: Session) -> None:
            stock = s["stock"]
            await asyncio.sleep(0)
            s["stock"] = stock - 1

        await manager.update(session.id, take)
        sold += 1

    await asyncio.gather(*map(buy, range(24)))
    assert (await manager.load(session.id))["stock"] == 50 - sold == 26


async def test_first_requests_of_a_browser_create_the_same_keys(real_backend: Backend) -> None:
    """Parallel first writes of a key: dicts, lists and sets join instead of replacing."""
    manager = real_backend.manager()
    session = await manager.load()
    session["begun"] = True
    await manager.save(session)

    async def request(number: int) -> None:
        mine = await manager.load(session.id)
        mine.setdefault("cart", {})[f"item{number}"] = 1
        mine.setdefault("seen", []).append(number)
        mine.setdefault("tags", set()).add(number)
        await manager.save(mine)

    await asyncio.gather(*map(request, range(12)))
    final = await manager.load(session.id)
    assert len(final["cart"]) == len(final["seen"]) == len(final["tags"]) == 12


@pytest.mark.parametrize("slow_first", [True, False])
async def test_destroy_against_a_slow_commit(backend: Backend, slow_first: bool) -> None:
    await gone_is_gone(backend, slow_first=slow_first)


async def test_destroy_under_load(real_backend: Backend) -> None:
    """starsessions#58: a logout was undone by whatever request finished after it."""
    manager = real_backend.manager(merge={"n": merge.counter})
    session = await manager.load()
    session["n"] = 0
    await manager.save(session)
    gone = 0

    async def writer() -> None:
        nonlocal gone
        while True:
            mine = await manager.load(session.id)
            if mine.is_new:
                return
            mine["n"] += 1
            try:
                await manager.save(mine)
            except SessionGone:
                gone += 1

    async def logout() -> None:
        while (await manager.load(session.id))["n"] < 40:
            pass
        await manager.destroy(session.id)

    async with asyncio.timeout(20):
        await asyncio.gather(logout(), *(writer() for _ in range(8)))
    assert (await manager.load(session.id)).is_new


async def test_rotation_against_commits_in_flight(real_backend: Backend) -> None:
    manager = real_backend.manager(merge={"n": merge.counter, "log": merge.append})
    session = await manager.load()
    session.update({"n": 0, "log": []})
    await manager.save(session)
    old = session.id
    in_flight = [await manager.load(old) for _ in range(10)]

    async def finish(mine: Session, number: int) -> None:
        mine["n"] += 1
        mine["log"].append(number)
        await manager.save(mine)

    session["user"] = 42
    await asyncio.gather(
        *(finish(mine, number) for number, mine in enumerate(in_flight)), manager.rotate(session)
    )
    final = await manager.load(session.id)
    assert (final["n"], sorted(final["log"]), final["user"]) == (10, list(range(10)), 42)
    assert (await manager.load(old)).is_new


async def test_rotations_at_once_converge(real_backend: Backend) -> None:
    """express-session#923: concurrent regenerations logged the user out."""
    manager = real_backend.manager()
    session = await manager.load()
    session["cart"] = []
    await manager.save(session)
    twins = [await manager.load(session.id) for _ in range(6)]
    for number, twin in enumerate(twins):
        twin.principal = "user:42"
        twin["cart"].append(number)
    await asyncio.gather(*map(manager.rotate, twins))
    (winner,) = [twin for twin in twins if not twin.is_stale]
    final = await manager.load(winner.id)
    assert (final.principal, sorted(final["cart"])) == ("user:42", list(range(6)))
    assert len(await manager.sessions_of("user:42")) == 1


async def test_listing_does_not_unlist_a_login_under_way(real_backend: Backend) -> None:
    manager = real_backend.manager()
    done = asyncio.Event()

    async def look() -> None:
        while not done.is_set():
            await manager.sessions_of("user:42")

    async def login() -> None:
        session = await manager.load()
        session.principal = "user:42"
        await manager.save(session)

    lookers = [asyncio.create_task(look()) for _ in range(4)]
    for _ in range(5):
        await asyncio.gather(*(login() for _ in range(8)))
    done.set()
    await asyncio.gather(*lookers)
    assert len(await manager.sessions_of("user:42")) == 40


async def test_sign_out_everywhere_beats_logins_under_way(real_backend: Backend) -> None:
    """Whichever way they interleave: a login that is acknowledged later is refused, or listed."""
    manager = real_backend.manager()

    async def login() -> Session | None:
        session = await manager.load()
        session.principal = "user:42"
        try:
            await manager.save(session)
        except SessionGone:
            return None
        return session

    for _ in range(10):
        ending = asyncio.create_task(manager.destroy_all("user:42"))
        sessions = await asyncio.gather(*(login() for _ in range(8)))
        await ending
        alive = {
            s.incarnation
            for s in sessions
            if s is not None and not (await manager.load(s.id)).is_new
        }
        assert {s.incarnation for s in await manager.sessions_of("user:42")} == alive
        assert await manager.destroy_all("user:42") == len(alive)
