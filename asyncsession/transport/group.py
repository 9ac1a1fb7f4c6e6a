"""Group commit: writes that wait for replicas, many at a time and one WAIT behind them.

- WAIT speaks of what its own connection has written, and blocks that connection until it answers.
  So writes and WAIT are sent in one go, and what comes meanwhile makes up the next group. A commit
  waits for the group before it and for its own, however many there are; reads are on another
  connection and wait for nobody.
- The right to wait is asked for once on each connection, before anything is written there. What is
  written cannot be taken back when the WAIT behind it is refused.
- A caller that is cancelled or out of time only stops waiting. If the group with its command has
  not been sent yet, that is left out, so that nothing was done for certain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from asyncsession.protocol import Durability, Lost, Refused
from asyncsession.transport.faults import BROKEN, after_sending, before_sending, no_right, whole
from asyncsession.transport.link import Link
from asyncsession.transport.options import MAY_WAIT, Word, wait_words

__all__ = ["Group"]

_MOST = 512  # writes at once: what waits behind them waits no longer than that takes


class _Write:
    """One command, and whoever waits for its reply."""

    __slots__ = ("command", "durability", "is_sent", "reply")

    def __init__(self, command: tuple[Word, ...], durability: Durability) -> None:
        self.command = command
        self.durability = durability
        self.is_sent = False
        self.reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)
            self.reply.exception()  # whoever is cancelled at this moment does not ask for it

    def abandon(self) -> None:
        """Tell whoever still waits that nobody is at it any more."""
        reason = "the manager was closed, or the lane's own task was cancelled"
        self.fail(Lost(reason) if self.is_sent else Refused(reason, passing=True))

    def settle(self, outcome: Any, confirmed: Any) -> None:
        """Hand over what came of the command and of the WAIT behind it: replies or errors."""
        try:
            reply = whole(outcome, confirmed)
        except Exception as error:
            self.fail(error)
        else:
            if not self.reply.done():
                self.reply.set_result(reply)


class Group:
    """The writes of one event loop that wait for replicas of one server.

    Args:
        usable: returns the link that carries them and nothing else, connected and with room.
    """

    def __init__(self, usable: Callable[[], Awaitable[Link]]) -> None:
        self._usable = usable
        self._queue: list[_Write] = []
        self._worker: asyncio.Task[None] | None = None
        self._may_wait: Link | None = None  # the link that was found to have the right to
        self._silence = 0.0  # seconds: the longest that a call has ever been given

    async def call(self, command: tuple[Word, ...], patience: float, durability: Durability) -> Any:
        """Send a command, and return its reply with the number of replicas that confirmed it.

        Raises:
            NoScriptError: the server does not know the script.
            Refused, Lost: as the transports' protocol says; after `patience` seconds at the latest.
        """
        self._silence = max(self._silence, patience)
        write = _Write(command, durability)
        self._queue.append(write)
        if self._worker is None:
            self._begin()
        try:
            async with asyncio.timeout(patience):
                return await write.reply
        except TimeoutError as error:
            fault = after_sending(error) if write.is_sent else before_sending(error)
            raise fault from error

    async def aclose(self) -> None:
        """Stop what is under way, be it a connection being opened; whoever waits is told so."""
        queue, self._queue = self._queue, []
        for write in queue:
            write.abandon()
        if (worker := self._worker) is not None:
            worker.cancel()
            await asyncio.wait([worker])

    def _begin(self) -> None:
        self._worker = asyncio.get_running_loop().create_task(self._work())
        self._worker.add_done_callback(self._ended)

    def _ended(self, _worker: asyncio.Task[None]) -> None:
        self._worker = None
        if self._queue:  # it was cancelled, by whoever ends all tasks of the loop
            self._begin()

    async def _work(self) -> None:
        while self._queue:
            group, self._queue = self._queue[:_MOST], self._queue[_MOST:]
            try:
                await self._carry(group)
            finally:
                for write in group:
                    write.abandon()

    async def _carry(self, group: list[_Write]) -> None:
        try:
            async with asyncio.timeout(self._silence):
                link = await self._usable()
                if link is not self._may_wait:
                    await self._check_right(link)
        except Exception as error:
            for write in group:
                write.fail(_unsent(error))
            return
        live = [write for write in group if not write.reply.done()]
        if not live:
            return
        asked = [write.durability for write in live]
        wait = Durability(max(one.replicas for one in asked), max(one.seconds for one in asked))
        commands = [write.command for write in live]
        answers = link.post_all([*commands, wait_words(wait)], self._silence)
        for write in live:
            write.is_sent = True
        *outcomes, confirmed = await asyncio.gather(*answers, return_exceptions=True)
        for write, outcome in zip(live, outcomes, strict=True):
            write.settle(outcome, confirmed)
        if isinstance(confirmed, BaseException):
            self._may_wait = None  # it may be that right which was taken away

    async def _check_right(self, link: Link) -> None:
        """See whether a connection may wait.

        Raises:
            Refused: it may not; or it broke, before anything was written.
        """
        asked = link.post_all([MAY_WAIT], self._silence)
        (answer,) = await asyncio.gather(*asked, return_exceptions=True)
        if isinstance(answer, Lost):
            raise Refused(str(answer), passing=True)
        if (refused := no_right(answer)) is not None:
            raise refused
        self._may_wait = link


def _unsent(error: Exception) -> Exception:
    """Return what one of many is told about the connection that could not be opened."""
    if isinstance(error, Refused):
        return Refused(str(error), passing=error.passing)  # each has a traceback of its own
    return before_sending(error) if isinstance(error, (TimeoutError, *BROKEN)) else error
