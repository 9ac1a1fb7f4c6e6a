"""`set_expiry`: what the cookie is told, when the session ends, how long the store keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.conf import settings
from redis import Redis
from support.django import engine
from support.django_way import HAS_AWAITED_MAPPING, Way
from support.servers import Server

from asyncsession.ids import session_handle
from asyncsession.integrations.django import SessionStore, aclose, expiry
from asyncsession.integrations.django.config import current

IDLE = 1000


@pytest.fixture
def server(get_server: Callable[[str], Server]) -> Iterator[Server]:
    server = get_server("valkey9")
    with engine(server.url, IDLE_TIMEOUT=IDLE, ABSOLUTE_TIMEOUT=10 * IDLE):
        yield server


@pytest.fixture(params=["blocking", "awaited"])
async def way(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Way]:
    if request.param == "awaited" and not HAS_AWAITED_MAPPING:
        pytest.skip("Django before 5.1 has no methods to await")
    yield Way(request.param == "awaited")
    await aclose()


def later(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("value", "age", "at_close"),
    [
        (None, settings.SESSION_COOKIE_AGE, False),
        (0, settings.SESSION_COOKIE_AGE, True),
        (10, 10, False),
        (timedelta(seconds=10), 10, False),
        ("in an hour", 3600, False),
    ],
    ids=["none", "at-close", "seconds", "timedelta", "date"],
)
async def test_what_the_cookie_is_told(way: Way, value: Any, age: int, at_close: bool) -> None:
    store = SessionStore()
    await way(store, "set_expiry", 99)
    await way(store, "set_expiry", later(3600) if value == "in an hour" else value)
    assert abs(await way(store, "get_expiry_age") - age) <= 30
    date = await way(store, "get_expiry_date")
    assert abs(date - later(age)) < timedelta(seconds=30)
    assert await way(store, "get_expire_at_browser_close") is at_close


@pytest.mark.parametrize(
    "value", [-10, timedelta(seconds=-10), later(-10)], ids=["seconds", "timedelta", "date"]
)
async def test_a_session_that_has_expired_is_none(way: Way, value: Any) -> None:
    store = SessionStore(key := await way.stored(a=1))
    await way(store, "set_expiry", value)
    await way(store, "save")
    assert not await way(store, "exists", key)
    assert await way.shown(key) == {}
    assert await way(SessionStore(key), "get_expiry_age") == settings.SESSION_COOKIE_AGE


async def test_seconds_count_from_the_last_save(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SessionStore(key := await way.stored(a=1))
    await way(store, "set_expiry", 100)
    await way(store, "save")
    now = expiry._now(current().blocking.settings)
    for passed, change, is_there in [(90, False, True), (99, True, True), (190, False, True),
                                     (201, False, False)]:  # fmt: skip
        monkeypatch.setattr(expiry, "_now", lambda _, passed=passed: now + passed)
        store = SessionStore(key)
        assert await way(store, "has_key", "a") is is_there, passed
        if change:
            await way(store, "set", "a", 2)
            await way(store, "save")


async def test_it_is_put_off_by_each_change_and_else_now_and_then(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else is `SESSION_SAVE_EVERY_REQUEST`."""
    store = SessionStore(key := await way.stored(a=1))
    await way(store, "set_expiry", 100)
    await way(store, "save")
    now = expiry._now(current().blocking.settings)
    for passed, change, is_written in [(5, {}, False), (6, {"a": 2}, True), (17, {}, True)]:
        monkeypatch.setattr(expiry, "_now", lambda _, passed=passed: now + passed)
        store = SessionStore(key)
        before = (await way.shown(key))[expiry.ENDS]
        await way(store, "update", change)
        await way(store, "save")
        assert ((await way.shown(key))[expiry.ENDS] > before) is is_written


def kept(server: Server, key: str) -> float:
    """Return for how many seconds the store keeps a session; to load it would put that off."""
    name = current().blocking.settings.key(session_handle(key))
    with Redis.from_url(server.url) as redis:
        return int(redis.pttl(name)) / 1000


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, IDLE),
        (0, IDLE),
        (10, IDLE),  # what it holds ends it, and a request that does not know must not
        (3 * IDLE, 3 * IDLE),
        (timedelta(seconds=3 * IDLE), 3 * IDLE),
        (100 * IDLE, 10 * IDLE),  # the absolute timeout
    ],
    ids=str,
)
async def test_how_long_the_store_keeps_it(
    way: Way, server: Server, value: Any, seconds: float
) -> None:
    store = SessionStore(key := await way.stored(a=1))
    await way(store, "set_expiry", value)
    await way(store, "save")
    assert abs(await asyncio.to_thread(kept, server, key) - seconds) < 30


async def test_a_request_that_does_not_know_shortens_nothing(way: Way, server: Server) -> None:
    key = await way.stored(a=1)
    unaware, remember_me = SessionStore(key), SessionStore(key)
    await way(unaware, "set", "b", 2)
    await way(remember_me, "set_expiry", 3 * IDLE)
    await way(remember_me, "save")
    await way(unaware, "save")
    assert abs(await asyncio.to_thread(kept, server, key) - 3 * IDLE) < 30


async def test_taking_a_custom_expiry_back(way: Way) -> None:
    store = SessionStore(key := await way.stored(a=1))
    await way(store, "set_expiry", 100)
    await way(store, "save")
    await way(store, "set_expiry", None)
    await way(store, "save")
    assert await way.shown(key) == {"a": 1}
