"""One session that many write to at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from bench.contenders import CONTENDED, GUARDED, Contender, GaveUp
from bench.contenders.byhand import BACKOFF
from bench.plots import curve, figure, finish, logarithmic
from bench.results import Row, select, spread, values_of
from bench.run import Run, WorkNotDone
from bench.scenarios.base import Scenario
from bench.shapes import COUNTER, MANY_KEYS
from bench.sites.locks import LOCK_POLL
from bench.tables import number, paired, pivot

__all__ = ["CONTENTION", "Race"]

_METHOD = """\
All writers change one session of 1 KB, over and over, without a pause between load and save: each
adds one to the counter and writes its own number of commits under a key of its own. A new session
is made for each measurement. Commits count while the time runs; what is under way then is finished
and checked, but not counted in the rate. Lost are acknowledged additions that the counter does not
show in the end. An attempt is a try to write; for the lock, a try to take it, each
{poll:g} ms. WATCH and compare-and-set pause at random before they try again (full jitter below
{first:g} ms, doubling up to {longest:g} ms); without a pause they get less done.

In the first part asyncsession merges by the built-in policies, for which it never has to try again.
In the second its counter belongs to a merge function of the user's (a guarded key), or the whole
change runs as `update()`, which is serialisable: there it tries again as the others do. The
compare-and-set merges in the client in both. Given up: `SessionConflict` was raised, after 100
attempts or 10 seconds; nothing was written then."""

_KILOBYTES = 1
_BUILT_IN, _GUARDED = "built-in policies", "merge function, update()"
_KINDS = {_BUILT_IN: CONTENDED, _GUARDED: GUARDED}
_LONGER = 2  # times as long as a measurement of the other scenarios: here a commit may wait
_WARM_UP = 0.2  # of the length of a measurement


class Race:
    """Writers of one session, and what they have been told."""

    def __init__(self, contender: Contender, writers: int) -> None:
        self.acknowledged = [0] * writers
        self.latencies: list[float] = []
        self.attempts = self.gave_up = self.in_time = 0
        self._contender = contender

    async def run(self, seconds: float) -> dict[str, float]:
        """Let them write for so long, and compare what they were told with what is stored.

        Raises:
            WorkNotDone: the session counts more than was acknowledged.
        """
        contender = self._contender
        session_id = await contender.create(MANY_KEYS.build(_KILOBYTES))
        end = time.perf_counter() + seconds
        writers = range(len(self.acknowledged))
        await asyncio.gather(*(self._write(session_id, writer, end) for writer in writers))
        stored = await contender.read(session_id, dict)
        done = sum(self.acknowledged)
        lost = done - stored[COUNTER]
        if lost < 0:
            raise WorkNotDone(f"{contender.name} counted {-lost} times more than it was told to")
        stale = [n for n in writers if stored.get(_own(n), 0) != self.acknowledged[n]]
        ordered = sorted(self.latencies)
        return {
            "rate": self.in_time / seconds,
            "attempts": self.attempts / done if done else 0.0,
            "lost": lost / done if done else 0.0,
            "own keys lost": len(stale) / len(self.acknowledged),
            "given up": self.gave_up,
            "p50": ordered[len(ordered) // 2] * 1000 if ordered else 0.0,
            "p99": ordered[len(ordered) * 99 // 100] * 1000 if ordered else 0.0,
        }

    async def _write(self, session_id: str, writer: int, end: float) -> None:
        own = _own(writer)

        def change(session: MutableMapping[str, Any]) -> None:
            session[COUNTER] += 1
            session[own] = self.acknowledged[writer] + 1

        while True:
            begin = time.perf_counter()
            try:
                attempts = await self._contender.change(session_id, change)
            except GaveUp:
                self.gave_up += 1
                now = time.perf_counter()
            else:
                now = time.perf_counter()
                self.attempts += attempts
                self.acknowledged[writer] += 1
                self.latencies.append(now - begin)
                self.in_time += now <= end
            if now >= end:
                return


def _own(writer: int) -> str:
    return f"writer:{writer}"


async def _race(contender: Contender, writers: int, seconds: float) -> dict[str, float]:
    return await Race(contender, writers).run(seconds)


async def _run(run: Run) -> list[Row]:
    rows: list[Row] = []
    seconds = run.settings.seconds * _LONGER
    for policy, kinds in _KINDS.items():
        for writers in run.settings.pick((2, 4, 8, 16, 32, 64, 128), (2, 8)):
            async with AsyncExitStack() as stack:
                rows += await run.in_turns(
                    {"policy": policy, "writers": writers},
                    await run.open(stack, kinds),
                    partial(_race, writers=writers, seconds=seconds),
                    warm_up=partial(_race, writers=writers, seconds=seconds * _WARM_UP),
                )
    return rows


def _median(metric: str, form: str) -> Any:
    return lambda row: format(spread(row.metrics[metric]).median, form)


def _part(rows: Sequence[Row], policy: str) -> str:
    parts = [f"### {policy[0].upper()}{policy[1:]}\n"]
    shown = {
        "commits per second": paired(rows, "rate"),
        "attempts per commit": _median("attempts", ".2f"),
        "lost updates": _median("lost", ".1%"),
        "p99, ms": lambda row: number(spread(row.metrics["p99"]).median),
    }
    if any(max(row.metrics["given up"]) for row in rows):
        shown["given up"] = _median("given up", ".0f")
    for corner, show in shown.items():
        parts.append(pivot(rows, "writers", show, heading=lambda n: f"{n} writers", corner=corner))
    return "\n".join(parts)


def _tables(rows: list[Row]) -> str:
    policies = values_of(rows, "policy")
    return "\n".join(_part(select(rows, policy=policy), policy) for policy in policies)


def _plot(rows: list[Row], path: Path) -> None:
    policies = values_of(rows, "policy")
    drawn, panels = figure(3, len(policies))
    for line, policy in enumerate(policies):
        own = select(rows, policy=policy)
        titles = {"rate": "commits per second", "attempts": "attempts per commit", "p99": "p99, ms"}
        for place, (metric, title) in enumerate(titles.items()):
            panel = panels[3 * line + place]
            curve(panel, own, "writers", metric)
            logarithmic(panel)
            panel.set_title(f"{policy}: {title}", fontsize=9)
            panel.set_xlabel("writers")
    finish(drawn, panels, path)


CONTENTION = Scenario(
    "contention",
    "One session, many writers",
    _METHOD.format(poll=LOCK_POLL * 1000, first=BACKOFF[0] * 1000, longest=BACKOFF[1] * 1000),
    _run,
    _tables,
    _plot,
)
