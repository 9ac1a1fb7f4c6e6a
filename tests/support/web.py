"""Web servers and clients for tests: uvicorn in the test's own event loop, and ASGI by hand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn

__all__ = ["call", "cookies_of", "serve"]


@asynccontextmanager
async def serve(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an ASGI application on a port of 127.0.0.1; yield a browser that keeps cookies."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # connections queue up from here on
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", access_log=False))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as browser:
                yield browser
        finally:
            server.should_exit = True
            await running


def cookies_of(response: httpx.Response) -> list[str]:
    """Return the Set-Cookie headers of a response."""
    return response.headers.get_list("set-cookie")


async def call(app: Any, *headers: tuple[bytes, bytes], **scope: Any) -> list[dict[str, Any]]:
    """Call an ASGI application once, and return what it sent."""
    sent: list[dict[str, Any]] = []
    received = iter(
        [{"type": "websocket.connect"}]
        if scope.get("type") == "websocket"
        else [{"type": "http.request", "body": b"", "more_body": False}]
    )

    async def receive() -> MutableMapping[str, Any]:
        return next(received)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(dict(message))

    basic = {"type": "http", "method": "GET", "path": "/", "query_string": b""}
    await app({**basic, "headers": list(headers), **scope}, receive, send)
    return sent
