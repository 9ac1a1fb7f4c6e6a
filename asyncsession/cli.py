"""The command line: `asyncsession demo`."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Annotated

import httpx
import typer
from rich.console import Console

from asyncsession.demo import report
from asyncsession.demo.process import running_server
from asyncsession.demo.race import Result, race
from asyncsession.demo.ways import WAYS

__all__ = ["app"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"asyncsession {version('asyncsession')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Async sessions in Redis with optimistic concurrency: no lost updates, no locks."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def demo(
    requests: Annotated[
        int, typer.Option(min=10, max=5000, help="Requests for each way of keeping the session.")
    ] = 400,
    parallel: Annotated[
        int, typer.Option(min=1, max=128, help="How many of them are under way at once.")
    ] = 32,
) -> None:
    """Race parallel requests of one browser for its session, kept in four ways; count the losses.

    Starts a FastAPI application on uvicorn and an embedded Valkey server, both of which end with
    the command. Nothing has to be installed or running, and nothing is left behind.
    """
    console = Console()
    report.introduce(console, requests, parallel)
    try:
        results = _race_all(console, requests, parallel)
    except (httpx.HTTPError, RuntimeError) as error:
        typer.echo(f"The demo's server has failed: {error or type(error).__name__}", err=True)
        raise typer.Exit(1) from None
    report.conclude(console, results)


def _race_all(console: Console, requests: int, parallel: int) -> list[Result]:
    results = []
    with running_server() as url, report.watching(console, requests) as watch:
        for way in WAYS:
            lane = watch(way)
            result = asyncio.run(race(url, way, requests, parallel, lane.advance))
            lane.finish(result)
            results.append(result)
    return results
