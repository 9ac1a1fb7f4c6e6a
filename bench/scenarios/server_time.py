"""How long the server is busy with a session."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from bench.contenders import FULL, Contender
from bench.field import Field
from bench.plots import bars, figure, finish, logarithmic
from bench.results import Row, spread
from bench.run import Run
from bench.scenarios.base import Scenario
from bench.shapes import MANY_KEYS, describe
from bench.stats import Server, Tally
from bench.tables import number, pivot

__all__ = ["SERVER_TIME"]

_METHOD = """\
`INFO commandstats`, before and after each of many sessions was loaded once, and again before and
after each was changed once, by one task. A load is the first; a commit is the second less the
first. The commands that a script calls are part of the script's time. A cycle's processor time is
that of the server's process (`INFO cpu`), which includes reading from and writing to its sockets:
there the number and the size of the commands count, too. Microseconds, medians."""


def _in_commands(spent: Tally, contender: Contender) -> tuple[int, int]:
    usec = sum(spent.usec.get(name, 0) for name in contender.sends)
    return usec, sum(spent.calls.get(name, 0) for name in contender.sends)


async def _measure(contender: Contender, field: Field, server: Server) -> dict[str, float]:
    number = len(field.ids(contender))
    start = await server.tally()
    await field.read_all(contender)
    middle = await server.tally()
    await field.change_all(contender)
    spent = (await server.tally()).since(middle)
    load, _ = _in_commands(middle.since(start), contender)
    cycle, calls = _in_commands(spent, contender)
    return {
        "load": load / number,
        "commit": (cycle - load) / number,
        "commands": calls / number,
        "cpu": spent.cpu / number,
    }


async def _run(run: Run) -> list[Row]:
    rows: list[Row] = []
    pick = run.settings.pick
    for kilobytes in pick((0.3, 1, 4, 64), (0.3, 4)):
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(Server(run.url))
            sessions = pick(150, 20)
            field = await Field.open(run, stack, FULL, MANY_KEYS, kilobytes, sessions)
            measure = partial(_measure, field=field, server=server)
            cell = {"kilobytes": kilobytes}
            rows += await run.in_turns(cell, field.contenders, measure, warm_up=measure)
            await field.check()
    return rows


_SHOWN = {
    "load": "in commands, a load",
    "commit": "in commands, a commit",
    "cpu": "processor time, a cycle",
    "commands": "commands, a cycle",
}


def _tables(rows: list[Row]) -> str:
    def show(metric: str, row: Row) -> str:
        return number(spread(row.metrics[metric]).median)

    parts = [
        pivot(rows, "kilobytes", partial(show, metric), heading=describe, corner=title)
        for metric, title in _SHOWN.items()
    ]
    return "\n".join(parts)


def _plot(rows: list[Row], path: Path) -> None:
    drawn, panels = figure(3)
    for panel, metric in zip(panels, ("load", "commit", "cpu"), strict=True):
        bars(panel, rows, "kilobytes", metric, describe)
        logarithmic(panel)
        panel.set_title(f"microseconds {_SHOWN[metric]}", fontsize=10)
    finish(drawn, panels, path)


SERVER_TIME = Scenario("server-time", "Time on the server", _METHOD, _run, _tables, _plot)
