"""The races: one browser's parallel requests, against everything that is recommended for them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from redis.asyncio import Redis

from bench.plots import across, figure, finish
from bench.results import Row, select, spread, values_of
from bench.run import Run
from bench.scenarios.base import Scenario
from bench.sites.browser import Browser, open_browser
from bench.sites.kinds import KINDS, Kind
from bench.sites.pages import WORK
from bench.sites.postgres import running_postgres
from bench.sites.serve import THREADS
from bench.sites.workers import running_workers
from bench.tables import number, table

__all__ = ["RACES"]

_METHOD = """\
A visit reads a counter in the session, works for {work:g} ms, as a query or two would, and then
adds one to the counter, appends its number to a list and sets a key of its own. One browser makes
{full} visits with one cookie, {tabs} at a time, over HTTP on kept connections; then the session is
read. Lost are updates of acknowledged visits (three each) that a next request does not see; where
workers disagree, the mean of what they show. Failed are visits that were answered with an error, or
not at all. Requests per second are those acknowledged; latencies are theirs. The session is made by
one request before, and all connections are opened before.

Logout during a slow request: a request loads the session and is held up; the user logs out in
another tab; the slow request goes on, changes the session and is answered; then the old cookie is
tried. "In part": what the slow request wrote is there, and what was deleted is not. "Waits": the
logout was not answered before the slow request was. Behind it is the slow request's status.

Each site is served by waitress with {threads} threads, an ASGI site by uvicorn. With two processes,
each has a port of its own and the tabs are spread evenly over them, as a balancer would. The
browser, the workers and the servers share the machine's cores."""

_REQUESTS, _TABS = 160, 16
_QUICK = 24, 8
_PROCESSES = 1, 2


@dataclass(frozen=True)
class _Site:
    """A running site, seen by a browser.

    Attributes:
        name: of its kind.
        browser: that spreads its requests over some of the workers.
    """

    name: str
    browser: Browser


async def _measure(site: _Site, redis: Redis, scale: tuple[int, int]) -> dict[str, float]:
    raced = await site.browser.race(*scale)
    return raced | await site.browser.logout_meanwhile(redis)


def _kinds(has_postgres: bool) -> list[Kind]:
    return [
        kind for kind in KINDS.values() if kind.races and (has_postgres or not kind.needs_postgres)
    ]


async def _run(run: Run) -> list[Row]:
    rows: list[Row] = []
    scale = run.settings.pick((_REQUESTS, _TABS), _QUICK)
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        postgres = stack.enter_context(running_postgres())
        redis = await stack.enter_async_context(Redis.from_url(run.url))
        kinds = _kinds(postgres is not None)
        run.say(f"starting {len(kinds)} sites")
        ports = stack.enter_context(
            running_workers(kinds, max(_PROCESSES), run.url, directory, postgres)
        )
        for processes in _PROCESSES:
            sites = [
                _Site(name, await stack.enter_async_context(open_browser(own[:processes])))
                for name, own in ports.items()
            ]
            rows += await run.in_turns(
                {"processes": processes},
                sites,
                partial(_measure, redis=redis, scale=scale),
            )
    return rows


def _percent(row: Row, metric: str) -> str:
    share = spread(row.metrics[metric]).median
    return "0" if not max(row.metrics[metric]) else f"{share:.1%}"


def _figure(row: Row, metric: str) -> str:
    return number(spread(row.metrics[metric]).median)


def _logout(row: Row) -> str:
    """Say whether somebody who logged out stays out, and what became of the slow request."""
    back, left = max(row.metrics["back"]), max(row.metrics["left"])
    said = "comes back" if back else "comes back in part" if left else "stays out"
    waited = ", waits" if max(row.metrics["waited"]) else ""
    return f"{said}{waited}; {max(row.metrics['slow']):.0f}"


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "updates lost": partial(_percent, metric="lost"),
    "own keys lost": partial(_percent, metric="own keys lost"),
    "failed": partial(_percent, metric="failed"),
    "requests/s": partial(_figure, metric="rate"),
    "p50, ms": partial(_figure, metric="p50"),
    "p99, ms": partial(_figure, metric="p99"),
    "logout; slow request": _logout,
}


def _processes(number: int) -> str:
    return {1: "one process", 2: "two processes"}[number]


def _tables(rows: list[Row]) -> str:
    parts = []
    if not any(KINDS[row.contender].needs_postgres for row in rows):
        parts.append("There was no PostgreSQL on this machine.\n")
    for processes in values_of(rows, "processes"):
        lines = [
            [row.contender, *(show(row) for show in _COLUMNS.values())]
            for row in select(rows, processes=processes)
        ]
        parts.append(table([_processes(processes), *_COLUMNS], lines))
    about = [f"| {kind.name} | {kind.about} |" for kind in _kinds(has_postgres=True)]
    parts.append("\n".join(["| remedy | what it does |", "| --- | --- |", *about]) + "\n")
    return "\n".join(parts)


def _plot(rows: list[Row], path: Path) -> None:
    drawn, panels = figure(3, height=max(3.0, 0.32 * len({row.contender for row in rows})))
    titles = {"lost": "updates lost, share", "rate": "requests per second", "p99": "p99, ms"}
    for panel, (metric, title) in zip(panels, titles.items(), strict=True):
        across(panel, rows, "processes", metric, _processes)
        panel.set_title(title, fontsize=10)
    for panel in panels[1:]:
        panel.set_yticklabels([])
    finish(drawn, panels, path)


RACES = Scenario(
    "races",
    "Races, and what is recommended against them",
    _METHOD.format(work=WORK * 1000, full=_REQUESTS, tabs=_TABS, threads=THREADS),
    _run,
    _tables,
    _plot,
    page="races.md",
)
