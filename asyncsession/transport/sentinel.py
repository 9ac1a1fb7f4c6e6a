"""Where the master is, as redis-py's clients hear it from all Sentinels around each new connection.

- A connection to the master is an ordinary one, so that READONLY stays the refusal that it is;
  redis-py's own for Sentinel make a broken connection of it. Either way the lane or pool lets go of
  a connection that said so, and the next one asks again.
- A new connection first asks the server for its role, and the Sentinels once more. They may not
  have heard yet that the master was demoted, and what a replica answers may be out of date. And a
  master that was replaced, and is started again, takes itself for one until it is demoted.
- All Sentinels are asked, at once on an event loop, else one after the other: what one of them says
  may be out of date (`sentinel_views`). One that was silent is waited for only briefly for a while.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from redis import Connection, Redis, SSLConnection
from redis.asyncio import Connection as AsyncPlainConnection
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio import SSLConnection as AsyncSSLConnection
from redis.asyncio.connection import AbstractConnection as AsyncConnection
from redis.asyncio.connection import parse_url as parse_url_async
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelPool
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, parse_url
from redis.exceptions import ReadOnlyError
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool
from redis.utils import str_if_bytes

from asyncsession.errors import ConfigurationError
from asyncsession.protocol import BlockingTransport, Transport
from asyncsession.transport import blocking, lanes
from asyncsession.transport.addresses import Address, read_sentinel_url
from asyncsession.transport.blocking import PoolTransport
from asyncsession.transport.faults import BROKEN
from asyncsession.transport.lanes import LaneTransport
from asyncsession.transport.options import Options, for_connection, without_maintenance
from asyncsession.transport.sentinel_views import Answer, ask, believed, view_of

__all__ = ["asks_sentinel", "blocking_of_client", "blocking_of_url", "of_client", "of_url"]

_ASK_WITHIN = 0.5  # seconds for each of connecting to a Sentinel and reading what it says
_BRIEFLY = 0.05  # the same for one that was silent: each new connection has to wait for it twice
_SILENT_FOR = 10.0  # seconds until it is given as much time as the others again
_SHORTEST = 0.001  # seconds; to a socket, 0 would mean not to wait at all


async def _let_go(client: AsyncRedis) -> None:
    """Close a client. What was asked is answered, whether a busy loop can wait for this or not."""
    with suppress(*BROKEN, RuntimeError, AttributeError):
        await client.aclose()


class _Watchers:
    """The Sentinels that watch a master.

    Args:
        given: their addresses.
        service: the name by which they know the master.
        options: redis-py's connection options for the master, without an address.
        asking: the options for clients of the Sentinels, as `redis.Redis` takes them.
        min_others: how many more Sentinels one has to know of to be believed.
        force_host: takes the place of the host that they name.
    """

    def __init__(self, given: Iterable[Address], service: str, options: Options, asking: Options, *,
                 min_others: int = 0, force_host: str | None = None) -> None:  # fmt: skip
        self._given = list(given)
        self._service = service
        self._options = options
        self._asking = for_connection(asking)
        self._min_others = min_others
        self._force_host = force_host
        self._silent: dict[Address, float] = {}  # and until when they are waited for only briefly

    async def options(self) -> Options:
        """Return the options for a connection to the master, on an event loop.

        Raises:
            Refused: no Sentinel names a master, or it is being replaced.
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
            Refused: no Sentinel names a master, or it is being replaced.
        """
        func = self._options.get("redis_connect_func") or AbstractConnection.on_connect
        ends = time.monotonic() + seconds

        def on_connect(connection: AbstractConnection) -> None:
            func(connection)
            connection.send_command("ROLE")  # type: ignore[no-untyped-call]
            _check(connection.read_response(), found, self._named_until(ends))

        found = self._named_until(ends)
        return self._to(found, on_connect)

    async def _named(self) -> Address:
        """Return the address of the master, on an event loop."""
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._told_by(*one)) for one in self._in_turn()]
        return believed([task.result() for task in asked], self._service, self._min_others)

    def _named_until(self, ends: float) -> Address:
        """Return the address of the master, where the thread may wait."""
        answers = []
        for address, seconds in self._in_turn():
            # To connect and to read takes half of what is left at most: there are others to ask.
            left = max((ends - time.monotonic()) / 4, _SHORTEST)
            answers.append(self._told_within(address, min(seconds, left)))
        return believed(answers, self._service, self._min_others)

    async def _told_by(self, address: Address, seconds: float) -> Answer:
        """Return what a Sentinel says, on an event loop."""
        client = AsyncRedis(**self._reaching(address, seconds, AsyncRetry(NoBackoff(), 0)))
        try:
            with self._listening_to(address):
                try:
                    questions = ask(client.pipeline(transaction=False), self._service)
                    return view_of(*await questions.execute(raise_on_error=False))
                finally:
                    # Whoever is cancelled meanwhile leaves no connection open.
                    await asyncio.shield(_let_go(client))
        except (*BROKEN, RuntimeError, AttributeError) as error:
            return error  # the last two are how a transport that was reset says so: see `link`

    def _told_within(self, address: Address, seconds: float) -> Answer:
        """Return what a Sentinel says, where the thread may wait."""
        options = self._reaching(address, seconds, Retry(NoBackoff(), 0))
        try:
            with self._listening_to(address), Redis(**options) as client:
                questions = ask(client.pipeline(transaction=False), self._service)
                return view_of(*questions.execute(raise_on_error=False))
        except (*BROKEN, ValueError) as error:  # no name that DNS could have is a UnicodeError
            return error

    def _in_turn(self) -> list[tuple[Address, float]]:
        """Return whom to ask, and for how many seconds; last those that were silent lately."""
        now = time.monotonic()
        silent = [one for one in self._given if self._silent.get(one, 0) > now]
        if len(silent) == len(self._given):  # it was the network, or the caller who gave up
            silent = []
        heard = [(one, _ASK_WITHIN) for one in self._given if one not in silent]
        return heard + [(one, _BRIEFLY) for one in silent]

    @contextmanager
    def _listening_to(self, address: Address) -> Iterator[None]:
        """Take note of whether a Sentinel answers, also if nobody waits for that any more."""
        try:
            yield
        except BaseException:
            now = time.monotonic()
            if self._silent.get(address, 0) <= now:
                self._silent[address] = now + _SILENT_FOR
            raise
        self._silent.pop(address, None)

    def _reaching(self, address: Address, seconds: float, retry: Any) -> Options:
        """Return the arguments of a client that waits so long for a Sentinel."""
        return {
            **self._asking,
            "host": address[0],
            "port": address[1],
            "socket_timeout": seconds,
            "socket_connect_timeout": seconds,
            "retry": retry,
        }

    def _to(self, found: Address, on_connect: Any) -> Options:
        """Return the options for a connection to the master that the Sentinels have named."""
        host, port = found
        host = host if self._force_host is None else self._force_host
        return {**self._options, "host": host, "port": port, "redis_connect_func": on_connect}


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
        min_others=manager.min_other_sentinels,
        force_host=manager._force_master_ip,  # noqa: SLF001  it has no other name
    )


def _address_of(sentinel: Any) -> Address:
    found = sentinel.connection_pool.connection_kwargs
    return found["host"], found["port"]


def _check(role: Any, found: Address, named: Address) -> None:
    """Raise what a replica says, unless a server says it is the master and is named still."""
    if str_if_bytes(role[0]) != "master":
        raise ReadOnlyError("the server that Sentinel names is a replica", status_code="READONLY")
    if named != found:
        raise ReadOnlyError("the Sentinels name another master by now", status_code="READONLY")
