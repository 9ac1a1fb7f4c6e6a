"""The page: it counts its browser's visits in the session, or there is no session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from redis.asyncio import Redis
from starsessions import SessionAutoloadMiddleware
from starsessions import SessionMiddleware as StarMiddleware
from starsessions.stores.redis import RedisStore

from asyncsession import SessionManager, merge
from asyncsession.integrations.fastapi import SessionMiddleware
from bench.shapes import LIFETIME

__all__ = ["KINDS", "create_app"]


def create_app(kind: str, url: str) -> FastAPI:
    """Return an application of a kind of `KINDS`, with its sessions in the server at `url`."""
    return KINDS[kind](url)


async def _counted(request: Request) -> dict[str, int]:
    session = request.session
    session["views"] = session.get("views", 0) + 1
    return {"views": session["views"]}


def _bare(_url: str) -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def _page() -> dict[str, int]:
        return {"views": 0}

    return app


def _with_asyncsession(url: str) -> FastAPI:
    manager = SessionManager(url, idle_timeout=LIFETIME, merge={"views": merge.counter})

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with manager:
            yield

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(SessionMiddleware, manager=manager, secure=False)

    app.get("/")(_counted)
    return app


def _with_starsessions(url: str) -> FastAPI:
    redis: Redis = Redis.from_url(url)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with redis:
            yield

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(SessionAutoloadMiddleware)
    app.add_middleware(
        StarMiddleware,
        store=RedisStore(connection=redis),
        lifetime=LIFETIME,
        rolling=True,
        cookie_https_only=False,
    )

    app.get("/")(_counted)
    return app


KINDS = {
    "asyncsession": _with_asyncsession,
    "starsessions": _with_starsessions,
    "no session": _bare,
}
