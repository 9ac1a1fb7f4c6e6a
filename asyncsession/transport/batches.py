"""Batches: commits of one session that meet in this process go to Redis together, in one call.

Not a lock, and nobody has to wait who is alone: a commit of a session that no other commit of this
event loop is on its way to is sent at once. Those that come meanwhile wait for its reply, and then
go out as one call of the script, which carries them out one after the other. Each has its own id,
base, guards and reply, as if it had been sent right behind the one before.

- A caller that is cancelled or out of time only stops waiting. If its commit has not been sent yet,
  it is left out, so that nothing was done for certain.
- The script writes once, when it has gone through all of them. So what is known of a call that
  failed, refused or lost, is true of each commit in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from asyncsession.protocol import Call, Lost, Refused
from asyncsession.transport.faults import after_sending, before_sending
from asyncsession.transport.loops import PerLoop, running_loop

__all__ = ["Batches"]

_CANCELLED = "the task that carries commits of several others was cancelled"
_WORDS = 2  # of a commit that neither folds the log nor moves the session
_MOST = 64  # commits at once, and
_MOST_BYTES = 2**18  # of their words: what comes behind them waits no longer than that takes
_BASE = slice(50, 82)  # of the terms: what the commit knows of the log, which begins with
_LENGTH = slice(50, 54)  # how long that is
_LARGE = 2**16  # bytes of log from which on the script takes long for commits of different bases


Send = Callable[[Call], Awaitable[Any]]
"""A transport's way to perform a call."""


class Batches:
    """Performs the calls of a manager, plain commits of one session together."""

    def __init__(self) -> None:
        self._queues: PerLoop[_Queues] = PerLoop()

    def call(self, call: Call, send: Send) -> Awaitable[Any]:
        """Run a script; its reply can be awaited.

        Args:
            call: what to run.
            send: carries it, or what it goes out with.

        Raises:
            Refused: it was certainly not done.
            Lost: it may have been done.
        """
        is_plain = len(call.args) == _WORDS and call.durability is None
        if call.script != "commit" or not is_plain:
            return send(call)
        return self._queues.of(running_loop(), _Queues).commit(call, send)


class _Commit:
    """A commit that waits for another, and whoever waits for its reply."""

    __slots__ = ("call", "ends", "is_sent", "reply")

    def __init__(self, call: Call, loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.ends = loop.time() + call.timeout
        self.is_sent = False
        self.reply: asyncio.Future[Any] = loop.create_future()

    def fail(self, fault: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(fault)
            self.reply.exception()  # whoever is cancelled at this moment does not ask for it

    def expire(self) -> None:
        self.fail((after_sending if self.is_sent else before_sending)(TimeoutError()))


class _Queues:
    """The commits of one event loop, by session: those that wait while another is on its way."""

    def __init__(self) -> None:
        self._loop = running_loop()
        self._waiting: dict[str, list[_Commit]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def commit(self, call: Call, send: Send) -> Any:
        """Send a commit, at once or with others."""
        (key,) = call.keys
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = []
            try:
                return await send(call)
            finally:
                self._next(key, send)
        commit = _Commit(call, self._loop)
        waiting.append(commit)
        alarm = self._loop.call_at(commit.ends, commit.expire)
        try:
            return await commit.reply
        finally:
            alarm.cancel()

    def _next(self, key: str, send: Send) -> None:
        """Send what has come together, now that nothing is on its way to that session."""
        waiting = [commit for commit in self._waiting.pop(key) if not commit.reply.done()]
        if waiting and not self._loop.is_closed():
            batch, self._waiting[key] = _divided(waiting)
            task = self._loop.create_task(self._carry(key, batch, send))
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, key, batch, send))

    def _ended(self, key: str, batch: list[_Commit], send: Send, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if batch and not batch[0].is_sent:
            # It was cancelled before it began, by whoever ends all tasks of the loop.
            self._next(key, send)
            for commit in batch:
                commit.fail(Refused(_CANCELLED, passing=True))

    async def _carry(self, key: str, batch: list[_Commit], send: Send) -> None:
        replies: list[Any] | None = None
        fault: Exception = Lost(_CANCELLED)
        batch[:] = [commit for commit in batch if not commit.reply.done()]  # some gave up since
        try:
            replies = await self._send(key, batch, send) if batch else []
        except Exception as error:
            fault = error
        finally:
            self._next(key, send)
            for number, commit in enumerate(batch):
                if replies is None:
                    commit.fail(_again(fault))
                elif not commit.reply.done():
                    commit.reply.set_result(replies[number])

    async def _send(self, key: str, batch: list[_Commit], send: Send) -> list[Any]:
        """Send commits in one call, and return a reply for each.

        Raises:
            Refused, Lost: as the transports' protocol says.
        """
        words: list[bytes | str | int] = []
        patience = 0.0
        now = self._loop.time()
        for commit in batch:
            commit.is_sent = True
            words += commit.call.args
            patience = max(patience, commit.ends - now)
        call = Call("commit", (key,), tuple(words), max(patience, 0.001))
        reply = await send(call)
        if len(batch) == 1:
            return [reply]
        if type(reply) is not list or len(reply) != len(batch):
            raise Lost("the reply is not to so many commits")
        return reply


def _divided(waiting: list[_Commit]) -> tuple[list[_Commit], list[_Commit]]:
    """Return the commits of the next batch, at least one, and those that go on waiting.

    Those of a large session in a batch have the same base: else the script would have to go through
    all of it for each, and the server could do nothing else meanwhile.
    """
    batch: list[_Commit] = []
    others: list[_Commit] = []
    size, first = 0, waiting[0].call
    for commit in waiting:
        is_apart = _base(commit.call) != _base(first) and _is_large(first, commit.call)
        if not is_apart:
            size += sum(map(len, commit.call.args))  # type: ignore[arg-type]  # none is a number
        if batch and (is_apart or len(batch) == _MOST or size > _MOST_BYTES):
            others.append(commit)
        else:
            batch.append(commit)
    return batch, others


def _base(call: Call) -> Any:
    terms: Any = call.args[0]
    return terms[_BASE]


def _is_large(*calls: Call) -> bool:
    lengths: list[Any] = [call.args[0] for call in calls]
    return any(int.from_bytes(terms[_LENGTH], "big") >= _LARGE for terms in lengths)


def _again(fault: Exception) -> Exception:
    """Return what one of several is told; each has a traceback of its own."""
    if isinstance(fault, Refused):
        return Refused(str(fault), passing=fault.passing)
    return Lost(str(fault)) if isinstance(fault, Lost) else fault
