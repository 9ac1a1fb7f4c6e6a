"""Web servers, browsers and handlers for tests of the integrations."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import httpx
import uvicorn
import websockets
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from asyncsession import SessionManager, merge
from asyncsession.blob import encode_frame
from asyncsession.delta import Op
from asyncsession.ids import session_handle, store_key
from asyncsession.integrations.asgi import SessionMiddleware
from asyncsession.integrations.cookies import Cookie
from asyncsession.transport import embedded

__all__ = [
    "CLEARED",
    "Gate",
    "Handler",
    "answering",
    "call",
    "connect",
    "cookie",
    "cookies_of",
    "count",
    "look",
    "make_app",
    "open_manager",
    "plain",
    "serve",
    "stored",
    "stored_by_a_newer_version",
    "unreachable_manager",
]

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]

CLEARED = Cookie(secure=False).clear()
"""What `SessionMiddleware` with `secure=False` sends to clear its cookie."""


@asynccontextmanager
async def open_manager(**options: Any) -> AsyncIterator[SessionManager]:
    """Yield a manager on a real server of this process, with a prefix of its own."""
    policies: dict[str, Any] = {"views": merge.counter, "seat": merge.reject}
    defaults: dict[str, Any] = {"prefix": secrets.token_hex(4), "merge": policies}
    async with SessionManager(
        "embedded://web", **{**defaults, "max_bytes": 2048, **options}
    ) as manager:
        yield manager


@asynccontextmanager
async def unreachable_manager() -> AsyncIterator[SessionManager]:
    """Yield a manager whose Redis refuses connections."""
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{bound.getsockname()[1]}"
        async with SessionManager(url, timeout=0.1) as manager:
            yield manager


@asynccontextmanager
async def serve(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an ASGI application in this event loop; yield a browser that keeps cookies."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # connections queue up from here on
        port = listener.getsockname()[1]
        config = uvicorn.Config(app, log_config=None, ws="websockets-sansio", access_log=False)
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as browser:
                yield browser
        finally:
            server.should_exit = True
            await running


def connect(browser: httpx.AsyncClient, path: str, session_id: str = "") -> websockets.connect:
    """Open a WebSocket to the server of `browser`."""
    url = f"ws://127.0.0.1:{browser.base_url.port}{path}"
    headers = cookie(session_id) if session_id else {}
    return websockets.connect(url, additional_headers=headers, proxy=None)


async def call(app: Any, *headers: tuple[bytes, bytes], **scope: Any) -> list[dict[str, Any]]:
    """Call an ASGI application once, and return what it sent."""
    sent: list[dict[str, Any]] = []
    is_websocket = scope.get("type") == "websocket"
    is_connected = not is_websocket

    async def receive() -> MutableMapping[str, Any]:
        nonlocal is_connected
        is_connected = True
        if is_websocket:
            return {"type": "websocket.connect"}
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        assert is_connected, "there is nothing to answer yet"
        sent.append(dict(message))

    basic = {"type": "http", "method": "GET", "path": "/", "query_string": b""}
    await app({**basic, "headers": list(headers), **scope}, receive, send)
    return sent


def answering(*headers: tuple[bytes, bytes], values: dict[str, Any] | None = None) -> Any:
    """Return an application that puts values into its session and answers with headers."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"].update(values or {})
        await send({"type": "http.response.start", "status": 200, "headers": iter(headers)})
        await send({"type": "http.response.body", "body": b"secret"})

    return app


def make_app(
    manager: SessionManager,
    *handlers: Handler,
    inside: Any = (),
    exception_handlers: Any = None,
    **options: Any,
) -> Starlette:
    """Return an application that serves each handler under its name, and below `/sub`.

    Args:
        inside: middleware between the session's and the handlers.
        exception_handlers: of Starlette.
        options: for SessionMiddleware.
    """
    routes = [Route(f"/{handler.__name__}", handler) for handler in handlers]
    if not {"header", "secure"} & set(options):
        options["secure"] = False
    session = Middleware(SessionMiddleware, manager=manager, **options)
    mount = Mount("/sub", app=Starlette(routes=routes))
    return Starlette(
        routes=[*routes, mount],
        middleware=[session, *inside],
        exception_handlers=exception_handlers,
    )


async def stored(manager: SessionManager, **values: Any) -> str:
    """Return the id of a new session with these values."""
    session = await manager.load()
    session.update(values)
    await manager.save(session)
    return session.id


async def stored_by_a_newer_version(manager: SessionManager) -> str:
    """Return the id of a session that loads, and has a value of a type that nobody knows yet."""
    session_id = await stored(manager, a=1)
    key = store_key(manager._settings.prefix, session_handle(session_id))
    frame = encode_frame({"new": bytes((Op.SET,)) + b"\xd4\x63\x00"})
    async with Redis(unix_socket_path=embedded.socket_path("web")) as redis:
        stamp: Any = await redis.getrange(key, -22, -17)
        whole: Any = frame + stamp + secrets.token_bytes(16)
        await redis.append(key, whole)
    return session_id


def cookie(session_id: str) -> dict[str, str]:
    """Return the request headers that send an id."""
    return {"cookie": f"session={session_id}"}


def cookies_of(response: httpx.Response) -> list[str]:
    """Return the Set-Cookie headers of a response."""
    return response.headers.get_list("set-cookie")


async def plain(request: Request) -> Response:
    """Ignore the session."""
    return PlainTextResponse("hello")


async def look(request: Request) -> Response:
    """Show the session."""
    return JSONResponse(dict(request.session))


async def count(request: Request) -> Response:
    """Count a view."""
    request.session["views"] = request.session.get("views", 0) + 1
    return PlainTextResponse(str(request.session["views"]))


class Gate:
    """A handler that reads its session, waits, and then changes it."""

    def __init__(self, **values: Any) -> None:
        self._entered, self._open = asyncio.Event(), asyncio.Event()
        self._values = values

    async def slow(self, request: Request) -> Response:
        """Serve a request."""
        dict(request.session)
        self._entered.set()
        await self._open.wait()
        request.session.update(self._values)
        return PlainTextResponse("slow")

    async def hold(
        self, request: Awaitable[httpx.Response], meanwhile: Awaitable[Any]
    ) -> httpx.Response:
        """Let `meanwhile` happen while a request for `slow` waits; return the response to it."""
        task = asyncio.ensure_future(request)
        await self._entered.wait()
        await meanwhile
        self._open.set()
        return await task
