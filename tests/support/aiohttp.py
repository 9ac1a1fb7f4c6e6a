"""An aiohttp web server, browsers and handlers for tests of that integration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import aiohttp
import httpx
from aiohttp import web

from asyncsession import SessionManager
from asyncsession.integrations.aiohttp import get_session, setup

__all__ = [
    "MANAGER",
    "PATIENCE",
    "Gate",
    "Handler",
    "count",
    "fill",
    "login",
    "logout",
    "look",
    "make_app",
    "open_socket",
    "plain",
    "serve",
    "visit",
]

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

PATIENCE = 10.0  # seconds after which a test gives up; none waits so long
MANAGER = web.AppKey("manager", SessionManager)


def make_app(manager: SessionManager | None, *handlers: Handler, **options: Any) -> web.Application:
    """Return an application that serves each handler under its name.

    Args:
        manager: None for an application without sessions of its own.
        options: for `setup`.
    """
    app = web.Application()
    if manager is not None:
        if not {"header", "secure"} & set(options):
            options["secure"] = False
        setup(app, manager, **options)
        app[MANAGER] = manager
    fill(app, *handlers)
    return app


def fill(app: web.Application, *handlers: Handler) -> None:
    """Let an application serve each handler under its name."""
    for handler in handlers:
        app.router.add_route("*", f"/{handler.__name__}", handler)


@asynccontextmanager
async def serve(app: web.Application, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an application by aiohttp's own server in this event loop; yield a browser.

    Args:
        app: the application.
        options: for `web.AppRunner`.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1, **options)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as browser:
            yield browser
    finally:
        await runner.cleanup()


@asynccontextmanager
async def open_socket(
    browser: httpx.AsyncClient, path: str, headers: dict[str, str]
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """Open a WebSocket to the server that a browser of `serve` talks to."""
    async with (
        asyncio.timeout(PATIENCE),
        aiohttp.ClientSession(str(browser.base_url)) as client,
        client.ws_connect(path, headers=headers) as websocket,
    ):
        yield websocket


async def plain(request: web.Request) -> web.Response:
    """Ignore the session."""
    return web.Response(text="hello")


async def look(request: web.Request) -> web.Response:
    """Show the session."""
    return web.json_response(dict(await get_session(request)))


async def count(request: web.Request) -> web.Response:
    """Count a view."""
    session = await get_session(request)
    session["views"] = session.get("views", 0) + 1
    return web.Response(text=str(session["views"]))


async def login(request: web.Request) -> web.Response:
    """Log in, which moves the session to a new id."""
    session = await get_session(request)
    session["user"] = 42
    await request.config_dict[MANAGER].rotate(session)
    return web.Response(text="welcome")


async def logout(request: web.Request) -> web.Response:
    """Log out, and send the browser elsewhere."""
    await request.config_dict[MANAGER].destroy(await get_session(request))
    raise web.HTTPSeeOther("/")


async def visit(request: web.Request) -> web.Response:
    """Do what each of many parallel requests does: count, fill the cart, set a key of its own."""
    session = await get_session(request)
    item = request.query["item"]
    session["views"] = session.get("views", 0) + 1
    session.setdefault("cart", []).append(item)
    session[f"item:{item}"] = True
    await asyncio.sleep(0.002)  # work, during which the others come in
    return web.Response()


class Gate:
    """A handler that reads its session, waits, and then changes it.

    Attributes:
        entered: a request is waiting.
        values: what it changes.
    """

    def __init__(self, **values: Any) -> None:
        self.entered, self._open = asyncio.Event(), asyncio.Event()
        self.values = values

    async def slow(self, request: web.Request) -> web.Response:
        """Serve a request."""
        session = await get_session(request)
        dict(session)
        await self.wait()
        session.update(self.values)
        return web.Response(text="slow")

    async def wait(self) -> None:
        """Wait, inside a handler, for what `hold` lets happen meanwhile."""
        self.entered.set()
        await self._open.wait()

    async def hold(
        self, request: Awaitable[httpx.Response], meanwhile: Awaitable[Any]
    ) -> httpx.Response:
        """Let `meanwhile` happen while a request waits; return the response to it."""
        task = asyncio.ensure_future(request)
        await self.entered.wait()
        await meanwhile
        self._open.set()
        return await task
