"""What a run measured, as it is kept in the JSON file, and the statistics that pages show of it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Record", "Row", "Spread", "load", "ratio", "save", "select", "spread", "values_of"]

_FORMAT = 1
_DIGITS = 6  # significant; far more than repeats agree in

Cell = dict[str, str | int | float]


@dataclass(frozen=True)
class Row:
    """What one contender did in one cell of a scenario.

    Attributes:
        cell: what was varied, such as the size of the sessions and the number of tasks.
        contender: its name.
        metrics: name to one value for each repeat; the same index is the same repeat for all
            contenders of the cell, which took their turns in it.
    """

    cell: Cell
    contender: str
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def add(self, measured: dict[str, float]) -> None:
        """Take in what one more repeat has measured."""
        for name, value in measured.items():
            self.metrics.setdefault(name, []).append(float(f"{value:.{_DIGITS}g}"))


@dataclass(frozen=True)
class Record:
    """One scenario's result.

    Attributes:
        environment: the machine and the versions, as `bench.machine` tells them.
        settings: seconds for each measurement, repeats, whether the run was a quick one.
        taken: the day, UTC.
        rows: what was measured.
    """

    environment: dict[str, Any]
    settings: dict[str, Any]
    taken: str
    rows: list[Row]


class Spread(NamedTuple):
    """A median, and the least and greatest value."""

    median: float
    least: float
    most: float


def spread(values: Iterable[float]) -> Spread:
    """Return the median and the range of some values, at least one."""
    ordered = sorted(values)
    return Spread(statistics.median(ordered), ordered[0], ordered[-1])


def ratio(one: Row, other: Row, metric: str) -> Spread:
    """Return `one` divided by `other`, each repeat by itself: noise that hit both cancels out."""
    pairs = zip(one.metrics[metric], other.metrics[metric], strict=True)
    return spread(ours / theirs if theirs else math.inf for ours, theirs in pairs)


def select(rows: Iterable[Row], contender: str | None = None, **cell: Any) -> list[Row]:
    """Return the rows of a contender, or of all, whose cell has the given values."""
    return [
        row
        for row in rows
        if contender in (None, row.contender) and cell.items() <= row.cell.items()
    ]


def values_of(rows: Iterable[Row], name: str) -> list[Any]:
    """Return the values that a part of the cell takes, each once, in the order they come."""
    return list(dict.fromkeys(row.cell[name] for row in rows if name in row.cell))


def load(path: Path) -> dict[str, Record]:
    """Return the scenarios' records in a file; none if there is no file.

    Raises:
        ValueError: the file is of another format.
    """
    if not path.exists():
        return {}
    document = json.loads(path.read_text("utf-8"))
    if document.get("format") != _FORMAT:
        raise ValueError(f"{path.name} is not of format {_FORMAT}; remove it and measure again")
    return {
        name: Record(**(record | {"rows": [Row(**row) for row in record["rows"]]}))
        for name, record in document["scenarios"].items()
    }


def save(path: Path, records: dict[str, Record]) -> None:
    """Write the records, a row to a line so that a diff can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"format": {_FORMAT}, "scenarios": {{\n{_lines(records)}\n}}}}\n', "utf-8")


def _lines(records: dict[str, Record]) -> str:
    return ",\n".join(f"{json.dumps(name)}: {_record(record)}" for name, record in records.items())


def _record(record: Record) -> str:
    fields = vars(record).items()
    head = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in fields if key != "rows"]
    return "{" + ",\n".join([*head, f'"rows": [\n{_rows(record.rows)}\n]']) + "}"


def _rows(rows: Sequence[Row]) -> str:
    return ",\n".join(json.dumps(vars(row)) for row in rows)
