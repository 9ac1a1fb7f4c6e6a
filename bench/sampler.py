"""Where the time goes, by layer: the stack is looked at some thousand times a second.

A profiler that is called at every function call makes calls look dear. A timer's signal does not:
the handler runs between two bytecodes, and counts the layer of the innermost frame that belongs to
one. Work in C is counted for the Python function that called it, and so would be a compiled core:
a profile is one of the source. Standard-library helpers are counted for the layer that called them.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["LAYERS", "WAITING", "layer_of", "sampling"]

_INTERVAL = 0.0005  # seconds

WAITING = "waiting in epoll"

# The beginning of a module's name, the longest that fits, to a layer. A module of asyncsession that
# is not named here is a layer of its own.
LAYERS = {
    "asyncsession.transport": "lane",
    "asyncsession.forks": "lane",
    "asyncsession.ids": "ids: SHA-256",
    "asyncsession.handles": "ids: SHA-256",
    "asyncsession.session": "session object",
    "asyncsession.cache": "format",
    "asyncsession.blob": "format",
    "asyncsession.log": "format",
    "asyncsession.values": "format",
    "asyncsession.delta": "deltas and merging",
    "asyncsession.operations": "deltas and merging",
    "asyncsession.merge": "deltas and merging",
    "asyncsession.adoption": "commit machine",
    "asyncsession.errors": "commit machine",
    "asyncsession.scripts": "commit machine",
    "asyncsession.verbs": "commit machine",
    "asyncsession.principals": "commit machine",
    "asyncsession.commit": "commit machine",
    "asyncsession.draft": "commit machine",
    "asyncsession.size": "commit machine",
    "asyncsession.outcome": "commit machine",
    "asyncsession.machine": "commit machine",
    "asyncsession.protocol": "commit machine",
    "asyncsession.manager": "manager",
    "asyncsession.setup": "manager",
    "asyncsession.sync": "manager",
    "asyncsession.turns": "manager",
    "redis": "redis-py",
    "asyncio": "event loop",
    "asyncio.selector_events": "sockets",
    "anyio": "event loop",
    "selectors": WAITING,
    "starlette": "starsessions",
    "starsessions": "starsessions",
    "json": "JSON",
    "bench": "the benchmark itself",
}
_OTHER = "other"


def layer_of(module: str) -> str | None:
    """Return the layer that a module belongs to, None for a helper of whoever calls it."""
    name = module
    while name:
        if name in LAYERS:
            return LAYERS[name]
        name = name.rpartition(".")[0]
    return module if module.startswith("asyncsession.") else None


@contextmanager
def sampling() -> Iterator[Counter[str]]:
    """Count samples by layer while the block runs; in the main thread only."""
    counted: Counter[str] = Counter()

    def look(_signal: int, frame: FrameType | None) -> None:
        while frame is not None:
            layer = layer_of(frame.f_globals.get("__name__", ""))
            if layer is not None:
                counted[layer] += 1
                return
            frame = frame.f_back
        counted[_OTHER] += 1

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _INTERVAL, _INTERVAL)
    try:
        yield counted
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
