"""What the demo prints: an introduction, live progress, a table, and how far to trust it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from asyncsession.demo.race import UPDATES, Result
from asyncsession.demo.ways import WAYS, WORK

__all__ = ["Lane", "conclude", "introduce", "watching"]

_WIDEST = 100  # columns
_STYLES = {"asyncsession": "bold"}


def introduce(console: Console, requests: int, parallel: int) -> None:
    """Say what is about to be done."""
    console.width = min(console.width, _WIDEST)
    console.print(
        f"One browser sends {requests:,} requests, {parallel} at a time, to FastAPI on uvicorn. "
        f"Each makes {UPDATES} updates to its session: it adds 1 to a counter, puts an item in the "
        f"cart and sets a key of its own. Every handler works for {WORK * 1000:g} ms between load "
        f"and save.\n",
        highlight=False,
    )


class Lane:
    """The progress bar of one race."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self) -> None:
        """Show one more answer."""
        self._progress.advance(self._task)

    def finish(self, result: Result) -> None:
        """Show what came of it."""
        self._progress.update(self._task, outcome=f"lost {_losses(result)}")


@contextmanager
def watching(console: Console, requests: int) -> Iterator[Callable[[str], Lane]]:
    """Show live progress on a terminal, elsewhere nothing; yield what begins a way's lane."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[outcome]}"),
        console=console,
        disable=not console.is_terminal,
        transient=True,  # the table says it all again
        refresh_per_second=5,  # drawing takes time from the browser
    )
    tasks = {
        way: progress.add_task(title, total=requests, start=False, outcome="")
        for way, title in WAYS.items()
    }

    def watch(way: str) -> Lane:
        progress.start_task(tasks[way])
        return Lane(progress, tasks[way])

    with progress:
        yield watch


def conclude(console: Console, results: Sequence[Result]) -> None:
    """Print the table, what its figures mean, and what they are worth."""
    console.print(_table(results))
    console.print(
        f"\nLost: acknowledged with 2xx, and not in the session at the end; an attempt is a run of "
        f"the handler or, for the lock, a try to take it. Measured just now on one machine, where "
        f"browser, server and an embedded Valkey on a unix socket share {os.cpu_count()} cores: "
        f"compare the rows with one another, not with figures from elsewhere.",
        highlight=False,
    )


def _table(results: Sequence[Result]) -> Table:
    with_errors = any(result.failed for result in results)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("session kept by", no_wrap=True)
    table.add_column("updates lost", justify="right", no_wrap=True)
    if with_errors:
        table.add_column("errors", justify="right")
    for heading in ("time", "req/s", "p99", "attempts\nper commit"):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(*_row(result, with_errors=with_errors), style=_STYLES.get(result.way))
    return table


def _row(result: Result, *, with_errors: bool) -> list[str]:
    answered = result.acknowledged
    return [
        WAYS[result.way],
        _losses(result),
        *([f"{result.failed:,}"] if with_errors else []),
        f"{result.seconds:.2f} s",
        f"{answered / result.seconds:,.0f}",
        f"{result.p99 * 1000:,.0f} ms" if answered else "-",
        f"{result.attempts / answered:.2f}" if answered else "-",
    ]


def _losses(result: Result) -> str:
    losses = f"{result.lost:,} of {result.updates:,}"
    if not result.lost:
        return f"[green]{losses}[/green]"
    return f"[red]{losses} ({result.lost / result.updates:.0%})[/red]"
