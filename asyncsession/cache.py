"""What this process has seen of sessions, so that a load only has to fetch what came after it.

Nothing is believed because it stands here. Each load names the base it knows, by length, stamp and
commit id, and the server says whether the session still rests on it, and what came since; so what
another process commits, a logout or a restored backup is seen at once. An entry that is missing or
behind costs bytes on the wire and nothing else.
"""

from __future__ import annotations

import os
import threading
from weakref import WeakSet

from asyncsession.log import Log

__all__ = ["DEFAULT_CACHE_BYTES", "Cache"]

DEFAULT_CACHE_BYTES = 2**25
"""32 MiB: some 10,000 sessions of 1 KB, or 250 of 64 KB with many keys."""


class Cache:
    """Logs by handle, the latest put last. Tasks and threads share it; a forked child begins anew.

    A log in here is shared, so nobody changes one: whoever takes in more makes another of it.

    Args:
        limit: bytes of memory that they may take; those put in longest ago go first.
    """

    def __init__(self, limit: int = DEFAULT_CACHE_BYTES) -> None:
        self._limit = limit
        self._begin()
        _caches.add(self)

    def get(self, handle: str) -> Log | None:
        """Return what was last seen of a session."""
        return self._logs.get(handle)

    def put(self, handle: str, log: Log) -> None:
        """Keep what was seen of a session."""
        taken = log.memory
        with self._lock:
            self._drop(handle)
            if taken <= self._limit:
                self._logs[handle] = log
                self._taken += taken
            while self._taken > self._limit:
                self._drop(next(iter(self._logs)))

    def drop(self, handle: str) -> None:
        """Forget a session, which has ended or moved."""
        if handle in self._logs:
            with self._lock:
                self._drop(handle)

    def _begin(self) -> None:
        self._logs: dict[str, Log] = {}
        self._taken = 0
        self._lock = threading.RLock()

    def _drop(self, handle: str) -> None:
        log = self._logs.pop(handle, None)
        if log is not None:
            self._taken -= log.memory


_caches: WeakSet[Cache] = WeakSet()


def _begin_in_child() -> None:
    """A thread that is not there in the child may have held a lock, and left its work half done."""
    for cache in list(_caches):
        cache._begin()  # noqa: SLF001  this module's own


os.register_at_fork(after_in_child=_begin_in_child)
