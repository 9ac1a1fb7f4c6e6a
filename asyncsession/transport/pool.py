"""Calls over redis-py's own connections, one at a time on each.

redis-py's client is not used: it replays scripts on its own, and it lends a connection out again
while a reply may still be on its way. What it does well stays its own: addresses, TLS,
authentication, the protocol.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any
from weakref import WeakKeyDictionary

import anyio.to_thread
from redis.asyncio import Connection, ConnectionPool, Redis, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.exceptions import NoScriptError, RedisError

from asyncsession.errors import ConfigurationError
from asyncsession.protocol import Call, Transport
from asyncsession.scripts import SCRIPTS
from asyncsession.transport import embedded
from asyncsession.transport.faults import after_sending, before_sending

__all__ = ["PoolTransport", "of_client", "of_embedded", "of_url"]

_MAX_CONNECTIONS = (
    50  # per event loop, as redis-py's BlockingConnectionPool; `max_connections` in the URL
)

# For CLIENT LIST. Made once: redis-py would look its version up on disk for each connection.
_DRIVER = DriverInfo().add_upstream_driver("asyncsession", version("asyncsession"))

_Options = dict[str, Any]


def of_url(url: str) -> Transport:
    """Return the transport for a URL of redis-py's kind.

    Raises:
        ConfigurationError: redis-py does not understand it.
    """
    try:
        options = dict(parse_url(url))
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"redis-py cannot read the URL of the store: {error}") from None
    return PoolTransport(_fixed(options))


def of_embedded(url: str) -> Transport:
    """Return the transport for the server of this process that `embedded://name` names."""
    name = url.partition("://")[2]

    async def options() -> _Options:
        path = await anyio.to_thread.run_sync(embedded.socket_path, name)
        return {"connection_class": UnixDomainSocketConnection, "path": path}

    return PoolTransport(options)


def of_client(client: Any) -> Transport:
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
    return PoolTransport(
        _fixed(options | {"max_connections": min(pool.max_connections, _MAX_CONNECTIONS)})
    )


def _fixed(options: _Options) -> Callable[[], Awaitable[_Options]]:
    async def later() -> _Options:
        return options

    return later


class PoolTransport:
    """Calls on up to `max_connections` connections for each event loop.

    Args:
        options: a coroutine function that returns redis-py's connection options.
    """

    def __init__(self, options: Callable[[], Awaitable[_Options]]) -> None:
        self._options = options
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = WeakKeyDictionary()
        self._pid = os.getpid()

    async def call(self, call: Call) -> list[Any]:
        """Run a script and return its reply."""
        is_sent = False
        try:
            async with asyncio.timeout(call.timeout):
                pool = await self._pool()
                async with pool.slots:
                    connection = await pool.take()
                    try:
                        if not connection.is_connected:
                            await connection.connect()  # type: ignore[no-untyped-call]
                        is_sent = True
                        reply = await _evaluate(connection, call)
                    except BaseException:
                        await connection.disconnect(nowait=True)
                        raise
                    finally:
                        pool.idle.append(connection)
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            raise (after_sending(error) if is_sent else before_sending(error)) from error
        return reply

    async def aclose(self) -> None:
        """Close the connections that the running loop has; another call would open new ones."""
        pool = self._pools.pop(_running_loop(), None)
        for connection in pool.idle if pool else ():
            await connection.disconnect()

    def __repr__(self) -> str:
        return "redis"

    async def _pool(self) -> _Pool:
        if self._pid != os.getpid():  # forked: these sockets are the parent's
            self._pools, self._pid = WeakKeyDictionary(), os.getpid()
        loop = _running_loop()
        if loop not in self._pools:
            self._pools.setdefault(loop, _Pool(await self._options()))
        return self._pools[loop]


class _Pool:
    """The connections of one event loop."""

    def __init__(self, options: _Options) -> None:
        # Replays are ours to decide; on RESP3 redis-py can't tell an unread reply from a push.
        self._options: _Options = {"driver_info": _DRIVER}
        self._options |= options | {"retry": Retry(NoBackoff(), 0), "protocol": 2}
        self._class: type[AbstractConnection] = self._options.pop("connection_class", Connection)
        self.slots = asyncio.Semaphore(self._options.pop("max_connections", _MAX_CONNECTIONS))
        self.idle: list[AbstractConnection] = []

    async def take(self) -> AbstractConnection:
        """Return an idle connection, or a new one that has yet to connect."""
        if not self.idle:
            return self._class(**self._options)
        connection = self.idle.pop()
        if connection.is_connected and await connection.can_read():
            await connection.disconnect(nowait=True)  # the server has closed it meanwhile
        return connection


async def _evaluate(connection: AbstractConnection, call: Call) -> list[Any]:
    script = SCRIPTS[call.script]
    arguments = (len(call.keys), *call.keys, *call.args)
    try:
        return await _command(connection, "EVALSHA", script.sha, *arguments)
    except NoScriptError:
        return await _command(connection, "EVAL", script.source, *arguments)


async def _command(connection: AbstractConnection, *command: bytes | str | int) -> list[Any]:
    await connection.send_packed_command(connection.pack_command(*command), check_health=False)
    reply: list[Any] = await connection.read_response(disable_decoding=True)
    return reply


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            "asyncsession runs on asyncio; redis-py does not run on trio"
        ) from None
