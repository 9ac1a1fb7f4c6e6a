"""Load and look: a request that changes nothing."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

from bench.contenders import PLAIN
from bench.field import Field
from bench.results import Row
from bench.run import Run
from bench.scenarios.base import Scenario
from bench.scenarios.cycles import plot_rates, rate_tables
from bench.shapes import MANY_KEYS

__all__ = ["READS"]

_METHOD = """\
A read loads a session and reads two keys, one of them nested; nothing is saved. Every value that is
read is compared with what was stored. Lock, WATCH and compare-and-set have no part in this: they
read as GET and SET does. Figures as above."""


async def _run(run: Run) -> list[Row]:
    rows: list[Row] = []
    pick = run.settings.pick
    for kilobytes in pick((0.3, 1, 4, 64), (0.3, 4)):
        async with AsyncExitStack() as stack:
            sessions = pick(256 if kilobytes > 4 else 512, 32)  # as for cycles
            field = await Field.open(run, stack, PLAIN, MANY_KEYS, kilobytes, sessions)
            for tasks in pick((1, 16, 64, 256), (1, 16)):
                measure = partial(field.reads, tasks=tasks)
                cell = {"kilobytes": kilobytes, "tasks": tasks}
                rows += await run.in_turns(cell, field.contenders, measure, warm_up=measure)
    return rows


READS = Scenario("reads", "Read only", _METHOD, _run, rate_tables, plot_rates)
