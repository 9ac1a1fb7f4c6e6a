"""End to end: a page on FastAPI and uvicorn that counts its visits."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.plots import bars, figure, finish
from bench.results import Row, spread, values_of
from bench.run import Run
from bench.scenarios.base import Scenario
from bench.tables import number, paired, pivot
from bench.web.app import KINDS
from bench.web.load import loader
from bench.web.workers import Site, running_site

__all__ = ["WEB"]

_METHOD = """\
A FastAPI page on uvicorn (asyncio's own loop) adds one to a counter in `request.session` and shows
it; that page is the same function for both, and the one without sessions shows a constant.
{browsers} browsers, each with its own cookie and one kept connection, ask for it as fast as they
are answered. starsessions has its autoload middleware and a rolling lifetime, so that both put the
lifetime off. Each worker is a process with a port of its own, and the browsers are spread evenly.
The client is a process of its own; it, the workers and Valkey share the machine's cores, so that
more workers than cores gain little. Counters are compared with the number of answers: a browser
never asks twice at once, so nothing may be lost. A figure is answers per second, and how many times
that asyncsession gave in the same repeat."""

_BROWSERS = 32
_LONGER = 8  # times as long as a measurement of the other scenarios; wrk counts whole seconds
_WARM_UP = 1.0  # second


async def _load(site: Site, seconds: float) -> dict[str, float]:
    return await asyncio.to_thread(site.load, seconds)


async def _run(run: Run) -> list[Row]:
    rows: list[Row] = []
    seconds = run.settings.seconds * _LONGER
    for workers in (1, 2):
        await run.flush()
        with ExitStack() as stack:
            sites = []
            for kind in KINDS:
                run.say(f"{workers} workers: starting {kind}")
                running = running_site(kind, run.url, workers, _BROWSERS)
                sites.append(stack.enter_context(running))
            rows += await run.in_turns(
                {"workers": workers, "client": loader()},
                sites,
                partial(_load, seconds=seconds),
                warm_up=partial(_load, seconds=min(seconds, _WARM_UP)),
            )
    return rows


def _workers(number: int) -> str:
    return f"{number} worker" if number == 1 else f"{number} workers"


def _tables(rows: list[Row]) -> str:
    (client,) = values_of(rows, "client")
    rates = pivot(
        rows,
        "workers",
        paired(rows, "rate"),
        heading=_workers,
        corner="answers per second",
    )
    waits = pivot(
        rows,
        "workers",
        lambda row: number(spread(row.metrics["p99"]).median),
        heading=_workers,
        corner="p99, ms",
    )
    losses = pivot(
        rows,
        "workers",
        lambda row: f"{max(row.metrics['lost']):.2%}",
        heading=_workers,
        corner="lost visits",
    )
    return f"The client was {client}.\n\n{rates}\n{waits}\n{losses}"


def _plot(rows: list[Row], path: Path) -> None:
    drawn, panels = figure(2)
    for panel, metric, title in zip(
        panels, ("rate", "p99"), ("answers per second", "p99, ms"), strict=True
    ):
        bars(panel, rows, "workers", metric, _workers)
        panel.set_title(title, fontsize=10)
    finish(drawn, panels, path)


WEB = Scenario(
    "web", "FastAPI, end to end", _METHOD.format(browsers=_BROWSERS), _run, _tables, _plot
)
