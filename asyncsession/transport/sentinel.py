"""Where the master is, as redis-py's Sentinel clients find it: asked before each new connection.

- A connection to the master is an ordinary one, so that READONLY stays the refusal that it is;
  redis-py's own for Sentinel make a broken connection of it. Either way the lane or pool lets go of
  a connection that said so, and the next one asks again.
- A new connection first asks the server for its role, and Sentinel once more. A Sentinel may not
  have heard yet that the master was demoted, and what a replica answers may be out of date. And a
  master that was replaced, and is started again, takes itself for one until Sentinel demotes it.
- Sentinels are asked one after the other, whoever answered last first. One that did not answer in
  time is asked last from then on.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Iterable
from typing import Any

from redis import Connection, Redis, Sentinel, SSLConnection
from redis.asyncio import Connection as AsyncPlainConnection
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio import Sentinel as AsyncSentinel
from redis.asyncio import SSLConnection as AsyncSSLConnection
from redis.asyncio.connection import AbstractConnection as AsyncConnection
from redis.asyncio.connection import parse_url as parse_url_async
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import MasterNotFoundError as AsyncMasterNotFoundError
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelPool
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, parse_url
from redis.exceptions import ReadOnlyError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, SentinelConnectionPool
from redis.utils import str_if_bytes

from asyncsession.errors import ConfigurationError
from asyncsession.protocol import BlockingTransport, Refused, Transport
from asyncsession.transport import blocking, lanes
from asyncsession.transport.addresses import Address, read_sentinel_url
from asyncsession.transport.blocking import PoolTransport
from asyncsession.transport.lanes import LaneTransport
from asyncsession.transport.options import Options, for_connection, without_maintenance

__all__ = ["asks_sentinel", "blocking_of_client", "blocking_of_url", "of_client", "of_url"]

_ASK_WITHIN = 0.5  # seconds for each of connecting to a Sentinel and reading what it says
_KIND = re.compile(r" - \w*:?(\w+)")  # of an error, in redis-py's account of what each has said


class _Watchers:
    """The Sentinels that watch a master.

    Args:
        given: their addresses.
        service: the name by which they know the master.
        options: redis-py's connection options for the master, without an address.
        asking: the options for clients of the Sentinels, as `redis.Redis` takes them.
        more: what else redis-py's `Sentinel` was told.
    """

    def __init__(self, given: Iterable[Address], service: str, options: Options, asking: Options,
                 **more: Any) -> None:  # fmt: skip
        self._addresses = list(given)  # replaced, never changed: threads share it
        self._service = service
        self._options = options
        self._asking = for_connection(asking)
        self._more = more

    async def options(self) -> Options:
        """Return the options for a connection to the master, on an event loop.

        Raises:
            Refused: no Sentinel names a master.
        """
        func = self._options.get("redis_connect_func")

        async def on_connect(connection: AsyncConnection) -> None:
            if func is None:
                await connection.on_connect()
            elif inspect.isawaitable(done := func(connection)):
                await done
            await connection.send_command("ROLE")
            _check(await connection.read_response(), found, await self._named())

        found = await self._named()
        return self._to(found, on_connect)

    def options_within(self, seconds: float) -> Options:
        """Return the options for a connection to the master, where the thread may wait.

        Raises:
            Refused: no Sentinel names a master.
        """
        func = self._options.get("redis_connect_func") or AbstractConnection.on_connect

        def on_connect(connection: AbstractConnection) -> None:
            func(connection)
            connection.send_command("ROLE")  # type: ignore[no-untyped-call]
            _check(connection.read_response(), found, self._named_within(seconds))

        found = self._named_within(seconds)
        return self._to(found, on_connect)

    async def _named(self) -> Address:
        """Return the address that a Sentinel names, on an event loop."""
        sentinel = AsyncSentinel(  # type: ignore[no-untyped-call]
            self._in_turn(), **self._with(_ASK_WITHIN, AsyncRetry(NoBackoff(), 0))
        )
        try:
            found: Address = await sentinel.discover_master(self._service)
        except AsyncMasterNotFoundError as error:
            raise self._unnamed(error) from error
        finally:
            # Whoever is cancelled meanwhile leaves no connection open.
            await asyncio.shield(sentinel.aclose())
        self._answered(sentinel)
        return found

    def _named_within(self, seconds: float) -> Address:
        """Return the address that a Sentinel names, where the thread may wait."""
        asked = self._in_turn()
        each = min(seconds / 2 / len(asked), _ASK_WITHIN)
        retry = Retry(NoBackoff(), 0)
        with Sentinel(asked, **self._with(each, retry)) as sentinel:  # type: ignore[no-untyped-call]
            try:
                found: Address = sentinel.discover_master(self._service)
            except MasterNotFoundError as error:
                raise self._unnamed(error) from error
            self._answered(sentinel)
            return found

    def _in_turn(self) -> list[Address]:
        """Return whom to ask; the first is the last one next time, unless it does answer."""
        asked = self._addresses
        self._addresses = [*asked[1:], asked[0]]
        return asked

    def _with(self, seconds: float, retry: Any) -> dict[str, Any]:
        """Return the arguments of a `Sentinel` that waits so long for each."""
        asking = self._asking | {
            "socket_timeout": seconds,
            "socket_connect_timeout": seconds,
            "retry": retry,
        }
        return {**self._more, "sentinel_kwargs": asking}

    def _answered(self, sentinel: Sentinel | AsyncSentinel) -> None:
        """Have the Sentinel that did answer asked first."""
        answered = _address_of(sentinel.sentinels[0])  # redis-py puts it there
        self._addresses = sorted(self._addresses, key=lambda address: address != answered)

    def _to(self, found: Address, on_connect: Any) -> Options:
        """Return the options for a connection to the master that a Sentinel has named."""
        host, port = found
        return {**self._options, "host": host, "port": port, "redis_connect_func": on_connect}

    def _unnamed(self, error: Exception) -> Refused:
        """Return the fault for Sentinels that name no master, without redis-py's long account."""
        kinds = _KIND.findall(str(error))
        what = ", ".join(dict.fromkeys(kinds)) or "they do not know it, or take it for down"
        return Refused(
            f"no Sentinel names a master of {self._service!r} ({what})",
            passing=set(kinds) != {"AuthenticationError"},
        )


def of_url(url: str, count: int) -> Transport:
    """Return the transport for `redis+sentinel://`, with so many lanes for each event loop.

    Raises:
        ConfigurationError: it cannot be read.
    """
    read = read_sentinel_url(url, parse_url_async, lanes.make)
    return LaneTransport(_Watchers(*read).options, count)


def blocking_of_url(url: str, size: int) -> BlockingTransport:
    """Return the blocking transport for `redis+sentinel://`, with so many connections.

    Raises:
        ConfigurationError: it cannot be read.
    """
    return PoolTransport(
        _Watchers(*read_sentinel_url(url, parse_url, blocking.make)).options_within, size
    )


def asks_sentinel(client: object) -> bool:
    """Tell whether `client` is one that asks Sentinel for its server."""
    pool = getattr(client, "connection_pool", None)
    return isinstance(pool, (SentinelConnectionPool, AsyncSentinelPool))


def of_client(client: Any, count: int) -> Transport:
    """Return a transport that asks the Sentinels that `client` asks, on connections of its own.

    Raises:
        ConfigurationError: not for asyncio, or not for the master.
    """
    if not isinstance(client, AsyncRedis):
        raise ConfigurationError("the client asks Sentinel without asyncio; take redis.asyncio's")
    kind = client.connection_pool.connection_class
    plain = AsyncSSLConnection if issubclass(kind, AsyncSSLConnection) else AsyncPlainConnection
    return LaneTransport(_of_pool(client.connection_pool, plain).options, count)


def blocking_of_client(client: Any, size: int) -> BlockingTransport:
    """Return a transport that asks the Sentinels that `client` asks, on connections of its own.

    Raises:
        ConfigurationError: for asyncio, or not for the master.
    """
    if not isinstance(client, Redis):
        raise ConfigurationError("the client asks Sentinel on asyncio; take that of redis.sentinel")
    kind = client.connection_pool.connection_class
    plain = SSLConnection if issubclass(kind, SSLConnection) else Connection
    return PoolTransport(_of_pool(client.connection_pool, plain).options_within, size)


def _of_pool(pool: Any, connection_class: type) -> _Watchers:
    if not pool.is_master:
        raise ConfigurationError("sessions are written: take Sentinel.master_for, not slave_for")
    manager = pool.sentinel_manager
    options = without_maintenance(pool.connection_kwargs)
    del options["connection_pool"]
    return _Watchers(
        [_address_of(sentinel) for sentinel in manager.sentinels],
        pool.service_name,
        options | {"connection_class": connection_class},
        manager.sentinel_kwargs,
        min_other_sentinels=manager.min_other_sentinels,
        force_master_ip=manager._force_master_ip,  # noqa: SLF001  it has no other name
    )


def _address_of(sentinel: Any) -> Address:
    found = sentinel.connection_pool.connection_kwargs
    return found["host"], found["port"]


def _check(role: Any, found: Address, named: Address) -> None:
    """Raise what a replica says, unless a server says it is the master and is named still."""
    if str_if_bytes(role[0]) != "master":
        raise ReadOnlyError("the server that Sentinel names is a replica", status_code="READONLY")
    if named != found:
        raise ReadOnlyError("Sentinel names another master by now", status_code="READONLY")
