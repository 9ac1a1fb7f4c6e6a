"""The stores that the conformance suite runs on, behind one shape."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import fakeredis
import pytest
from redis.asyncio import Redis, RedisCluster
from redis.driver_info import DriverInfo

from asyncsession import SessionManager, SyncSessionManager
from asyncsession.transport import embedded, fake
from support.cluster import Cluster
from support.sentinel import SentinelGroup
from support.threads import InThreads

__all__ = ["BACKENDS", "EVERYWHERE", "REAL", "TOPOLOGIES", "WITH_SOAK", "Backend", "open_backend"]

SYNC_MARK = "sync-"  # the same store behind a `SyncSessionManager`, one thread for each call
REAL = ("embedded", "valkey9", "redis8", "redis-system")
TOPOLOGIES = ("cluster", "sentinel")
BACKENDS = ("memory", *REAL)
_ONE = tuple(f"{mark}{name}" for mark in ("", SYNC_MARK) for name in BACKENDS)
_SEVERAL = tuple(f"{mark}{name}" for mark in ("", SYNC_MARK) for name in TOPOLOGIES)
EVERYWHERE = (*_ONE, *_SEVERAL)
WITH_SOAK = (*_ONE, *(pytest.param(name, marks=pytest.mark.soak) for name in _SEVERAL))

_DRIVER = DriverInfo()  # made once: redis-py looks its version up on disk for each

fakeredis.FakeRedis().ping()  # the first one reads tables from disk, which would block the loop


class Backend:
    """One store, and a prefix of the test's own in it.

    Attributes:
        name: as in `EVERYWHERE`.
        prefix: of every key of the test.
        redis: a plain client, to look at what is stored.
        port: of the server, where it has one.
    """

    def __init__(self, name: str, url: str, redis: Any, port: int | None) -> None:
        self.name = name
        self.url = url
        self.redis = redis
        self.port = port
        self.prefix = f"test-{uuid.uuid4().hex[:12]}"
        self._managers: list[SessionManager] = []

    def manager(self, url: str | None = None, **options: Any) -> SessionManager:
        """Return a manager on this store; it is closed when the test ends."""
        options = {"prefix": self.prefix} | options
        manager: Any
        if self.name.startswith(SYNC_MARK):
            manager = InThreads(SyncSessionManager(url or self.url, **options))
        else:
            manager = SessionManager(url or self.url, **options)
        self._managers.append(manager)
        return manager  # type: ignore[no-any-return]  # the facade has the same verbs

    async def keys(self) -> list[bytes]:
        """Return the test's keys."""
        return [key async for key in self.redis.scan_iter(match=f"{self.prefix}:*", count=1000)]

    async def aclose(self) -> None:
        for manager in self._managers:
            await manager.aclose()
        for key in await self.keys():
            await self.redis.delete(key)
        await self.redis.aclose()


@asynccontextmanager
async def open_backend(name: str, get_server: Callable[[str], Any]) -> AsyncIterator[Backend]:
    """Open a store by its name in `EVERYWHERE`; skip the test if this machine lacks it."""
    port = None
    redis: Any
    kind = name.removeprefix(SYNC_MARK)
    if kind == "memory":
        url = f"memory://{uuid.uuid4().hex}"
        fake.of_url(url)
        redis = fakeredis.FakeAsyncRedis(server=fake._servers[url.partition("://")[2]])
    elif kind == "embedded":
        url = "embedded://conformance"
        path = await asyncio.to_thread(embedded.socket_path, "conformance")
        redis = Redis(unix_socket_path=path, driver_info=_DRIVER)
    elif kind == "cluster":
        cluster: Cluster = await asyncio.to_thread(get_server, kind)
        url = cluster.url
        redis = RedisCluster(port=cluster.nodes[0].port, host="127.0.0.1")
    elif kind == "sentinel":
        group: SentinelGroup = await asyncio.to_thread(get_server, kind)
        url = group.url
        redis = Redis.from_url((await asyncio.to_thread(group.master)).url, driver_info=_DRIVER)
    else:
        server = await asyncio.to_thread(get_server, kind)
        url, port = server.url, server.port
        redis = Redis.from_url(url, driver_info=_DRIVER)
    backend = Backend(name, url, redis, port)
    try:
        yield backend
    finally:
        await backend.aclose()
