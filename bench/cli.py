"""The command line: `python -m bench`."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import results
from bench.machine import environment
from bench.report import render
from bench.results import Record
from bench.run import Run, Settings, WorkNotDone
from bench.scenarios import SCENARIOS
from bench.server import running_server

__all__ = ["app"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_ROOT = Path(__file__).parent.parent
_DOCS, _QUICK = _ROOT / "docs", _ROOT / "build" / "bench"
_RESULTS = Path("benchmarks/results.json")


def _known(names: list[str] | None) -> list[str]:
    for name in names or []:
        if name not in SCENARIOS:
            raise typer.BadParameter(f"{name}: choose from {', '.join(SCENARIOS)}")
    return names or list(SCENARIOS)


@app.command()
def bench(
    scenarios: Annotated[
        list[str] | None,
        typer.Argument(callback=_known, help=f"Of {', '.join(SCENARIOS)}; all if none is named."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small numbers, to see that everything works.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=0.01, max=60, help="Of one measurement.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, max=100, help="Of each measurement.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write; docs by default, or build/bench with --quick."),
    ] = None,
    render_only: Annotated[
        bool, typer.Option("--render", help="Measure nothing; make the page from what there is.")
    ] = False,
) -> None:
    """Measure asyncsession beside its peers; write JSON, plots and a page.

    A Valkey server is started for each scenario and ends with it. Scenarios that are not named keep
    what an earlier run has written for them.
    """
    console = Console()
    folder = out or (_QUICK if quick else _DOCS)
    settings = Settings(seconds or (0.05 if quick else 0.5), repeats or (2 if quick else 5), quick)
    records = results.load(folder / _RESULTS)
    if not render_only:
        try:
            for name, record in _measure(console, scenarios or [], settings):
                records[name] = record
                results.save(
                    folder / _RESULTS, _in_order(records)
                )  # what is done is kept, whatever follows
        except (WorkNotDone, RuntimeError) as error:
            console.print(f"{type(error).__name__}: {error}", style="red", highlight=False)
            raise typer.Exit(1) from error
    measured = [name for name in scenarios or [] if name in records]
    if not measured:
        raise typer.BadParameter(f"there is nothing to render in {folder}")
    page = render(records, folder, measured)
    console.print(f"Wrote {page} and {folder / _RESULTS}.", highlight=False)


def _measure(
    console: Console, names: list[str], settings: Settings
) -> Iterator[tuple[str, Record]]:
    # Collecting goes over all objects there are, and the modules of all peers and of the plots have
    # a lot of them, which no application would have together.
    gc.freeze()
    with _progress(console, len(names)) as (begin, say):
        for name in names:
            begin(name)
            started = time.monotonic()
            with running_server() as url:
                machine = environment(url)
                rows = asyncio.run(SCENARIOS[name].run(Run(url, settings, say)))
            taken = time.monotonic() - started
            console.print(f"{name}: {len(rows)} rows in {taken:.0f} s", highlight=False)
            today = datetime.now(UTC).date().isoformat()
            yield name, Record(machine, vars(settings), today, rows)


def _in_order(records: dict[str, Record]) -> dict[str, Record]:
    return {name: records[name] for name in SCENARIOS if name in records}


@contextmanager
def _progress(
    console: Console, scenarios: int
) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """Show progress on a terminal; yield what begins a scenario, and what shows a line of detail.

    Nothing is drawn by itself: that would take time from what is being measured.
    """
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
        console=console,
        disable=not console.is_terminal,
        auto_refresh=False,
        transient=True,
    )
    bar = progress.add_task("", total=scenarios, detail="", completed=-1)

    def begin(name: str) -> None:
        progress.update(bar, description=name, advance=1, detail="", refresh=True)

    def say(detail: str) -> None:
        progress.update(bar, detail=detail, refresh=True)

    with progress:
        yield begin, say
