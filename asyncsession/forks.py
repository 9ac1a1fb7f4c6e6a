"""How many forks there were: whoever holds locks or sockets asks whether they are still its own."""

from __future__ import annotations

import os

__all__ = ["count"]

_forks = 0


def count() -> int:
    """Return how many forks there were between the first process and this one."""
    return _forks


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)
