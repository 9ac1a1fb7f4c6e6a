"""Tests where the core may be compiled: its modules take no replacement for what they hold then."""

from __future__ import annotations

import pytest

from asyncsession import log
from asyncsession.log import Log

__all__ = ["copy_of", "only_interpreted"]

only_interpreted = pytest.mark.skipif(
    not str(log.__file__).endswith(".py"),
    reason="replaces a part of the core, which is compiled here",
)


def copy_of(it: Log) -> Log:
    """Return a log that folds its deltas for itself; compiled classes are not copied by `copy`."""
    return Log(it.incarnation, it.created, it.deadline, it.version, dict(it._chains), it._first,
               it.length, it.frames, it.tip, it.stamp)  # fmt: skip
