"""What this process has seen of sessions, so that a load only has to fetch what came after it.

Nothing is believed because it stands here. Each load names the base it knows, by length and commit
id, and the server says whether the session still rests on it, and what came since; so another
process's commit, a logout or a restored backup is seen at once. An entry that is missing or behind
costs bytes on the wire and nothing else.
"""

from __future__ import annotations

import threading

from asyncsession import forks
from asyncsession.blob import Log

__all__ = ["DEFAULT_CACHE_BYTES", "Cache"]

DEFAULT_CACHE_BYTES = 2**24
"""16 MiB: some 5,000 sessions of 1 KB."""


class Cache:
    """Logs by handle, the latest put last. Tasks and threads share it.

    A log in here is shared, so nobody changes one: whoever takes in more copies it first.

    Args:
        limit: bytes of memory that they may take; those put in longest ago go first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._logs: dict[str, Log] = {}
        self._taken = 0
        self._lock = threading.Lock()
        self._forks = forks.count()

    def get(self, handle: str) -> Log | None:
        """Return what was last seen of a session."""
        return self._logs.get(handle)

    def put(self, handle: str, log: Log) -> None:
        """Keep what was seen of a session, if no other thread is at it: nothing depends on that."""
        self._replace(handle, log)

    def drop(self, handle: str) -> None:
        """Forget a session, which has ended or moved."""
        if handle in self._logs:
            self._replace(handle, None)

    def _replace(self, handle: str, log: Log | None) -> None:
        if not self._lock.acquire(blocking=False):
            if self._forks != forks.count():  # whoever held it may not be there after the fork
                self._lock, self._forks = threading.Lock(), forks.count()
            return
        try:
            before = self._logs.pop(handle, None)
            if before is not None:
                self._taken -= before.memory
            if log is None or log.memory > self._limit:
                return
            self._logs[handle] = log
            self._taken += log.memory
            while self._taken > self._limit:
                self._taken -= self._logs.pop(next(iter(self._logs))).memory
        finally:
            self._lock.release()
