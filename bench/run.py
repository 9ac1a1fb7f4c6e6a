"""How things are measured: in turns, so that whatever disturbs the machine disturbs all alike."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from redis.asyncio import Redis

from bench.contenders import Contender
from bench.results import Cell, Row

__all__ = ["Run", "Settings", "WorkNotDone", "count_all", "create_all", "rate"]


class _Named(Protocol):
    @property
    def name(self) -> str: ...


C = TypeVar("C", bound=_Named)
R = TypeVar("R")
T = TypeVar("T")

Measure = Callable[[C], Awaitable[dict[str, float]]]

_AT_ONCE = 64  # tasks that make or read sessions while nothing is measured


class WorkNotDone(Exception):
    """A contender's sessions do not show what it said it had done."""


@dataclass(frozen=True)
class Settings:
    """How long and how much.

    Attributes:
        seconds: of one measurement.
        repeats: measurements of each contender in each cell.
        quick: fewer cells and smaller numbers, to see that everything works.
    """

    seconds: float
    repeats: int
    quick: bool

    def pick(self, full: Any, quick: Any) -> Any:
        """Return the one of two scales that is wanted."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Run:
    """What a scenario is given.

    Attributes:
        url: of the server.
        settings: how long and how much.
        say: shows a line of progress; called between measurements only, since drawing takes time.
    """

    url: str
    settings: Settings
    say: Callable[[str], None]

    async def in_turns(
        self,
        cell: Cell,
        contenders: Sequence[C],
        measure: Measure[C],
        *,
        warm_up: Measure[C] | None = None,
    ) -> list[Row]:
        """Measure each contender once in each repeat, in a fresh order; the same for every run.

        Garbage is collected before each measurement; the collector stays on during it.

        Args:
            cell: what is being varied.
            contenders: ready to be measured.
            measure: measures one of them once.
            warm_up: what is done once before the first repeat; its result is dropped.
        """
        rows = {id(contender): Row(cell, contender.name) for contender in contenders}
        order = list(contenders)
        shuffle = random.Random(repr(cell)).shuffle  # noqa: S311 - the same order in every run
        what = ", ".join(f"{key} {value}" for key, value in cell.items())
        for contender in contenders if warm_up else ():
            assert warm_up is not None
            await warm_up(contender)
        for repeat in range(self.settings.repeats):
            shuffle(order)
            for contender in order:
                self.say(f"{what}: {contender.name}, repeat {repeat + 1}")
                gc.collect()
                rows[id(contender)].add(await measure(contender))
        return list(rows.values())

    async def flush(self) -> None:
        """Empty the server."""
        async with Redis.from_url(self.url) as redis:
            await redis.flushall()

    async def open(
        self, stack: AsyncExitStack, kinds: Sequence[type[Contender]]
    ) -> list[Contender]:
        """Return one contender of each kind on an empty server; the stack closes them."""
        await self.flush()
        return [await stack.enter_async_context(kind(self.url)) for kind in kinds]


async def create_all(contender: Contender, content: Mapping[str, Any], number: int) -> list[str]:
    """Create that many sessions of the same content, and return their ids."""
    return await _for_each([content] * number, contender.create)


async def count_all(
    contender: Contender, ids: Sequence[str], counted: Callable[[Mapping[str, Any]], int]
) -> int:
    """Return what the counters of all sessions show together."""
    return sum(await _for_each(ids, lambda session_id: contender.read(session_id, counted)))


async def _for_each(items: Sequence[T], work: Callable[[T], Awaitable[R]]) -> list[R]:
    """Do some work for each item, some at a time; return what came of it, in any order."""
    results: list[R] = []

    async def worker(own: Sequence[T]) -> None:
        for item in own:
            results.append(await work(item))  # noqa: PERF401 - shared with the other workers

    await asyncio.gather(*(worker(items[at::_AT_ONCE]) for at in range(_AT_ONCE)))
    return results


async def rate(
    cycle: Callable[[str], Awaitable[object]], ids: Sequence[str], tasks: int, seconds: float
) -> tuple[int, float]:
    """Run a cycle in so many tasks for so long, each on sessions of its own.

    Returns:
        How many cycles were done, and in how many seconds.
    """
    done = 0
    begin = time.perf_counter()
    end = begin + seconds

    async def worker(own: Sequence[str]) -> None:
        nonlocal done
        while True:
            for session_id in own:
                await cycle(session_id)
                done += 1
                if time.perf_counter() >= end:
                    return

    await asyncio.gather(*(worker(ids[task::tasks]) for task in range(tasks)))
    return done, time.perf_counter() - begin
