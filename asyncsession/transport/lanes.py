"""Which lane a call takes: those of its event loop, on connections as redis-py would open them.

redis-py's client is not used: it replays scripts on its own, and it lends a connection out again
while a reply may still be on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import cycle
from typing import Any
from weakref import ref

import anyio.to_thread
from redis.asyncio import Connection, ConnectionPool, Redis, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from asyncsession import forks
from asyncsession.errors import ConfigurationError
from asyncsession.protocol import Call, Shared, Transport
from asyncsession.scripts import SCRIPTS
from asyncsession.transport import embedded
from asyncsession.transport.faults import after_sending, whole
from asyncsession.transport.lane import Lane
from asyncsession.transport.loops import PerLoop, running_loop
from asyncsession.transport.options import (
    ASKING,
    Options,
    check,
    fixed,
    for_connection,
    read_url,
    wait_words,
    words_of,
)

__all__ = ["LaneTransport", "make", "of_client", "of_embedded", "of_url"]

_OfLoop = tuple[ref[asyncio.AbstractEventLoop], Iterator[Lane]]


def of_url(url: str, count: int) -> Transport:
    """Return the transport for a URL of redis-py's kind, with so many lanes for each event loop.

    Raises:
        ConfigurationError: redis-py does not understand it.
    """
    options = read_url(url, parse_url)
    check(options, make)
    return LaneTransport(fixed(options), count)


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
        ConfigurationError: not a `redis.asyncio.Redis`.
    """
    pool = getattr(client, "connection_pool", None)
    if not isinstance(client, Redis) or not isinstance(pool, ConnectionPool):
        raise ConfigurationError(
            f"a store is a URL or a redis.asyncio.Redis client, not {type(client).__qualname__}"
        )
    options = pool.connection_kwargs | {"connection_class": pool.connection_class}
    return LaneTransport(fixed(options), count)


class LaneTransport:
    """Calls on the lanes of each event loop, which take them in turn.

    Args:
        options: a coroutine function that returns redis-py's connection options; asked before
            each connection. What it raises is raised by the call.
        count: lanes for each event loop.
    """

    def __init__(self, options: Callable[[], Awaitable[Options]], count: int) -> None:
        self._options = options
        self._count = count
        self._lanes: PerLoop[tuple[Lane, ...]] = PerLoop()
        self._forks = forks.count()
        # Those of the latest loop, nearly always the only one; in one, for loops in other threads.
        self._latest: _OfLoop | None = None

    async def call(self, call: Call) -> Any:
        """Run a script and return its reply."""
        latest = self._latest
        if latest is None or latest[0]() is not running_loop() or self._forks != forks.count():
            lane = next(self._lanes_of(running_loop()))
        else:
            lane = next(latest[1])
        script, timeout = SCRIPTS[call.script], call.timeout
        reply: Any
        try:
            try:
                share = None
                if call.base is not None:
                    share = call.keys[0], call.base
                    joined = lane.join(share[0], timeout)
                    if joined is not None:
                        answer, base = joined
                        return Shared(await answer, base)
                command = "EVALSHA", script.sha, *words_of(call)
                reply = await lane.call(command, timeout, call.durability, share)
            except NoScriptError:
                command = "EVAL", script.source, *words_of(call)
                reply = await lane.call(command, timeout, call.durability)
        except RedisError as error:
            raise after_sending(error) from error
        return reply

    async def call_asking(self, call: Call) -> Any:
        """Run a script on a node that is taking over the slot of its keys; say so right before."""
        lanes = self._lanes_of(running_loop())
        commands = [ASKING, ("EVAL", SCRIPTS[call.script].source, *words_of(call))]
        if call.durability is not None:
            commands.append(wait_words(call.durability))
        _ok, *replies = await next(lanes).together(commands, call.timeout)
        try:
            reply: Any = whole(*replies)
        except RedisError as error:
            raise after_sending(error) from error
        return reply

    async def aclose(self) -> None:
        """Close the connection that the running loop has; another call would open a new one."""
        self._latest = None
        for lane in self._lanes.pop(running_loop(), ()):
            await lane.aclose()

    def __repr__(self) -> str:
        return "redis"

    def _lanes_of(self, loop: asyncio.AbstractEventLoop) -> Iterator[Lane]:
        lanes = self._lanes.of(loop, self._open)
        self._forks = forks.count()
        turns = cycle(lanes)
        self._latest = ref(loop), turns
        return turns

    def _open(self) -> tuple[Lane, ...]:
        return tuple(Lane(self._connection) for _ in range(self._count))

    async def _connection(self) -> AbstractConnection:
        return make(await self._options())


def make(options: Options) -> AbstractConnection:
    """Return a new connection with these options, not connected yet."""
    # With a socket_timeout redis-py sends under `asyncio.wait_for`, which before Python 3.12 may
    # swallow the cancellation that ends a call's patience. That patience bounds sending and reading
    # already.
    own = for_connection(options, retry=Retry(NoBackoff(), 0), socket_timeout=None)
    kind: type[AbstractConnection] = own.pop("connection_class", Connection)
    return kind(**own)
