"""Contenders: ways to keep sessions in Redis, each as its makers mean it to be used.

`FULL` are those of most scenarios; the first is what all others are compared with.
"""

from __future__ import annotations

from bench.contenders.base import Change, Contender, GaveUp
from bench.contenders.byhand import ByHand, CompareAndSet, Locked, Watched
from bench.contenders.ours import (
    AsyncSession,
    ForgetfulSession,
    MergeFunctionSession,
    SerialisableSession,
)
from bench.contenders.peers import AiohttpSession, Litestar, Starsessions

__all__ = [
    "CONTENDED",
    "FULL",
    "GUARDED",
    "PLAIN",
    "SHORT",
    "WITH_FORGETFUL",
    "AsyncSession",
    "Change",
    "Contender",
    "GaveUp",
]

Kinds = tuple[type[Contender], ...]

SHORT: Kinds = (AsyncSession, Starsessions, ByHand)
PLAIN: Kinds = (AsyncSession, Starsessions, AiohttpSession, Litestar, ByHand)
"""Those that differ where nothing is saved."""
FULL: Kinds = (*PLAIN, Locked, Watched, CompareAndSet)
WITH_FORGETFUL: Kinds = (AsyncSession, ForgetfulSession, *FULL[1:])
"""The same, and what a session costs in a process that sees it for the first time."""
CONTENDED: Kinds = (AsyncSession, Starsessions, ByHand, Locked, Watched, CompareAndSet)
GUARDED: Kinds = (MergeFunctionSession, SerialisableSession, Locked, Watched, CompareAndSet)
"""Those whose change of the counter has to see, or to wait for, everybody else's."""
