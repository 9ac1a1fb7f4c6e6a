"""Quart applications on real servers, for tests of the integration."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import hypercorn.asyncio
import hypercorn.config
import quart

from asyncsession import SessionManager
from asyncsession.integrations.quart import SessionInterface
from support import web

__all__ = ["SERVERS", "make_app", "serve"]


def make_app(
    manager: SessionManager,
    *views: Callable[..., Any],
    config: dict[str, Any] | None = None,
    **options: Any,
) -> quart.Quart:
    """Return an application that serves each view under its name, by GET and POST."""
    app = quart.Quart(__name__)
    app.config |= config or {}
    app.session_interface = SessionInterface(manager, **options)  # type: ignore[assignment]
    for view in views:
        app.add_url_rule(f"/{view.__name__}", view_func=view, methods=["GET", "POST"])
    return app


@asynccontextmanager
async def _hypercorn(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listener.detach()}"]  # which the server closes
    config.errorlog = None
    stop = asyncio.Event()
    serving = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait))
    try:
        async with httpx.AsyncClient(base_url=url) as browser:
            yield browser
    finally:
        stop.set()
        await serving


SERVERS: dict[str, Callable[[Any], Any]] = {"uvicorn": web.serve, "hypercorn": _hypercorn}


def serve(app: Any, server: str = "uvicorn") -> Any:
    """Serve an ASGI application in this event loop; a context with a browser that keeps cookies."""
    return SERVERS[server](app)
