"""`CommitMiddleware` on an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from django.contrib.sessions.backends.base import UpdateError
from django.test import AsyncClient
from support.django import COOKIE, database, engine, in_thread
from support.django_site import change
from support.django_way import HAS_AWAITED_MAPPING
from support.servers import Server

from asyncsession import StoreUnavailable
from asyncsession.integrations.django import SessionStore, aclose
from asyncsession.integrations.django.config import BlockingManager


@pytest.fixture(autouse=True)
async def store(get_server: Callable[[str], Server]) -> AsyncIterator[None]:
    await in_thread(database)
    with engine(get_server("valkey9").url):
        yield
        await aclose()


async def test_views_of_threads_behind_an_event_loop() -> None:
    """The session is loaded in a thread, and committed by the loop."""
    browser = AsyncClient()
    for item in "ab":
        assert (await browser.get(f"/visit/{item}")).status_code == 200
    assert (await browser.get("/look")).json()["cart"] == ["a", "b"]
    response = await browser.get("/plain")
    assert not response.cookies


@pytest.mark.skipif(not HAS_AWAITED_MAPPING, reason="Django before 5.1 has no methods to await")
async def test_the_middleware_awaits(caplog: pytest.LogCaptureFixture) -> None:
    """And where Django has no thread to wait in, nothing blocks."""
    store = SessionStore()
    await store.aset("seat", 1)
    await store.asave()
    key = store.session_key
    browser = AsyncClient(raise_request_exception=False)
    browser.cookies[COOKIE] = key

    async def act(request: Any) -> None:
        await request.session.aset("seat", 2)
        other = SessionStore(key)
        await other.aset("seat", 3)
        await other.asave()

    change["act"] = act
    assert (await browser.post("/a/do/act")).status_code == 409

    async def fail(request: Any) -> None:
        raise StoreUnavailable("down")

    async def vanish(request: Any) -> None:
        raise UpdateError

    for act, status in ((fail, 503), (vanish, 409)):
        change["act"] = act
        assert (await browser.post("/a/do/act")).status_code == status


@pytest.mark.skipif(not HAS_AWAITED_MAPPING, reason="Django before 5.1 has no methods to await")
async def test_an_asynchronous_request_waits_in_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("it waits in a thread")

    monkeypatch.setattr(BlockingManager, "run", fail)
    browser = AsyncClient()
    for item in "ab":
        assert (await browser.get(f"/a/visit/{item}")).status_code == 200
    assert (await browser.get("/a/look")).json()["cart"] == ["a", "b"]
    assert (await browser.get("/a/logout")).cookies[COOKIE].value == ""
