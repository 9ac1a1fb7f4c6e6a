"""End to end with threads: a Flask and a Django page that count their visits."""

from __future__ import annotations

import asyncio
import http.client
import json
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.plots import across, figure, finish
from bench.results import Row, select, spread, values_of
from bench.run import Run
from bench.scenarios.base import Scenario
from bench.sites.kinds import KINDS
from bench.sites.serve import THREADS
from bench.sites.workers import running_workers
from bench.tables import number, paired, table
from bench.web.load import loader
from bench.web.workers import Site

__all__ = ["WSGI"]

_METHOD = """\
A page adds one to a counter in the session and shows it, on Flask and on Django, served by waitress
in one process with {threads} threads. {browsers} browsers, each with its own cookie and one kept
connection, ask for it as fast as they are answered. Counters are compared with the number of
answers: a browser never asks twice at once, so nothing may be lost. A figure is answers per second,
and how many times that asyncsession gave in the same repeat. Processor time is that of the worker's
process, for each answer; that of the servers of the sessions, where they are processes, is not in
it. SQLite writes to the disk, Valkey here does not. Only pages of one framework can be compared."""

_BROWSERS = 16
_LONGER = 6  # times as long as a measurement of the other scenarios
_WARM_UP = 0.5  # second
_SHOWN = {
    "Flask": ("asyncsession", "Flask-Session", "GET and SET", "no session"),
    "Django": ("asyncsession", "django-redis", "cached_db", "db", "no session"),
}


def _kind(framework: str, name: str) -> str:
    return name if name == "Flask-Session" else f"{framework}, {name}"


def _processor_time(port: int) -> float:
    """Return the seconds that a worker has used."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/cpu")
        seconds: float = json.load(connection.getresponse())["seconds"]
        return seconds
    finally:
        connection.close()


async def _load(site: Site, seconds: float) -> dict[str, float]:
    (port,) = site.ports
    before = _processor_time(port)
    measured = await asyncio.to_thread(site.load, seconds)
    spent = _processor_time(port) - before
    return measured | {"cpu": spent / measured["answered"] * 1e6}


async def _run(run: Run) -> list[Row]:
    rows: list[Row] = []
    seconds = run.settings.seconds * _LONGER
    for framework, names in _SHOWN.items():
        await run.flush()
        run.say(f"starting {framework}")
        kinds = [KINDS[_kind(framework, name)] for name in names]
        with ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
            workers = running_workers(kinds, 1, run.url, Path(directory))
            ports = stack.enter_context(workers)
            sites = [Site(name, own, _BROWSERS) for name, own in ports.items()]
            rows += await run.in_turns(
                {"framework": framework, "client": loader()},
                sites,
                partial(_load, seconds=seconds),
                warm_up=partial(_load, seconds=min(seconds, _WARM_UP)),
            )
    return rows


def _tables(rows: list[Row]) -> str:
    (client,) = values_of(rows, "client")
    parts = [f"The client was {client}.\n"]
    for framework in values_of(rows, "framework"):
        own = select(rows, framework=framework)
        shown = paired(own, "rate")
        lines = [
            [
                row.contender,
                shown(row),
                number(spread(row.metrics["cpu"]).median),
                number(spread(row.metrics["p99"]).median),
                f"{max(row.metrics['lost']):.2%}",
            ]
            for row in own
        ]
        headings = [
            framework, "answers per second", "processor time, microseconds", "p99, ms", "lost",
        ]  # fmt: skip
        parts.append(table(headings, lines))
    return "\n".join(parts)


def _plot(rows: list[Row], path: Path) -> None:
    drawn, panels = figure(2)
    titles = {"rate": "answers per second", "cpu": "microseconds of processor time, an answer"}
    for panel, (metric, title) in zip(panels, titles.items(), strict=True):
        across(panel, rows, "framework", metric)
        panel.set_title(title, fontsize=10)
    panels[1].set_yticklabels([])
    finish(drawn, panels, path)


WSGI = Scenario(
    "wsgi",
    "Flask and Django, end to end",
    _METHOD.format(threads=THREADS, browsers=_BROWSERS),
    _run,
    _tables,
    _plot,
)
