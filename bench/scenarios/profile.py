"""Where the microseconds of a cycle go."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import matplotlib as mpl

from bench.contenders import SHORT, Contender
from bench.field import Field
from bench.plots import figure, finish
from bench.results import Row, select, spread, values_of
from bench.run import Run
from bench.sampler import sampling
from bench.scenarios.base import Scenario
from bench.shapes import MANY_KEYS
from bench.tables import number, table

__all__ = ["PROFILE"]

_METHOD = """\
The cycles of "Load, change, save" on sessions of {kilobytes} KB, once to see how long one takes,
and at once again while a timer looks at the stack 2,000 times a second. A layer's microseconds are
its share of the samples times the length of a cycle without the timer. C code counts for the Python
function that calls it: packing and unpacking for the format, SHA-256 for the ids, reading and
writing for the sockets of the event loop. Waiting in epoll is where the process waits for the
server, and the call itself; with many tasks under way there is hardly any wait. Medians of the
repeats; the range is that of the whole cycle."""

_KILOBYTES = 1
_CYCLE = "cycle"
_LEAST = 0.5  # microseconds; a layer that nowhere takes as much is left out


async def _measure(contender: Contender, field: Field, tasks: int) -> dict[str, float]:
    plain = await field.cycles(contender, tasks)
    with sampling() as counted:
        await field.cycles(contender, tasks)
    cycle, samples = 1e6 / plain["rate"], counted.total()
    return {_CYCLE: cycle} | {layer: cycle * n / samples for layer, n in counted.items()}


async def _run(run: Run) -> list[Row]:
    rows: list[Row] = []
    pick = run.settings.pick
    async with AsyncExitStack() as stack:
        field = await Field.open(run, stack, SHORT, MANY_KEYS, _KILOBYTES, pick(256, 64))
        for tasks in (1, 64):
            rows += await run.in_turns(
                {"tasks": tasks},
                field.contenders,
                partial(_measure, field=field, tasks=tasks),
                warm_up=partial(field.warm_up, tasks=tasks),
            )
        await field.check()
    return rows


def _parts(row: Row) -> dict[str, float]:
    """Return the median of each layer; in a repeat without a sample of it, it took nothing."""
    repeats = len(row.metrics[_CYCLE])
    return {
        layer: spread(values + [0.0] * (repeats - len(values))).median
        for layer, values in row.metrics.items()
        if layer != _CYCLE
    }


def _layers(rows: list[Row]) -> list[str]:
    most: dict[str, float] = {}
    for row in rows:
        for layer, value in _parts(row).items():
            most[layer] = max(most.get(layer, 0.0), value)
    return [
        layer for layer in sorted(most, key=lambda layer: -most[layer]) if most[layer] >= _LEAST
    ]


def _tables(rows: list[Row]) -> str:
    parts = []
    for tasks in values_of(rows, "tasks"):
        own = select(rows, tasks=tasks)
        lines = [
            [layer, *(number(_parts(row).get(layer, 0.0)) for row in own)] for layer in _layers(own)
        ]
        whole = [spread(row.metrics[_CYCLE]) for row in own]
        ranges = [f"{number(s.median)} ({number(s.least)}-{number(s.most)})" for s in whole]
        lines.append(["**the cycle**", *ranges])
        corner = f"microseconds, {tasks} {'task' if tasks == 1 else 'tasks'}"
        parts.append(table([corner, *(row.contender for row in own)], lines))
    return "\n".join(parts)


def _plot(rows: list[Row], path: Path) -> None:
    numbers = values_of(rows, "tasks")
    drawn, panels = figure(len(numbers))
    colours = mpl.colormaps["tab20"]
    for tasks, panel in zip(numbers, panels, strict=True):
        own = select(rows, tasks=tasks)
        base = [0.0] * len(own)
        for at, layer in enumerate(_layers(rows)):
            parts = [_parts(row).get(layer, 0.0) for row in own]
            names = [row.contender for row in own]
            panel.barh(names, parts, left=base, label=layer, color=colours(at), height=0.6)
            base = [left + part for left, part in zip(base, parts, strict=True)]
        panel.invert_yaxis()
        panel.set_title(f"microseconds of a cycle, {tasks} at once", fontsize=10)
    finish(drawn, panels, path)


PROFILE = Scenario(
    "profile", "A profile", _METHOD.format(kilobytes=_KILOBYTES), _run, _tables, _plot
)
