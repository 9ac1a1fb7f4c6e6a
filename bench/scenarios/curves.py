"""What a cycle costs as a session grows, and as its log does."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

from redis.asyncio import Redis

from bench.contenders import PLAIN, SHORT, Contender
from bench.field import Field
from bench.plots import curve, figure, finish, logarithmic, trail
from bench.results import Row, select, values_of
from bench.run import Run, create_all
from bench.scenarios.base import Scenario
from bench.shapes import MANY_KEYS, ONE_VALUE, describe
from bench.tables import number, paired, pivot, table

__all__ = ["CURVES"]

_METHOD = """\
One task, cycles of load, change and save. First by the session's size: with many keys, of which one
is touched, and with everything in one value under one key, of which a part is touched. The second
is what suits asyncsession least, since it unpacks and packs only the keys that a request touches,
and here that is the whole. Cycles per second, and how many times that asyncsession did.

Then by the log: sessions of {kilobytes} KB are made and changed over and over, all of them once
before any of them a second time, and each cycle is timed by itself. asyncsession's log grows by a
frame with each commit until one of them folds it, which shows as a drop of the stored length. How
the cost grows with the number of writers stands under "One session, many writers"."""

_KILOBYTES = 1
_FOLD = 0.9  # what is stored shrinks below so much of what it was when the log is folded


async def _run(run: Run) -> list[Row]:
    rows: list[Row] = []
    pick = run.settings.pick
    for shape in (MANY_KEYS, ONE_VALUE):
        for kilobytes in pick((0.3, 1, 4, 16, 64), (0.3, 4)):
            async with AsyncExitStack() as stack:
                field = await Field.open(run, stack, PLAIN, shape, kilobytes, pick(256, 16))
                rows += await run.in_turns(
                    {"shape": shape.name, "kilobytes": kilobytes},
                    field.contenders,
                    partial(field.cycles, tasks=1),
                    warm_up=partial(field.warm_up, tasks=1),
                )
                await field.check()
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(Redis.from_url(run.url))
        for contender in await run.open(stack, SHORT):
            rows += await _grow(run, contender, redis)
            await run.flush()
    return rows


async def _grow(run: Run, contender: Contender, redis: Redis) -> list[Row]:
    sessions, commits = run.settings.pick((64, 160), (4, 80))
    content = MANY_KEYS.build(_KILOBYTES)
    ids = await create_all(contender, content, sessions)
    keys = [key async for key in redis.scan_iter(count=1000)]
    rows = []
    for commit in range(1, commits + 1):
        run.say(f"the log: {contender.name}, commit {commit}")
        taken = []
        for session_id in ids:
            begin = time.perf_counter()
            await contender.change(session_id, MANY_KEYS.count)
            taken.append(time.perf_counter() - begin)
        stored = [await redis.strlen(key) for key in keys]
        row = Row({"commit": commit}, contender.name)
        row.add({"microseconds": median(taken) * 1e6, "stored": median(stored)})
        rows.append(row)
    return rows


def _tables(rows: list[Row]) -> str:
    parts = []
    for shape in values_of(rows, "shape"):
        own = select(rows, shape=shape)
        corner = f"{shape}, cycles per second"
        parts.append(pivot(own, "kilobytes", paired(own, "rate"), heading=describe, corner=corner))
    parts.append(_log_table([row for row in rows if "commit" in row.cell]))
    return "\n".join(parts)


def _log_table(rows: list[Row]) -> str:
    lines = []
    for contender in dict.fromkeys(row.contender for row in rows):
        own = select(rows, contender)
        taken = [row.metrics["microseconds"][0] for row in own]
        stored = [row.metrics["stored"][0] for row in own]
        folds = sum(after < _FOLD * before for before, after in pairwise(stored))
        lines.append(
            [
                contender,
                f"{number(median(taken[:10]))}",
                f"{number(max(median(taken[at : at + 10]) for at in range(len(taken) - 9)))}",
                f"{number(median(taken[-10:]))}",
                f"{number(max(stored))}",
                f"{folds}",
            ]
        )
    headings = [
        f"session of {_KILOBYTES} KB, {len(values_of(rows, 'commit'))} commits",
        "first ten, microseconds",
        "slowest ten in a row",
        "last ten",
        "most bytes stored",
        "times folded",
    ]
    return table(headings, lines)


def _plot(rows: list[Row], path: Path) -> None:
    drawn, panels = figure(2, 2)
    for panel, shape in zip(panels, values_of(rows, "shape"), strict=False):
        curve(panel, select(rows, shape=shape), "kilobytes", "rate")
        logarithmic(panel)
        panel.set_title(f"cycles per second; {shape}", fontsize=10)
        panel.set_xlabel("KB of session")
    grown = [row for row in rows if "commit" in row.cell]
    for panel, metric in zip(panels[2:], ("microseconds", "stored"), strict=True):
        trail(panel, grown, "commit", metric)
        panel.set_xlabel("commits since the session was made")
    panels[2].set_title("microseconds of a cycle", fontsize=10)
    panels[3].set_title("bytes stored", fontsize=10)
    finish(drawn, panels, path)


CURVES = Scenario(
    "curves", "Cost curves", _METHOD.format(kilobytes=_KILOBYTES), _run, _tables, _plot
)
