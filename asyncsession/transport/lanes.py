"""Which lane a call takes: those of its event loop, on connections as redis-py would open them.

redis-py's client is not used: it replays scripts on its own, and it lends a connection out again
while a reply may still be on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import chain, cycle
from typing import Any
from weakref import WeakKeyDictionary, ref

import anyio.to_thread
from redis.asyncio import Connection, ConnectionPool, Redis, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from asyncsession import forks
from asyncsession.errors import ConfigurationError
from asyncsession.protocol import Call, Transport
from asyncsession.scripts import SCRIPTS
from asyncsession.transport import embedded
from asyncsession.transport.faults import after_sending
from asyncsession.transport.lane import Lane
from asyncsession.transport.options import Options, check, for_connection, read_url, words_of

__all__ = ["LaneTransport", "of_client", "of_embedded", "of_url"]

_inherited: list[Lane] = []
"""Lanes of a parent process. Collecting them would close sockets and poll sets that are its own."""


def of_url(url: str, count: int) -> Transport:
    """Return the transport for a URL of redis-py's kind, with so many lanes for each event loop.

    Raises:
        ConfigurationError: redis-py does not understand it.
    """
    options = read_url(url, parse_url)
    check(options, _make)
    return LaneTransport(_fixed(options), count)


def of_embedded(url: str, count: int) -> Transport:
    """Return the transport for the server of this process that `embedded://name` names."""
    name = url.partition("://")[2]

    async def options() -> Options:
        path = await anyio.to_thread.run_sync(embedded.socket_path, name)
        return {"connection_class": UnixDomainSocketConnection, "path": path}

    return LaneTransport(options, count)


def of_client(client: Any, count: int) -> Transport:
    """Return a transport that connects as `client` does, on connections of its own.

    Raises:
        ConfigurationError: not a `redis.asyncio.Redis`, or one that asks Sentinel.
    """
    pool = getattr(client, "connection_pool", None)
    if not isinstance(client, Redis) or not isinstance(pool, ConnectionPool):
        raise ConfigurationError(
            f"a store is a URL or a redis.asyncio.Redis client, not {type(client).__qualname__}"
        )
    if isinstance(pool, SentinelConnectionPool):
        raise ConfigurationError("clients that ask Sentinel are not supported yet")
    options = pool.connection_kwargs | {"connection_class": pool.connection_class}
    return LaneTransport(_fixed(options), count)


def _fixed(options: Options) -> Callable[[], Awaitable[Options]]:
    async def later() -> Options:
        return options

    return later


class LaneTransport:
    """Calls on the lanes of each event loop, which take them in turn.

    Args:
        options: a coroutine function that returns redis-py's connection options.
        count: lanes for each event loop.
    """

    def __init__(self, options: Callable[[], Awaitable[Options]], count: int) -> None:
        self._options = options
        self._count = count
        self._lanes: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[Lane, ...]] = (
            WeakKeyDictionary()
        )
        self._forks = forks.count()
        self._latest: Callable[[], asyncio.AbstractEventLoop | None] = _nothing
        self._next: Iterator[Lane] | None = None  # of the latest loop, nearly always the only one

    async def call(self, call: Call) -> list[Any]:
        """Run a script and return its reply."""
        lanes = self._next
        if lanes is None or self._latest() is not _running_loop() or self._forks != forks.count():
            lanes = await self._lanes_of(_running_loop())
        lane = next(lanes)
        script = SCRIPTS[call.script]
        words, timeout = words_of(call), call.timeout
        reply: list[Any]
        try:
            try:
                reply = await lane.call(("EVALSHA", script.sha, *words), timeout)
            except NoScriptError:
                reply = await lane.call(("EVAL", script.source, *words), timeout)
        except RedisError as error:
            raise after_sending(error) from error
        return reply

    async def aclose(self) -> None:
        """Close the connection that the running loop has; another call would open a new one."""
        self._next = None
        for lane in self._lanes.pop(_running_loop(), ()):
            await lane.aclose()

    def __repr__(self) -> str:
        return "redis"

    async def _lanes_of(self, loop: asyncio.AbstractEventLoop) -> Iterator[Lane]:
        if self._forks != forks.count():
            _inherited.extend(chain.from_iterable(self._lanes.values()))
            self._lanes, self._forks = WeakKeyDictionary(), forks.count()
        if loop not in self._lanes:
            for ended in [other for other in self._lanes if other.is_closed()]:
                del self._lanes[ended]  # a lane keeps its loop alive, and nobody closes it any more
            options = await self._options()
            lanes = tuple(Lane(partial(_make, options)) for _ in range(self._count))
            self._lanes.setdefault(loop, lanes)
        self._latest, self._next = ref(loop), cycle(self._lanes[loop])
        return self._next


def _make(options: Options) -> AbstractConnection:
    """Return a new connection."""
    # With a socket_timeout redis-py sends under `asyncio.wait_for`, which before Python 3.12 may
    # swallow the cancellation that ends a call's patience. That patience bounds sending and reading
    # already.
    own = for_connection(options, retry=Retry(NoBackoff(), 0), socket_timeout=None)
    kind: type[AbstractConnection] = own.pop("connection_class", Connection)
    return kind(**own)


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            "asyncsession runs on asyncio; redis-py does not run on trio"
        ) from None


def _nothing() -> None:
    return None
