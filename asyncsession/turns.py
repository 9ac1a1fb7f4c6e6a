"""Turns: commits that would fight each other inside one process go one after another instead.

Only commits that somebody else's change can refuse take turns: those of keys with a policy that has
to see it, and serialisable updates that have met one already. Nothing is held in Redis, and nothing
depends on a turn: a task or thread that has waited long enough goes on without, and other processes
are not kept out. A session that nobody else commits to at the moment is free at once.
"""

from __future__ import annotations

import asyncio
import threading
from weakref import WeakValueDictionary

from asyncsession import forks

__all__ = ["ThreadTurns", "Turn", "Turns"]


class Turn:
    """The turn of one task or thread at a session.

    Attributes:
        has_waited: somebody was at it before, so the session has probably changed meanwhile.
    """

    __slots__ = ("_lock", "has_waited")

    def __init__(self, lock: asyncio.Lock | threading.Lock | None, has_waited: bool) -> None:
        self._lock = lock
        self.has_waited = has_waited

    def end(self) -> None:
        """Let the next task have it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


class Turns:
    """Who is at which session, among the tasks of each event loop."""

    def __init__(self) -> None:
        # A lock lives for as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[tuple[int, str], asyncio.Lock] = WeakValueDictionary()

    async def take(self, handle: str, seconds: float) -> Turn:
        """Wait for a turn at a session, for so many seconds at the most."""
        key = id(asyncio.get_running_loop()), handle
        lock = self._locks.get(key)
        has_waited = lock is not None  # not `locked()`: whoever is next may not have woken up yet
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        try:
            async with asyncio.timeout(seconds if has_waited else None):
                await lock.acquire()
        except TimeoutError:
            return Turn(None, has_waited=True)
        return Turn(lock, has_waited)


class ThreadTurns:
    """Who is at which session, among the threads of this process."""

    def __init__(self) -> None:
        self._begin()

    def take(self, handle: str, seconds: float) -> Turn:
        """Wait for a turn at a session, for so many seconds at the most."""
        if self._forks != forks.count():  # whoever holds a lock may not be there after the fork
            self._begin()
        with self._guard:
            lock = self._locks.get(handle)
            has_waited = lock is not None  # as above
            if lock is None:
                lock = self._locks[handle] = threading.Lock()
        return Turn(lock if lock.acquire(timeout=seconds) else None, has_waited)

    def _begin(self) -> None:
        self._guard = threading.Lock()
        self._locks: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._forks = forks.count()
