"""Bytes on the wire, as the server counts them."""

from __future__ import annotations

import secrets
from collections.abc import MutableMapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from bench.contenders import FULL, Change, Contender
from bench.plots import curve, figure, finish, logarithmic
from bench.results import Row, select
from bench.run import Run
from bench.scenarios.base import Scenario
from bench.shapes import MANY_KEYS, ONE_VALUE, describe
from bench.stats import Server
from bench.tables import number, pivot

__all__ = ["WIRE"]

_METHOD = """\
Bytes of a cycle (load, change, save) on one session, over {cycles} cycles, from the server's own
count (`total_net_input_bytes` and `total_net_output_bytes`), less those of asking for it. First
against the session's size, where the change is one more in a counter; the same with the whole
session in one value, of which the counter is a part; then against the size of the change, which
assigns a new text of that length to one key of a session of {changed} KB. Every cycle loads the
session: that is nearly all of what is received."""

_CYCLES = 100
_CHANGED_KILOBYTES = 16


class _Write:
    """A change of a wanted size: a text that was never there before."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __call__(self, session: MutableMapping[str, Any]) -> None:
        session["note"] = secrets.token_hex(self._length // 2)


async def _cycle_bytes(
    server: Server, contender: Contender, content: dict[str, Any], change: Change, cycles: int
) -> dict[str, float]:
    session_id = await contender.create(content)
    await contender.change(session_id, change)  # opens connections, loads scripts
    question = await server.question()
    before = await server.tally()
    for _ in range(cycles):
        await contender.change(session_id, change)
    spent = (await server.tally()).since(before)
    return {
        "sent": (spent.received - question.received) / cycles,
        "received": (spent.sent - question.sent) / cycles,
    }


async def _run(run: Run) -> list[Row]:
    pick = run.settings.pick
    sizes, changes = (
        pick((0.3, 1, 4, 16, 64), (0.3, 4)),
        pick((16, 256, 1024, 4096, 16384), (16, 256)),
    )
    plan: list[tuple[dict[str, Any], dict[str, Any], Change]] = [
        ({"shape": shape.name, "kilobytes": size}, shape.build(size), shape.count)
        for shape in (MANY_KEYS, ONE_VALUE)
        for size in sizes
    ]
    changed = MANY_KEYS.build(_CHANGED_KILOBYTES)
    plan += [({"change": length}, changed, _Write(length)) for length in changes]
    rows = []
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(Server(run.url))
        for contender in await run.open(stack, FULL):
            for cell, content, change in plan:
                run.say(f"{contender.name}: {cell}")
                row = Row(cell, contender.name)
                cycles = pick(_CYCLES, 10)
                row.add(await _cycle_bytes(server, contender, content, change, cycles))
                rows.append(row)
    return rows


def _show(row: Row) -> str:
    return f"{number(row.metrics['sent'][0])} + {number(row.metrics['received'][0])}"


def _tables(rows: list[Row]) -> str:
    parts = ["Bytes sent + bytes received, for one cycle.\n"]
    for shape in (MANY_KEYS, ONE_VALUE):
        own = select(rows, shape=shape.name)
        parts.append(pivot(own, "kilobytes", _show, heading=describe, corner=shape.name))
    own = [row for row in rows if "change" in row.cell]
    corner = f"text assigned, {_CHANGED_KILOBYTES} KB session"
    parts.append(pivot(own, "change", _show, heading=lambda n: f"{n:,} bytes", corner=corner))
    return "\n".join(parts)


def _plot(rows: list[Row], path: Path) -> None:
    drawn, panels = figure(3)
    for panel, shape in zip(panels, (MANY_KEYS, ONE_VALUE), strict=False):
        curve(panel, select(rows, shape=shape.name), "kilobytes", "sent")
        panel.set_title(f"bytes sent; {shape.name}, one counted up", fontsize=10)
        panel.set_xlabel("KB of session")
    curve(panels[2], [row for row in rows if "change" in row.cell], "change", "sent")
    panels[2].set_title(f"bytes sent; session of {_CHANGED_KILOBYTES} KB", fontsize=10)
    panels[2].set_xlabel("bytes of change")
    for panel in panels:
        logarithmic(panel)
    finish(drawn, panels, path)


WIRE = Scenario(
    "wire",
    "Bytes on the wire",
    _METHOD.format(cycles=_CYCLES, changed=_CHANGED_KILOBYTES),
    _run,
    _tables,
    _plot,
)
