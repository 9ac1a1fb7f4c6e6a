"""Load, change one key, save: over sessions that nobody else uses."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from bench.contenders import WITH_FORGETFUL
from bench.field import Field
from bench.plots import curve, figure, finish
from bench.results import Row, select, values_of
from bench.run import Run
from bench.scenarios.base import Scenario
from bench.shapes import MANY_KEYS, describe
from bench.tables import paired, pivot

__all__ = ["CYCLES"]

_METHOD = """\
A cycle loads a session, adds one to its counter and saves it. Each task works on sessions of its
own, one after the other, so nothing is contended and nobody may lose anything: afterwards the
counters of all sessions have to show the cycles that were done. There are 512 sessions, and 256 of
64 KB: as many as asyncsession remembers in one process by default. What sessions cost that it does
not remember is on a line of its own (`cache_bytes=0`). A figure is cycles per second, the
median of the repeats; behind it is how many times that asyncsession did in the same repeat, median
and range."""


async def _run(run: Run) -> list[Row]:
    rows: list[Row] = []
    pick = run.settings.pick
    for kilobytes in pick((0.3, 1, 4, 64), (0.3, 4)):
        async with AsyncExitStack() as stack:
            # Of the largest, as many as a process remembers by default.
            sessions = pick(256 if kilobytes > 4 else 512, 32)
            field = await Field.open(run, stack, WITH_FORGETFUL, MANY_KEYS, kilobytes, sessions)
            for tasks in pick((1, 16, 64, 256), (1, 16)):
                rows += await run.in_turns(
                    {"kilobytes": kilobytes, "tasks": tasks},
                    field.contenders,
                    partial(field.cycles, tasks=tasks),
                    warm_up=partial(field.warm_up, tasks=tasks),
                )
            await field.check()
    return rows


def rate_tables(rows: list[Row], column: str = "tasks") -> str:
    """Return a table of the rates for each size, by the number of tasks or threads."""
    parts = []
    for kilobytes in values_of(rows, "kilobytes"):
        own = select(rows, kilobytes=kilobytes)
        parts.append(
            pivot(
                own,
                column,
                paired(own, "rate"),
                heading=lambda number: f"{number} {column[:-1] if number == 1 else column}",
                corner=f"{describe(kilobytes)}, per second",
            )
        )
    return "\n".join(parts)


def plot_rates(rows: list[Row], path: Path, column: str = "tasks") -> None:
    """Draw the rates over the number of tasks or threads, a panel for each size."""
    sizes = values_of(rows, "kilobytes")
    drawn, panels = figure(2, (len(sizes) + 1) // 2)
    for kilobytes, panel in zip(sizes, panels, strict=False):
        curve(panel, select(rows, kilobytes=kilobytes), column, "rate")
        panel.set_title(describe(kilobytes), fontsize=10)
        panel.set_xlabel(column)
        panel.set_ylabel("per second")
        panel.set_ylim(bottom=0)
    for unused in panels[len(sizes) :]:
        unused.set_visible(False)
    finish(drawn, panels, path)


CYCLES = Scenario("cycles", "Load, change, save", _METHOD, _run, rate_tables, plot_rates)
