"""The application under race: the same page four times, each with its session kept another way."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from redis.asyncio import Redis

from asyncsession import SessionManager, merge
from asyncsession.demo.stores import LockedStore, ReadModifyWriteStore, WatchedStore
from asyncsession.demo.ways import COOKIE, OWN_KEY, WORK
from asyncsession.integrations.fastapi import CurrentSession, SessionMiddleware
from asyncsession.transport import embedded

__all__ = ["create_app"]

_PATIENCE = 20.0  # seconds that a request waits for its session before it answers 503
_MAX_CONNECTIONS = 256  # enough for every request that the command lets run at once
_MAX_BYTES = 2**20  # for some thousands of requests, each of which leaves a key and an item


async def visit(session: MutableMapping[str, Any], item: str) -> None:
    """Do what every request does: count, fill the cart, set a key of its own, and some work."""
    session["views"] = session.get("views", 0) + 1
    session.setdefault("cart", []).append(item)
    session[OWN_KEY + item] = True
    await asyncio.sleep(WORK)


def create_app() -> FastAPI:
    """Return the application, on an embedded Valkey that ends with this process."""
    path = embedded.socket_path()
    redis = Redis(unix_socket_path=path, max_connections=_MAX_CONNECTIONS)
    manager = SessionManager(
        f"unix://{path}",
        merge={"views": merge.counter, "cart": merge.union},
        max_bytes=_MAX_BYTES,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with manager, redis:
            yield

    app = FastAPI(lifespan=lifespan)
    app.mount("/read-modify-write", _with_store(ReadModifyWriteStore(redis, "plain")))
    app.mount("/lock", _with_store(LockedStore(redis, "locked")))
    app.mount("/watch", _with_store(WatchedStore(redis, "watched")))
    app.mount("/asyncsession", _with_asyncsession(manager))
    return app


def _with_asyncsession(manager: SessionManager) -> FastAPI:
    app = FastAPI()
    app.add_middleware(SessionMiddleware, manager=manager, secure=False)

    @app.post("/visit/{item}")
    async def _visit(item: str, session: CurrentSession) -> dict[str, int]:
        await visit(session, item)
        # Only to count the attempts: without this line the middleware saves.
        commit = await manager.save(session)
        return {"attempts": commit.attempts}

    @app.get("/session")
    async def _session(session: CurrentSession) -> dict[str, Any]:
        return dict(session)

    return app


def _with_store(store: ReadModifyWriteStore) -> FastAPI:
    app = FastAPI()

    @app.post("/visit/{item}")
    async def _visit(item: str, session_id: _SessionId) -> dict[str, int]:
        try:
            async with asyncio.timeout(_PATIENCE):
                attempts = await store.change(session_id, partial(visit, item=item))
        except TimeoutError:
            raise HTTPException(503, "the session was not to be had in time") from None
        return {"attempts": attempts}

    @app.get("/session")
    async def _session(session_id: _SessionId) -> dict[str, Any]:
        return await store.read(session_id)

    return app


def _session_id(request: Request, response: Response) -> str:
    session_id = request.cookies.get(COOKIE)
    if session_id is None:
        session_id = secrets.token_urlsafe(32)
        response.set_cookie(COOKIE, session_id, httponly=True, samesite="lax")
    return session_id


_SessionId = Annotated[str, Depends(_session_id)]
