"""A link: one redis-py connection with the calls of many tasks on it, until it fails.

- A caller that is cancelled or out of time only stops waiting. Its reply is still read, and
  dropped, so the link can't fall out of step and hand somebody the answer to another's question.
- A connection that breaks, or is silent for as long as a call is ever given, fails everything that
  waits on it, and is never used again.
- Addresses, TLS, authentication and the protocol are redis-py's: `connect`, `send_packed_command`
  and `read_response` are all that is used of it. Commands are packed by hiredis itself.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from itertools import chain
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import BusyLoadingError, ReadOnlyError, ResponseError

from asyncsession.protocol import Lost
from asyncsession.transport.faults import BROKEN, after_sending
from asyncsession.transport.options import Word

__all__ = ["Link", "Share"]

_AT_ONCE = 16  # replies handed out in one turn of the loop, so that the server has work again
_MAX_WAITING = 1024  # calls on their way at once; more wait for their turn
_STALLED = 0.1  # seconds that an alarm rings late if the event loop was held up
_GRACE = 0.02  # seconds for reading what came in the meantime

# An error reply answers one call. LOADING comes as one, too, though redis-py files it elsewhere.
_ERROR_REPLIES = (ResponseError, BusyLoadingError)


# Those who wait for one reply, and their deadlines: one caller, or more where they share a call.
_Waiting = list[tuple[asyncio.Future[Any], float]]

Share = tuple[str, Any]
"""The name of a command that others may join, and a note for them."""


class Link:
    """One connection, from the moment it is connected until it fails."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._waiting: deque[_Waiting] = deque()
        self._outbox: list[bytes] = []
        self._shared: dict[str, tuple[_Waiting, Any]] = {}  # those of the outbox with a `Share`
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard = 0.0  # when the last reply came, or the first of those waiting began to
        self._silence = 0.0  # seconds without any reply after which the connection is given up
        self._alarm: asyncio.TimerHandle | None = None  # one for all that wait, not one for each
        self._rings_at = math.inf
        self._asker: asyncio.Task[Any] | None = None  # who sends and reads by itself at the moment
        self._is_cut = False  # and was woken up, because there is nothing to wait for any longer
        self._has_room = asyncio.Event()
        self._has_stalled = False
        self._has_failed = False
        self._is_pausing = False  # there may be replies that have come and are not handed out yet

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for a reply."""
        return not self._waiting

    @property
    def has_room(self) -> bool:
        """Whether it takes another call."""
        return len(self._waiting) < _MAX_WAITING

    @property
    def is_under_way(self) -> bool:
        """Whether replies are being read, and another call may join."""
        return 0 < len(self._waiting) < _MAX_WAITING and not self._has_failed

    async def is_usable(self) -> bool:
        """Tell whether a command may be sent; an idle link that the server has closed is not."""
        if not self._has_failed and not self._waiting and await self._connection.can_read():
            await self.fail(ConnectionError("closed by the server"))
        return not self._has_failed

    async def room(self) -> None:
        """Wait until another call may be taken, or the link has failed."""
        self._has_room.clear()
        await self._has_room.wait()

    def join(
        self, name: str, patience: float, silence: float
    ) -> tuple[asyncio.Future[Any], Any] | None:
        """Wait for the reply to a command that somebody else has posted in this tick.

        Only while it is not written: a reply to what was sent before would not show what was
        acknowledged since.

        Args:
            name: as it was posted with.
            patience, silence: as for `post`; what becomes of the others does not matter.

        Returns:
            The future, and what else it was posted with; None if there is no such command, or it is
            written already.
        """
        shared = self._shared.get(name)
        if shared is None:
            return None
        waiting, note = shared
        reply = self._loop.create_future()
        waiting.append((reply, self._expect(patience, silence)))
        return reply, note

    def post(
        self,
        command: tuple[Word, ...],
        patience: float,
        silence: float,
        share: Share | None = None,
    ) -> asyncio.Future[Any]:
        """Send a command along with those of other tasks; the future brings the reply.

        Args:
            command: the words.
            patience: seconds after which the future fails with `Lost`.
            silence: seconds without any reply after which the connection is given up.
            share: a name by which others can `join` it until it is written, and a note for them;
                None if they must not.
        """
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]
        reply = self._loop.create_future()
        waiting = self._wait(reply, patience, silence)
        if share is not None:
            name, note = share
            self._shared[name] = waiting, note
        self._outbox.append(packed)
        if len(self._outbox) == 1:  # after it is in there: an eager task begins at once
            self._start(self._flush())
        return reply

    def post_all(
        self, commands: Sequence[tuple[Word, ...]], silence: float
    ) -> list[asyncio.Future[Any]]:
        """Send commands in one go; the futures bring the replies, in the same order.

        Args:
            commands: the words of each.
            silence: seconds without any reply after which the connection is given up.
        """
        packed = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type]
        was_idle = self.is_idle
        replies = [self._loop.create_future() for _ in commands]
        for reply in replies:
            self._wait(reply, math.inf, silence)
        self._outbox += packed
        self._start(self._flush())
        if was_idle:
            self._start(self._pump())
        return replies

    async def ask(self, command: tuple[Word, ...], patience: float, silence: float) -> Any:
        """Send a command and read its reply in the task of the caller: nobody else is here.

        Args:
            command: the words.
            patience: seconds after which it fails with `Lost`.
            silence: seconds without any reply after which the connection is given up.
        """
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]
        reply = self._loop.create_future()
        self._wait(reply, patience, silence)
        task = self._asker = asyncio.current_task(self._loop)
        assert task is not None
        cancelled = task.cancelling()
        try:
            try:
                await self._send(packed)
                outcome = await self._connection.read_response(
                    disable_decoding=True, timeout=math.inf, disconnect_on_error=False
                )
            except _ERROR_REPLIES as error:
                outcome = error
            finally:
                self._asker = None
            if not self._has_failed:
                self._hand_over(outcome)
                if isinstance(outcome, ReadOnlyError):
                    await self.fail(outcome)
        except Exception as error:
            await self._broke(error)
        except asyncio.CancelledError as error:
            if not self._connection.is_connected:  # cut off while sending
                await self.fail(ConnectionError(str(error)))
            if not self._is_cut or task.uncancel() > cancelled:
                reply.cancel()
                raise
        finally:
            self._is_cut = False
            if self._waiting:
                self._start(self._pump())
        return await reply

    async def fail(self, error: Exception) -> None:
        """Give up the connection, and tell everybody who waits on it."""
        if self._has_failed:
            return
        self._has_failed = True
        self._outbox.clear()
        self._shared.clear()
        self._has_room.set()
        if self._alarm is not None:
            self._alarm.cancel()
        self._cut()
        # An error reply was an answer to the first of them alone.
        for reply, _ in chain.from_iterable(self._waiting):
            if not reply.done():
                reply.set_exception(Lost(f"the connection was given up: {type(error).__name__}"))
                reply.exception()  # whoever has timed out at this moment does not ask for it
        self._waiting.clear()
        await self._connection.disconnect(nowait=True)

    def _wait(self, reply: asyncio.Future[Any], patience: float, silence: float) -> _Waiting:
        deadline = self._expect(patience, silence)
        waiting = [(reply, deadline)]
        self._waiting.append(waiting)
        return waiting

    def _expect(self, patience: float, silence: float) -> float:
        """Have the alarm ring in time for another who waits, and return their deadline."""
        now = self._loop.time()
        if not self._waiting:
            self._heard = now
        self._silence = silence
        ring = now + (patience if patience < silence else silence)
        if ring < self._rings_at:
            self._set_alarm(ring)
        return now + patience

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._rings_at = self._loop.call_at(when, self._ring), when

    def _ring(self) -> None:
        """Tell those whose time is up, and see whether the server is silent."""
        due = self._rings_at
        self._alarm, self._rings_at = None, math.inf
        if not self._waiting:
            return
        now = self._loop.time()
        if self._is_pausing:
            self._set_alarm(now + _GRACE)
            return
        if now - due > _STALLED and not self._has_stalled:
            # It was this process that was busy, and the replies may have come meanwhile.
            self._has_stalled = True
            self._set_alarm(now + _GRACE)
            return
        self._has_stalled = False
        if now >= self._heard + self._silence:
            self._start(self.fail(TimeoutError("the server is silent")))
            return
        next_ring = self._heard + self._silence
        for reply, deadline in chain.from_iterable(self._waiting):
            if reply.done():
                continue
            if deadline <= now:
                reply.set_exception(after_sending(TimeoutError()))
                reply.exception()  # whoever was cancelled at this moment does not ask for it
            else:
                next_ring = min(next_ring, deadline)
        if self._waiting[0][0][0].done():  # nobody joins who sends by itself
            self._cut()
        self._set_alarm(next_ring)

    def _cut(self) -> None:
        """Wake up the task that sends and reads by itself, as `asyncio.timeout` would."""
        if self._asker is not None and not self._is_cut:
            self._is_cut = self._asker.cancel()

    async def _pump(self) -> None:
        """Read replies for as long as somebody waits for one."""
        read, waiting = self._connection.read_response, self._waiting
        outcome: Any
        handed = 0
        try:
            while waiting:
                if handed >= _AT_ONCE:  # not after the last: the next caller reads for itself then
                    handed = 0
                    self._is_pausing = True
                    try:
                        await asyncio.sleep(0)
                    finally:
                        self._is_pausing = False
                    continue
                try:
                    outcome = await read(
                        disable_decoding=True, timeout=math.inf, disconnect_on_error=False
                    )
                except _ERROR_REPLIES as error:
                    outcome = error
                if self._has_failed:
                    return
                handed += self._hand_over(outcome)
                if isinstance(outcome, ReadOnlyError):
                    await self.fail(outcome)  # a replica now; the address may lead elsewhere
        except Exception as error:
            await self._broke(error)

    def _hand_over(self, outcome: Any) -> int:
        """Hand a reply to those who have waited longest, and return how many still do."""
        if len(self._waiting) == _MAX_WAITING:
            self._has_room.set()
        callers = self._waiting.popleft()
        if self._waiting:
            self._heard = self._loop.time()
        handed = 0
        for reply, _ in callers:
            if reply.done():
                continue
            handed += 1
            if isinstance(outcome, Exception):
                reply.set_exception(outcome)
            else:
                reply.set_result(outcome)
        return handed

    async def _flush(self) -> None:
        """Write what the tasks of this tick have to say."""
        batch, self._outbox = self._outbox, []
        self._shared.clear()
        if not batch:
            return
        try:
            await self._send(batch)
        except Exception as error:
            await self._broke(error)

    async def _send(self, packed: bytes | list[bytes]) -> None:
        try:
            await self._connection.send_packed_command(packed, check_health=False)
        except (RuntimeError, AttributeError) as error:
            # How a transport that was reset says so: uvloop's, and asyncio's from 3.12 on.
            raise ConnectionError(str(error)) from error

    async def _broke(self, error: Exception) -> None:
        if self._has_failed:
            return  # redis-py stumbles over a connection that was closed under its feet
        for reply, _ in self._waiting[0] if self._waiting else ():
            if not reply.done():
                reply.set_exception(after_sending(error))
                reply.exception()
        await self.fail(error)
        if not isinstance(error, BROKEN):
            raise error

    def _start(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() and not self._has_failed:  # by whoever ends all tasks of the loop
            self._start(self.fail(ConnectionError("the link's own task was cancelled")))
