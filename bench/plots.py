"""Drawing, the same for all scenarios: one colour and mark for each contender everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.results import Row, select, spread, values_of

__all__ = ["across", "bars", "curve", "figure", "finish", "logarithmic", "trail"]

mpl.use("Agg")

# Okabe and Ito's palette, which people who confuse colours can tell apart.
_STYLES = {
    "asyncsession": ("#D55E00", "o"),
    "asyncsession, unremembered": ("#D55E00", "x"),
    "asyncsession, merge function": ("#D55E00", "s"),
    "asyncsession, update()": ("#CC79A7", "v"),
    "starsessions": ("#0072B2", "D"),
    "aiohttp-session": ("#56B4E9", "^"),
    "Litestar": ("#009E73", "<"),
    "Flask-Session": ("#0072B2", "D"),
    "Django, django-redis": ("#009E73", "<"),
    "GET and SET": ("#000000", "x"),
    "redis-py Lock": ("#E69F00", "P"),
    "WATCH and MULTI": ("#999999", "*"),
    "compare-and-set": ("#7A5C00", ">"),
}
_GROUPS = "#56B4E9", "#0072B2", "#E69F00", "#D55E00"
_OTHER = ("#666666", ".")
_PANEL = 4.6, 3.4  # inches


def figure(columns: int, rows: int = 1, height: float = _PANEL[1]) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, row by row, each of a height in inches."""
    drawn = Figure(figsize=(_PANEL[0] * columns, height * rows), layout="constrained")
    panels = drawn.subplots(rows, columns, squeeze=False)
    return drawn, [panel for line in panels for panel in line]


def curve(panel: Axes, rows: Sequence[Row], x: str, metric: str, **options: Any) -> None:
    """Draw a line for each contender: the medians over `x`, with the range of the repeats."""
    for contender in dict.fromkeys(row.contender for row in rows):
        own = select(rows, contender)
        points = [spread(row.metrics[metric]) for row in own]
        colour, mark = _style(contender)
        medians = [point.median for point in points]
        below = [point.median - point.least for point in points]
        above = [point.most - point.median for point in points]
        width = 2.0 if contender.startswith("asyncsession") else 1.0
        panel.errorbar(
            [float(row.cell[x]) for row in own],
            medians,
            yerr=[below, above],
            label=contender,
            color=colour,
            marker=mark,
            markersize=4,
            linewidth=width,
            elinewidth=0.8,
            capsize=2,
            **options,
        )
    ticks = [float(value) for value in values_of(rows, x)]
    panel.set_xscale("log", base=2)
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.grid(visible=True, alpha=0.25)


def trail(panel: Axes, rows: Sequence[Row], x: str, metric: str) -> None:
    """Draw a plain line for each contender over many values of `x`, from zero."""
    for contender in dict.fromkeys(row.contender for row in rows):
        own = select(rows, contender)
        panel.plot(
            [float(row.cell[x]) for row in own],
            [spread(row.metrics[metric]).median for row in own],
            label=contender,
            color=_style(contender)[0],
            linewidth=1,
        )
    panel.set_ylim(bottom=0)
    panel.grid(visible=True, alpha=0.25)


def logarithmic(panel: Axes) -> None:
    """Give a panel's upright axis a logarithmic scale, with the numbers written out."""
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:,g}"))
    panel.yaxis.set_minor_locator(NullLocator())


def bars(
    panel: Axes, rows: Sequence[Row], column: str, metric: str, name: Callable[[Any], str] = str
) -> None:
    """Draw a group of bars for each value of `column`, one bar for each contender."""
    groups = values_of(rows, column)
    contenders = list(dict.fromkeys(row.contender for row in rows))
    width = 0.8 / len(contenders)
    for place, contender in enumerate(contenders):
        own = select(rows, contender)
        points = [spread(row.metrics[metric]) for row in own]
        at = [groups.index(row.cell[column]) - 0.4 + width * (place + 0.5) for row in own]
        ranges = [[p.median - p.least for p in points], [p.most - p.median for p in points]]
        panel.bar(
            at,
            [point.median for point in points],
            width,
            label=contender,
            color=_style(contender)[0],
            yerr=ranges,
            error_kw={"elinewidth": 0.8, "capsize": 2, "ecolor": "#444444"},
        )
    panel.set_xticks(range(len(groups)), [name(group) for group in groups])
    panel.grid(visible=True, axis="y", alpha=0.25)


def across(
    panel: Axes, rows: Sequence[Row], column: str, metric: str, name: Callable[[Any], str] = str
) -> None:
    """Draw a group of lying bars for each contender, one for each value of `column` that it has."""
    values = values_of(rows, column)
    contenders = list(dict.fromkeys(row.contender for row in rows))
    for value, colour in zip(values, _GROUPS, strict=False):
        places, heights, medians = [], [], []
        for at, contender in enumerate(contenders):
            own = [row.cell[column] for row in select(rows, contender)]
            for row in select(rows, contender, **{column: value}):
                height = 0.8 / len(own)
                places.append(at - 0.4 + height * (own.index(value) + 0.5))
                heights.append(height)
                medians.append(spread(row.metrics[metric]).median)
        panel.barh(places, medians, heights, label=name(value), color=colour)
    panel.set_yticks(range(len(contenders)), contenders, fontsize=8)
    panel.invert_yaxis()
    panel.margins(y=0.01)
    panel.grid(visible=True, axis="x", alpha=0.25)


def finish(drawn: Figure, panels: Sequence[Axes], path: Path) -> None:
    """Put one legend below all panels, and write the file."""
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    drawn.legend(
        handles.values(), handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=110, metadata={"Software": None})


def _style(contender: str) -> tuple[str, str]:
    return _STYLES.get(contender, _OTHER)
