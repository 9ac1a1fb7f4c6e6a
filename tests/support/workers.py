"""A FastAPI application on uvicorn with two worker processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI

from asyncsession import SessionManager, merge
from asyncsession.integrations.fastapi import CurrentSession, SessionMiddleware
from support.processes import read_line, run

__all__ = ["create_app", "main", "serve_by_two"]

_SLOW = 0.02  # seconds in which other requests change the same session


def create_app() -> FastAPI:
    """Return the application; the store is named by the environment."""
    manager = SessionManager(
        os.environ["STORE"], prefix=os.environ["PREFIX"], merge={"views": merge.counter}
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with manager:
            yield

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(SessionMiddleware, manager=manager, secure=False)

    @app.get("/mark/{item}")
    async def mark(item: str, session: CurrentSession) -> int:
        """Count, put the item into a list and set a key of its own; return the process."""
        session["views"] = session.get("views", 0) + 1
        session.setdefault("items", []).append(item)
        session[f"item:{item}"] = True
        await asyncio.sleep(_SLOW)
        return os.getpid()

    @app.get("/login")
    async def login(session: CurrentSession) -> None:
        session["user"], session.principal = 42, "user:42"
        await manager.rotate(session)

    @app.get("/logout")
    async def logout(session: CurrentSession) -> None:
        await manager.destroy(session)

    return app


def main() -> None:
    """Serve until the standard input ends, which it does with the parent; print the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.run(
        "support.workers:create_app",
        factory=True,
        workers=2,
        fd=listener.fileno(),
        log_config=None,
        access_log=False,
    )


def _stop_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


@asynccontextmanager
async def serve_by_two(store: str, prefix: str) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the application by two processes; yield a browser that keeps cookies."""
    script = (
        f"import os; os.environ |= {{'STORE': {store!r}, 'PREFIX': {prefix!r}}}\n"
        "from support.workers import main\n"
        "main()"
    )
    process = await asyncio.to_thread(run, script)
    try:
        port = await asyncio.to_thread(read_line, process)
        limits = httpx.Limits(max_connections=60, max_keepalive_connections=0)
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as browser:
            yield browser
    finally:
        await asyncio.to_thread(process.communicate)
