"""What each event loop has for itself, because it cannot be shared: connections, above all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from asyncsession import forks
from asyncsession.errors import ConfigurationError

__all__ = ["PerLoop", "running_loop"]

T = TypeVar("T")

_inherited: list[Any] = []
"""Of a parent process. Collecting it would close sockets and poll sets that are the parent's."""


class PerLoop(WeakKeyDictionary[asyncio.AbstractEventLoop, T]):
    """One thing for each event loop of this process; a forked child starts with none.

    Threads whose loops come and go share it, such as those of a WSGI server with async views. There
    is no lock, which a fork could leave locked: what goes through all of it goes through a copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self._forks = forks.count()

    def of(self, loop: asyncio.AbstractEventLoop, make: Callable[[], T]) -> T:
        """Return what belongs to a loop; make it if there is nothing yet."""
        if self._forks != forks.count():
            _inherited.extend(self.values())
            self.clear()
            self._forks = forks.count()
        found = self.get(loop)
        if found is None:
            for reference in self.keyrefs():
                other = reference()
                if other is not None and other.is_closed():
                    # A connection keeps its loop alive, and nobody closes it any more.
                    self.pop(other, None)  # another thread may have done it
            found = self[loop] = make()
        return found


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that runs.

    Raises:
        ConfigurationError: there is none of asyncio's.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            "asyncsession runs on asyncio; redis-py does not run on trio"
        ) from None
