"""The peers: each library's own Redis store and session code, without the HTTP around it.

What a peer does to cookies and headers is left out where its interfaces allow that, in its favour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import aiohttp_session
import starsessions
from aiohttp import web
from aiohttp_session.redis_storage import RedisStorage
from litestar.middleware.session.server_side import (
    ServerSideSessionBackend,
    ServerSideSessionConfig,
)
from litestar.stores.redis import RedisStore as LitestarStore
from starlette.requests import HTTPConnection
from starsessions.session import SessionHandler
from starsessions.stores.redis import RedisStore as StarStore

from bench.contenders.base import Change, RedisContender
from bench.shapes import LIFETIME

__all__ = ["AiohttpSession", "Litestar", "Starsessions"]

T = TypeVar("T")


class Starsessions(RedisContender):
    """Its handler, Redis store and JSON serializer, as its middleware uses them."""

    name = "starsessions"
    sends = frozenset({"get", "set"})

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._store = StarStore(connection=self._redis)
        self._serializer = starsessions.JsonSerializer()

    async def create(self, content: Mapping[str, Any]) -> str:
        handler = await self._load(None)
        handler.connection.session.update(content)
        return await handler.save(LIFETIME)

    async def change(self, session_id: str, change: Change) -> int:
        handler = await self._load(session_id)
        change(handler.connection.session)
        await handler.save(LIFETIME)
        return 1

    async def read(self, session_id: str, look: Callable[[Mapping[str, Any]], T]) -> T:
        return look((await self._load(session_id)).connection.session)

    async def _load(self, session_id: str | None) -> SessionHandler:
        connection = HTTPConnection({"type": "http", "session": {}})
        handler = SessionHandler(connection, session_id, self._store, self._serializer, LIFETIME)
        await handler.load()
        return handler


class AiohttpSession(RedisContender):
    """Its Redis storage; the request is a stand-in that has the cookie."""

    name = "aiohttp-session"
    sends = frozenset({"get", "set"})

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._storage = RedisStorage(self._redis, max_age=LIFETIME)

    async def create(self, content: Mapping[str, Any]) -> str:
        session, response = await self._storage.new_session(), web.Response()
        session.update(content)
        await self._storage.save_session(_request(), response, session)
        return response.cookies[self._storage.cookie_name].value

    async def change(self, session_id: str, change: Change) -> int:
        session = await self._load(session_id)
        change(session)
        session.changed()
        await self._storage.save_session(_request(), web.Response(), session)
        return 1

    async def read(self, session_id: str, look: Callable[[Mapping[str, Any]], T]) -> T:
        return look(await self._load(session_id))

    async def _load(self, session_id: str) -> aiohttp_session.Session:
        cookie = {self._storage.cookie_name: session_id}
        return await self._storage.load_session(_request(cookie))


class Litestar(RedisContender):
    """Its server-side session backend on its Redis store, JSON by msgspec."""

    name = "Litestar"
    sends = frozenset({"get", "set"})

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._store = LitestarStore(self._redis)
        self._backend = ServerSideSessionBackend(ServerSideSessionConfig(max_age=LIFETIME))

    async def create(self, content: Mapping[str, Any]) -> str:
        session_id = self._backend.generate_session_id()
        await self._save(session_id, dict(content))
        return session_id

    async def change(self, session_id: str, change: Change) -> int:
        session = await self._load(session_id)
        change(session)
        await self._save(session_id, session)
        return 1

    async def read(self, session_id: str, look: Callable[[Mapping[str, Any]], T]) -> T:
        return look(await self._load(session_id))

    async def _load(self, session_id: str) -> dict[str, Any]:
        stored = await self._backend.get(session_id, self._store)
        return self._backend.deserialize_data(stored)

    async def _save(self, session_id: str, session: dict[str, Any]) -> None:
        await self._backend.set(session_id, self._backend.serialize_data(session), self._store)


def _request(cookies: Mapping[str, str] | None = None) -> web.Request:
    return cast("web.Request", SimpleNamespace(cookies=cookies or {}))
