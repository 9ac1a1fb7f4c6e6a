"""Applications and handlers on aiohttp-session's API, for tests of our storage for it."""

from __future__ import annotations

from typing import Any

import aiohttp_session
from aiohttp import web
from aiohttp_session import get_session, new_session

from asyncsession import SessionManager
from asyncsession.integrations.aiohttp_session import Storage
from support.aiohttp import Gate, Handler, fill

__all__ = ["SlowGate", "count", "login", "logout", "look", "make_app"]


def make_app(manager: SessionManager, *handlers: Handler, **options: Any) -> web.Application:
    """Return an application that serves each handler under its name.

    Args:
        manager: behind the storage.
        handlers: on aiohttp-session's API.
        options: for `Storage`.
    """
    app = web.Application()
    aiohttp_session.setup(app, Storage(manager, **({"secure": False} | options)))
    fill(app, *handlers)
    return app


async def look(request: web.Request) -> web.Response:
    """Show the session."""
    return web.json_response(dict(await get_session(request)))


async def count(request: web.Request) -> web.Response:
    """Count a view."""
    session = await get_session(request)
    session["views"] = session.get("views", 0) + 1
    return web.Response(text=str(session["views"]))


async def login(request: web.Request) -> web.Response:
    """Log in, as that library advises to, and send the browser elsewhere."""
    session = await new_session(request)
    session["user"] = 42
    raise web.HTTPSeeOther("/look")


async def logout(request: web.Request) -> web.Response:
    """Log out, as that library advises to."""
    (await get_session(request)).invalidate()
    return web.Response()


class SlowGate(Gate):
    """A `Gate` on that library's API."""

    async def slow(self, request: web.Request) -> web.Response:
        """Serve a request."""
        session = await get_session(request)
        await self.wait()
        session.update(self.values)
        return web.Response(text="slow")
