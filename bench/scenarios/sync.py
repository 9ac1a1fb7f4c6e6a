"""Load, change one key, save, in threads: the sync manager and what Flask and Django have."""

from __future__ import annotations

import inspect
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.contenders.blocking import BLOCKING, BlockingContender
from bench.results import Row
from bench.run import Run, WorkNotDone
from bench.scenarios.base import Scenario
from bench.scenarios.cycles import plot_rates, rate_tables
from bench.shapes import MANY_KEYS

__all__ = ["SYNC", "Threads"]

_METHOD = """\
As "Load, change, save", without asyncio: threads that each work on sessions of their own, one after
the other. The interpreter lets one thread run at a time, so that eight get little more done than
one; what they gain is the wait for the server. Django's cache sessions ask before each save
whether the key is there. Flask-Session is driven by the methods that its stores consist of, without
cookies. Afterwards the counters of all sessions have to show the cycles that were done."""

_WARM_UP = 0.2  # of the length of a measurement


class Threads:
    """A contender with sessions, and threads that work on them.

    Args:
        contender: on a server that has none of its sessions.
        kilobytes: size of each session.
        sessions: how many.

    Attributes:
        ids: of the sessions.
    """

    def __init__(self, contender: BlockingContender, kilobytes: float, sessions: int) -> None:
        self.name = contender.name
        self._contender = contender
        content = MANY_KEYS.build(kilobytes)
        self.ids = [contender.create(content) for _ in range(sessions)]
        self._done = 0

    def cycles(self, threads: int, seconds: float) -> dict[str, float]:
        """Load, change and save for so long; return the rate."""
        done: Counter[int] = Counter()
        faults: list[Exception] = []
        begin = time.perf_counter()

        def work(own: Sequence[str], number: int) -> None:
            try:
                while True:
                    for session_id in own:
                        self._contender.change(session_id, MANY_KEYS.count)
                        done[number] += 1
                        if time.perf_counter() >= begin + seconds:
                            return
            except Exception as fault:
                faults.append(fault)

        running = [
            threading.Thread(target=work, args=(self.ids[number::threads], number))
            for number in range(threads)
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        if faults:
            raise faults[0]
        self._done += done.total()
        return {"rate": done.total() / (time.perf_counter() - begin)}

    def check(self) -> None:
        """See that all that was counted is in the sessions.

        Raises:
            WorkNotDone: it is not.
        """
        found = sum(self._contender.read(one, MANY_KEYS.counted) for one in self.ids)
        if found != self._done:
            raise WorkNotDone(f"{self.name} counted {self._done} times, and shows {found}")


async def _cycles(field: Threads, threads: int, seconds: float) -> dict[str, float]:
    # It blocks the loop, on which nothing else runs.
    return field.cycles(threads, seconds)


async def _run(run: Run) -> list[Row]:
    rows: list[Row] = []
    seconds, pick = run.settings.seconds, run.settings.pick
    for kilobytes in pick((0.3, 4, 64), (0.3, 4)):
        await run.flush()
        with ExitStack() as stack:
            contenders = [kind(run.url) for kind in BLOCKING]
            for contender in contenders:
                stack.callback(contender.close)
            fields = [Threads(contender, kilobytes, pick(256, 32)) for contender in contenders]
            for threads in (1, 8):
                rows += await run.in_turns(
                    {"kilobytes": kilobytes, "threads": threads},
                    fields,
                    partial(_cycles, threads=threads, seconds=seconds),
                    warm_up=partial(_cycles, threads=threads, seconds=seconds * _WARM_UP),
                )
            for field in fields:
                field.check()
    return rows


def _tables(rows: list[Row]) -> str:
    about = [f"| {kind.name} | {inspect.getdoc(kind)} |" for kind in BLOCKING]
    described = "\n".join(["| contender | what it does |", "| --- | --- |", *about])
    return f"{described}\n\n{rate_tables(rows, 'threads')}"


def _plot(rows: list[Row], path: Path) -> None:
    plot_rates(rows, path, "threads")


SYNC = Scenario("sync", "Threads: load, change, save", _METHOD, _run, _tables, _plot)
