"""What a session takes in the server's memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from bench.contenders import PLAIN, SHORT, AsyncSession, Contender
from bench.plots import bars, figure, finish, trail
from bench.results import Row, select, spread, values_of
from bench.run import Run, WorkNotDone, count_all, create_all
from bench.scenarios.base import Scenario
from bench.shapes import MANY_KEYS, describe, json_bytes
from bench.stats import Server
from bench.tables import number, pivot

__all__ = ["MEMORY"]

_METHOD = """\
`MEMORY USAGE` of every session, averaged: the key, the value, and what the server needs around
them. Each session is measured when it has just been made, after many commits as fast as they come,
and, for asyncsession, after as many at the pace of a user. asyncsession appends to a log, folds it
now and then, and remembers the ids of folded commits for 30 seconds, so what it takes depends on
how much was committed lately; for all others it is what the session is. Keys and their prefixes are
each library's own."""

_COMMITS = 100
_PACE = 1.0  # seconds from one commit to the next
_FRESH = "new"
_CURVE_KILOBYTES = 1


async def _average(server: Server, sessions: int) -> float:
    sizes = await server.memory()
    if len(sizes) != sessions:
        raise WorkNotDone(f"{sessions} sessions were made, and there are {len(sizes)} keys")
    return fmean(sizes.values())


async def _commit_all(contender: Contender, ids: Sequence[str], commits: int, pace: float) -> None:
    """Commit so many times in each session, all sessions side by side."""

    async def commit(session_id: str) -> None:
        for _ in range(commits):
            await contender.change(session_id, MANY_KEYS.count)
            await asyncio.sleep(pace)

    await asyncio.gather(*map(commit, ids))
    counted = await count_all(contender, ids, MANY_KEYS.counted)
    if counted != commits * len(ids):
        raise WorkNotDone(f"{contender.name} counted {counted} of {commits * len(ids)}")


def _row(kilobytes: float, state: str, contender: str, size: float) -> Row:
    row = Row({"kilobytes": kilobytes, "state": state}, contender)
    row.add({"bytes": size, "json": json_bytes(MANY_KEYS.build(kilobytes))})
    return row


async def _run(run: Run) -> list[Row]:
    rows: list[Row] = []
    pick = run.settings.pick
    many, few, commits, pace = pick((1000, 50, _COMMITS, _PACE), (20, 5, 10, 0.001))
    sizes = pick((0.3, 1, 4, 64), (0.3, 4))
    at_once, paced = f"{commits} commits at once", f"{commits} commits, one each {pace:g} s"
    async with Server(run.url) as server:
        for kilobytes in sizes:
            for kind in PLAIN:
                for state, sessions in ((_FRESH, many), (at_once, few)):
                    run.say(f"{describe(kilobytes)}, {state}: {kind.name}")
                    await run.flush()
                    async with kind(run.url) as contender:
                        content = MANY_KEYS.build(kilobytes)
                        ids = await create_all(contender, content, sessions)
                        if state == at_once:
                            await _commit_all(contender, ids, commits, 0)
                    average = await _average(server, sessions)
                    rows.append(_row(kilobytes, state, kind.name, average))
        run.say(f"{paced}: {AsyncSession.name}")
        averages = await _paced(run, server, sizes, few, commits, pace)
        rows += [_row(size, paced, AsyncSession.name, averages[size]) for size in sizes]
        for kind in SHORT:
            run.say(f"commit by commit: {kind.name}")
            rows += await _curve(run, server, kind, pick(256, 16))
    return rows


async def _paced(
    run: Run, server: Server, sizes: Sequence[float], sessions: int, commits: int, pace: float
) -> dict[float, float]:
    """Commit at a pace in sessions of all sizes at once, since that takes long; return averages."""
    await run.flush()
    ids: list[str] = []
    keys: dict[float, set[bytes | str]] = {}
    known: set[bytes | str] = set()
    async with AsyncSession(run.url) as contender:
        for kilobytes in sizes:
            ids += await create_all(contender, MANY_KEYS.build(kilobytes), sessions)
            keys[kilobytes] = set(await server.memory()) - known
            known |= keys[kilobytes]
        await _commit_all(contender, ids, commits, pace)
    stored = await server.memory()
    return {kilobytes: fmean(stored[key] for key in own) for kilobytes, own in keys.items()}


async def _curve(run: Run, server: Server, kind: type[Contender], commits: int) -> list[Row]:
    await run.flush()
    rows = []
    async with kind(run.url) as contender:
        session_id = await contender.create(MANY_KEYS.build(_CURVE_KILOBYTES))
        for commit in range(1, commits + 1):
            await contender.change(session_id, MANY_KEYS.count)
            row = Row({"commits": commit}, kind.name)
            row.add({"bytes": await _average(server, 1)})
            rows.append(row)
    return rows


def _tables(rows: list[Row]) -> str:
    parts = []
    for kilobytes in values_of(rows, "kilobytes"):
        own = select(rows, kilobytes=kilobytes)
        json = number(own[0].metrics["json"][0])
        shown = pivot(
            own,
            "state",
            lambda row: number(spread(row.metrics["bytes"]).median),
            corner=f"bytes; {describe(kilobytes)} session, {json} bytes of JSON",
        )
        parts.append(shown)
    return "\n".join(parts)


def _per_byte(row: Row) -> Row:
    (stored,), (json,) = row.metrics["bytes"], row.metrics["json"]
    return Row(row.cell, row.contender, {"relative": [stored / json]})


def _plot(rows: list[Row], path: Path) -> None:
    drawn, panels = figure(3)
    for panel, state in zip(panels, values_of(rows, "state")[:2], strict=False):
        relative = [_per_byte(row) for row in rows if row.cell.get("state") == state]
        bars(panel, relative, "kilobytes", "relative", describe)
        panel.set_title(f"bytes for a byte of JSON, {state}", fontsize=10)
    trail(panels[2], [row for row in rows if "commits" in row.cell], "commits", "bytes")
    panels[2].set_title(f"bytes; {describe(_CURVE_KILOBYTES)}, commits at once", fontsize=10)
    panels[2].set_xlabel("commits")
    finish(drawn, panels, path)


MEMORY = Scenario("memory", "Memory in Redis", _METHOD, _run, _tables, _plot)
