"""A lane: one redis-py connection that carries the calls of all tasks of an event loop.

redis-py spends most of a command's time on lending a connection and waking tasks. On a lane the
commands of one tick of the loop are written together, and replies are read in the order sent. An
idle lane wakes nobody: the caller sends and reads by itself.

- A caller that is cancelled only stops waiting. Its reply is still read, and dropped, so the lane
  can't fall out of step and hand somebody the answer to another's question.
- A connection that breaks, or is silent for as long as a call is ever given, fails everything that
  waits on it, and is never used again; the next call opens another.
- Addresses, TLS, authentication and the protocol are redis-py's: `connect`, `send_packed_command`
  and `read_response` are all that is used of it. Commands are packed by hiredis itself.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import BusyLoadingError, ReadOnlyError, RedisError, ResponseError

from asyncsession.protocol import Lost
from asyncsession.transport.faults import after_sending, before_sending

__all__ = ["Lane"]

_MAX_WAITING = 1024  # calls on their way at once; more wait for their turn

# An error reply answers one call. LOADING comes as one, too, though redis-py files it elsewhere.
_ERROR_REPLIES = (ResponseError, BusyLoadingError)
_BROKEN = (RedisError, OSError)

Word = bytes | str | int


class Lane:
    """The way to one server, over one connection at a time.

    Args:
        make: returns a new connection of redis-py's, not connected yet.
    """

    def __init__(self, make: Callable[[], AbstractConnection]) -> None:
        self._make = make
        self._link: _Link | None = None
        self._connecting = asyncio.Lock()
        self._turns = asyncio.Semaphore(_MAX_WAITING)
        self._silence = 0.0  # seconds: the longest that a call has ever been given

    async def call(self, command: tuple[Word, ...], patience: float) -> Any:
        """Send a command and return its reply.

        Raises:
            NoScriptError: the server does not know the script.
            Refused, Lost: as the transports' protocol says; after `patience` seconds at the latest.
        """
        link: _Link | None = None
        self._silence = max(self._silence, patience)
        try:
            async with asyncio.timeout(patience), self._turns:
                link = await self._connected()
                return await link.call(command)
        except TimeoutError as error:
            if link is None:
                raise before_sending(error) from error
            if link.silent_for() >= self._silence:
                await link.fail(error)
            raise after_sending(error) from error

    async def aclose(self) -> None:
        """Close the connection; whoever still waits on it is told so."""
        if self._link is not None:
            await self._link.fail(ConnectionError("the manager was closed"))

    async def _connected(self) -> _Link:
        link = self._link
        if link is not None and link.silent_for() > self._silence:
            await link.fail(TimeoutError("the server is silent"))
        if link is not None and await link.is_usable():
            return link
        async with self._connecting:
            link = self._link
            if link is not None and await link.is_usable():
                return link
            connection = self._make()
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
            except _BROKEN as error:
                raise before_sending(error) from error
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            self._link = _Link(connection)
            return self._link


class _Link:
    """One connection, from the moment it is connected until it fails."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._heard = time.monotonic()
        self._connection = connection
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._outbox: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_failed = False

    def silent_for(self) -> float:
        """Return for how many seconds somebody has waited without any reply coming."""
        return time.monotonic() - self._heard if self._waiting else 0.0

    async def is_usable(self) -> bool:
        """Tell whether a command may be sent; an idle link that the server has closed is not."""
        if self._has_failed:
            return False
        if not self._waiting and await self._connection.can_read():
            await self.fail(ConnectionError("closed by the server"))
        return not self._has_failed

    async def call(self, command: tuple[Word, ...]) -> Any:
        """Send a command and return its reply, or raise the error reply."""
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]
        reply = asyncio.get_running_loop().create_future()
        is_idle = not self._waiting
        self._waiting.append(reply)
        if is_idle:
            self._heard = time.monotonic()
            await self._answer_alone(reply, packed)
        else:
            if not self._outbox:
                self._start(self._flush())
            self._outbox.append(packed)
        return await reply

    async def fail(self, error: Exception) -> None:
        """Give up the connection, and tell everybody who waits on it."""
        if self._has_failed:
            return
        self._has_failed = True
        self._outbox.clear()
        for reply in self._waiting:  # an error reply was an answer to the first of them alone
            if not reply.done():
                reply.set_exception(Lost(f"the connection was given up: {type(error).__name__}"))
                reply.exception()  # whoever has timed out at this moment does not ask for it
        self._waiting.clear()
        await self._connection.disconnect(nowait=True)

    async def _answer_alone(self, reply: asyncio.Future[Any], packed: bytes) -> None:
        """Send and read in the task of the caller: nobody else was here."""
        try:
            await self._connection.send_packed_command(packed, check_health=False)
            await self._read()
        except Exception as error:
            await self._broke(error)
        except asyncio.CancelledError as error:
            reply.cancel()
            if not self._connection.is_connected:  # cut off while sending
                await self.fail(ConnectionError(str(error)))
            raise
        finally:
            if self._waiting:
                self._start(self._pump())

    async def _pump(self) -> None:
        """Read replies for as long as somebody waits for one."""
        try:
            while self._waiting:
                await self._read()
        except Exception as error:
            await self._broke(error)

    async def _read(self) -> None:
        """Read one reply and hand it to whoever has waited longest, if they still do."""
        outcome: Any
        try:
            outcome = await self._connection.read_response(
                disable_decoding=True, timeout=math.inf, disconnect_on_error=False
            )
        except _ERROR_REPLIES as error:
            outcome = error
        self._heard = time.monotonic()
        if self._has_failed:
            return
        reply = self._waiting.popleft()
        if reply.done():
            return
        if not isinstance(outcome, Exception):
            reply.set_result(outcome)
            return
        reply.set_exception(outcome)
        if isinstance(outcome, ReadOnlyError):  # a replica now; the address may lead elsewhere
            await self.fail(outcome)

    async def _flush(self) -> None:
        """Write what the tasks of this tick have to say."""
        batch, self._outbox = self._outbox, []
        if not batch:
            return
        try:
            await self._connection.send_packed_command(batch, check_health=False)
        except Exception as error:
            await self._broke(error)

    async def _broke(self, error: Exception) -> None:
        if self._has_failed:
            return  # redis-py stumbles over a connection that was closed under its feet
        if self._waiting and not self._waiting[0].done():
            self._waiting[0].set_exception(after_sending(error))
        await self.fail(error)
        if not isinstance(error, _BROKEN):
            raise error

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
