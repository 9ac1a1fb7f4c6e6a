"""What a scenario is: something to run, and something to say about it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.results import Row
from bench.run import Run

__all__ = ["Scenario"]


@dataclass(frozen=True)
class Scenario:
    """One of the suite.

    Attributes:
        name: on the command line and in the JSON file.
        title: its heading on the page.
        method: what is measured and how, for the page.
        run: measures, and returns a row for each contender and cell.
        tables: Markdown made of the rows.
        plot: draws the rows into a PNG file.
        page: a page of its own, in place of a section of the page of all.
    """

    name: str
    title: str
    method: str
    run: Callable[[Run], Coroutine[Any, Any, list[Row]]]
    tables: Callable[[list[Row]], str]
    plot: Callable[[list[Row], Path], None]
    page: str | None = None
