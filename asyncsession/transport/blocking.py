"""Calls that make the thread wait: a small pool of redis-py's blocking connections.

- A connection carries one call at a time. Whoever takes it out has read the whole reply before
  putting it back; whatever comes in between (silence, a signal, a greenlet that is killed) closes
  it, so nobody is handed the answer to another's question.
- A write that waits for replicas is sent together with a WAIT, on the same connection.
- A call waits for a free connection no longer than for its reply. An idle connection that the
  server has closed, or that holds something unasked for, is never used again.
- A forked child starts with an empty pool. Nothing runs in the background, and there is no event
  loop: only queues, locks and sockets, which gevent may patch.
- Addresses, TLS, authentication and the protocol are redis-py's; commands are packed by hiredis.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import hiredis
from redis import Connection, ConnectionPool, Redis, UnixDomainSocketConnection
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, parse_url
from redis.exceptions import BusyLoadingError, NoScriptError, ReadOnlyError, ResponseError
from redis.retry import Retry

from asyncsession import forks
from asyncsession.errors import ConfigurationError
from asyncsession.protocol import BlockingTransport, Call, Durability, Refused
from asyncsession.scripts import SCRIPTS
from asyncsession.transport import embedded
from asyncsession.transport.faults import BROKEN, after_sending, before_sending, no_right, whole
from asyncsession.transport.options import (
    ASKING,
    MAY_WAIT,
    Options,
    Word,
    check,
    for_connection,
    read_url,
    wait_words,
    without_maintenance,
    words_of,
)

__all__ = ["PoolTransport", "make", "of_client", "of_embedded", "of_url"]

_ERROR_REPLIES = (ResponseError, BusyLoadingError)  # the connection is as good as before
_AT_ONCE = 0.99  # of a call's time is left: it has not waited for a connection
_SHORTEST = 0.001  # seconds; to a socket, 0 would mean not to wait at all


def of_url(url: str, size: int) -> BlockingTransport:
    """Return the transport for a URL of redis-py's kind, with so many connections at the most.

    Raises:
        ConfigurationError: redis-py does not understand it.
    """
    options = read_url(url, parse_url)
    check(options, make)
    return PoolTransport(lambda _seconds: options, size)


def of_embedded(url: str, size: int) -> BlockingTransport:
    """Return the transport for the server of this process that `embedded://name` names."""
    name = url.partition("://")[2]

    def options(_seconds: float) -> Options:
        path = embedded.socket_path(name)
        return {"connection_class": UnixDomainSocketConnection, "path": path}

    return PoolTransport(options, size)


def of_client(client: Any, size: int) -> BlockingTransport:
    """Return a transport that connects as `client` does, on connections of its own.

    Raises:
        ConfigurationError: not a `redis.Redis`.
    """
    pool = getattr(client, "connection_pool", None)
    if not isinstance(client, Redis) or not isinstance(pool, ConnectionPool):
        raise ConfigurationError(
            f"a store is a URL or a redis.Redis client, not {type(client).__qualname__}"
        )
    given = pool.connection_kwargs | {"connection_class": pool.connection_class}
    options = without_maintenance(given)
    return PoolTransport(lambda _seconds: options, size)


class PoolTransport:
    """Calls on connections that are lent to one thread at a time.

    Args:
        options: returns redis-py's connection options, within so many seconds; asked before each
            connection.
        size: how many connections there are at the most.
    """

    def __init__(self, options: Callable[[float], Options], size: int) -> None:
        self._options = options
        self._size = size
        self._pool = _Pool(options, size)

    def call(self, call: Call) -> Any:
        """Run a script and return its reply."""
        pool = self._own_pool()
        script = SCRIPTS[call.script]
        words, timeout, durability = words_of(call), call.timeout, call.durability
        reply: Any
        try:
            try:
                reply = pool.call(("EVALSHA", script.sha, *words), timeout, durability)
            except NoScriptError:
                reply = pool.call(("EVAL", script.source, *words), timeout, durability)
        except _ERROR_REPLIES as error:
            raise after_sending(error) from error
        return reply

    def call_asking(self, call: Call) -> Any:
        """Run a script on a node that is taking over the slot of its keys; say so right before."""
        script = ("EVAL", SCRIPTS[call.script].source, *words_of(call))
        try:
            reply: Any = self._own_pool().call(script, call.timeout, call.durability, ASKING)
        except _ERROR_REPLIES as error:
            raise after_sending(error) from error
        return reply

    def close(self) -> None:
        """Close the connections, those in use after their call; another call opens new ones."""
        pool, self._pool = self._pool, _Pool(self._options, self._size)
        pool.close()

    def __repr__(self) -> str:
        return "redis"

    def _own_pool(self) -> _Pool:
        if self._pool.forks != forks.count():
            self._pool = _Pool(self._options, self._size)
        return self._pool


class _Pool:
    """Connections of one process.

    A signal may strike between any two steps of a call. So it is the connections that are counted,
    and not what was taken and given back: one that nobody holds any more makes room for another.

    Attributes:
        forks: of the process that it belongs to.
    """

    def __init__(self, options: Callable[[float], Options], size: int) -> None:
        self.forks = forks.count()
        self._options = options
        self._size = size
        self._open: WeakSet[AbstractConnection] = WeakSet()
        self._may_wait: WeakSet[AbstractConnection] = WeakSet()  # that were found to have the right
        self._guard = threading.Lock()  # of its size
        # None is put in where there is room again: somebody may be waiting for it. To put something
        # into this kind of queue never blocks.
        self._idle: queue.SimpleQueue[AbstractConnection | None] = queue.SimpleQueue()
        self._is_closed = False

    def call(
        self,
        command: tuple[Word, ...],
        patience: float,
        durability: Durability | None,
        before: tuple[Word, ...] = (),
    ) -> Any:
        """Send a command and return its reply, or raise the error that it is.

        Args:
            command: the words.
            patience: seconds.
            durability: what a write waits for. Then two things come back: the reply, and how
                many replicas have confirmed it.
            before: the words of another command, to be sent right before it.
        """
        packed = [hiredis.pack_command(command)]  # type: ignore[arg-type]
        if before:
            packed.insert(0, hiredis.pack_command(before))  # type: ignore[arg-type]
        if durability is not None:
            packed.append(hiredis.pack_command(wait_words(durability)))  # type: ignore[arg-type]
        ends = time.monotonic() + patience
        connection = self._usable(ends)
        if durability is not None and connection not in self._may_wait:
            self._check_right(connection, patience, ends)
        is_clean = False
        try:
            self._bound(connection, patience, ends)
            connection.send_packed_command(packed, check_health=False)  # type: ignore[no-untyped-call]
            if before:
                _answer(connection)
            reply = _answer(connection)
            confirmed = () if durability is None else (_answer(connection),)
            # Of a replica, the address may lead elsewhere by now.
            is_clean = not isinstance(reply, ReadOnlyError)
            if confirmed and isinstance(confirmed[0], Exception):
                self._may_wait.discard(connection)  # it may be that right which was taken away
        except BROKEN as error:
            raise after_sending(error) from error
        finally:
            if is_clean:
                self._put_back(connection)
            else:
                self._give_up(connection)
        return whole(reply, *confirmed)

    def close(self) -> None:
        """Close what is idle, and what is in use when it is put back."""
        self._is_closed = True
        if self.forks != forks.count():
            return
        with suppress(queue.Empty):
            while True:
                if (connection := self._idle.get_nowait()) is not None:
                    self._give_up(connection)

    @staticmethod
    def _bound(connection: AbstractConnection, patience: float, ends: float) -> None:
        """Bound what is sent and what is read, unless the connection still has that bound.

        To set it is a system call, for which the thread lets go of the interpreter; where many
        threads want that, it costs a tenth of the calls that are made.
        """
        left = ends - time.monotonic()
        seconds = patience if left > _AT_ONCE * patience else max(left, _SHORTEST)
        if connection.socket_timeout != seconds:
            connection.socket_timeout = seconds
            connection.update_current_socket_timeout(seconds)

    def _check_right(self, connection: AbstractConnection, patience: float, ends: float) -> None:
        """See whether a connection may wait, before anything is written there.

        What is written cannot be taken back when the WAIT behind it is refused.

        Raises:
            Refused: it may not; or it broke.
        """
        packed = hiredis.pack_command(MAY_WAIT)  # type: ignore[arg-type]
        is_done = False
        try:
            self._bound(connection, patience, ends)
            connection.send_packed_command([packed], check_health=False)  # type: ignore[no-untyped-call]
            answer = _answer(connection)
            is_done = True
        except BROKEN as error:
            raise before_sending(error) from error
        finally:
            if not is_done:
                self._give_up(connection)
        if (refused := no_right(answer)) is not None:
            self._put_back(connection)
            raise refused
        self._may_wait.add(connection)

    def _usable(self, ends: float) -> AbstractConnection:
        """Return a connection on which nothing waits to be read, not even its end."""
        while True:
            connection = self._borrow(ends)
            if not connection.is_connected:
                self._connect(connection, _left(ends))
                return connection
            try:
                if not connection.can_read():
                    return connection
            except BROKEN:
                pass  # as good as its end
            self._give_up(connection)

    def _borrow(self, ends: float) -> AbstractConnection:
        """Return an idle connection, or a new one; wait for either if there are enough."""
        while True:
            try:
                while True:
                    if (connection := self._idle.get_nowait()) is not None:
                        return connection
            except queue.Empty:
                pass
            if (connection := self._new(ends)) is not None:
                return connection
            try:
                connection = self._idle.get(timeout=_left(ends))
            except queue.Empty:
                reason = f"all connections are in use ({self._size})"
                raise Refused(reason, passing=True) from None
            if connection is not None:
                return connection

    def _new(self, ends: float) -> AbstractConnection | None:
        if len(self._open) >= self._size:
            return None
        try:
            options = self._options(_left(ends))
        except BROKEN as error:
            raise before_sending(error) from error
        with self._guard:
            if len(self._open) >= self._size:
                return None
            connection = make(options)
            self._open.add(connection)
            return connection

    def _connect(self, connection: AbstractConnection, seconds: float) -> None:
        connection.socket_timeout = seconds
        allowed = connection.socket_connect_timeout
        connection.socket_connect_timeout = min(seconds, allowed) if allowed else seconds
        is_done = False
        try:
            connection.connect()  # type: ignore[no-untyped-call]
            is_done = True
        except (*BROKEN, ValueError) as error:  # no name that DNS could have is a UnicodeError
            raise before_sending(error) from error
        finally:
            if not is_done:
                self._give_up(connection)

    def _put_back(self, connection: AbstractConnection) -> None:
        self._idle.put(connection)
        if self._is_closed:
            self.close()

    def _give_up(self, connection: AbstractConnection) -> None:
        with self._guard:
            self._open.discard(connection)
        connection.disconnect()  # type: ignore[no-untyped-call]
        if not self._is_closed:
            self._idle.put(None)


def make(options: Options) -> AbstractConnection:
    """Return a new connection with these options, not connected yet."""
    own = for_connection(options, retry=Retry(NoBackoff(), 0))
    kind: type[AbstractConnection] = own.pop("connection_class", Connection)
    return kind(**own)


def _answer(connection: AbstractConnection) -> Any:
    """Return the next reply, also if it is an error."""
    try:
        return connection.read_response(disable_decoding=True, disconnect_on_error=False)
    except _ERROR_REPLIES as error:
        return error


def _left(ends: float) -> float:
    return max(ends - time.monotonic(), _SHORTEST)
