"""Markdown made of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench.results import Row, Spread, ratio, select, spread, values_of

__all__ = ["number", "paired", "pivot", "ranged", "table"]


def table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are figures."""
    align = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [headings, align, *lines]) + "\n"


def pivot(
    rows: Sequence[Row],
    column: str,
    show: Callable[[Row], str],
    *,
    heading: Callable[[Any], str] = str,
    corner: str = "",
) -> str:
    """Return a table with a line for each contender and a column for each value of `column`."""
    columns = values_of(rows, column)
    lines = []
    for contender in dict.fromkeys(row.contender for row in rows):
        cells = [select(rows, contender, **{column: value}) for value in columns]
        lines.append([contender, *(show(found[0]) if found else "-" for found in cells)])
    return table([corner, *map(heading, columns)], lines)


def paired(rows: Sequence[Row], metric: str) -> Callable[[Row], str]:
    """Return what shows a row's median and, but for the first contender, how that one compares."""
    first = rows[0].contender

    def show(row: Row) -> str:
        median = number(spread(row.metrics[metric]).median)
        if row.contender == first:
            return median
        (reference,) = select(rows, first, **row.cell)
        return f"{median}; {ranged(ratio(reference, row, metric))}"

    return show


def ranged(values: Spread) -> str:
    """Return `1.31 (1.27-1.40)`: the median, and the range."""
    return f"{values.median:.2f} ({values.least:.2f}-{values.most:.2f})"


def number(value: float) -> str:
    """Return three significant digits, in plain notation."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
