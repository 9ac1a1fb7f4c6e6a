"""The page, made of the records and of nothing else."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bench.contenders import FULL, GUARDED
from bench.results import Record
from bench.scenarios import SCENARIOS, Scenario
from bench.shapes import DESCRIPTION

__all__ = ["own_page", "page", "render"]

_DOCS = Path(__file__).parent.parent / "docs"
_WIDTH = 100
_FOLDER = "benchmarks"

_INTRODUCTION = """\
<!-- Made by `python -m bench` from benchmarks/results.json: do not edit, render it anew. -->

# Benchmarks

How fast asyncsession is, what it costs, and beside what. Read the bias first."""

_BIAS = """\
- The authors of asyncsession wrote this, and chose what is measured.
- Client, server and browser share one machine and talk over its loopback. There is no network to
  wait for, so the client's own work weighs more here than in production, and a round trip that is
  saved weighs less.
- Most contenders protect nothing: they lose updates when requests overlap, and do less for it.
  What stands beside them is the price of protection, not a race between equals.
- asyncsession sends the calls of all tasks over one connection; all others use redis-py's client,
  with hiredis and a pool that has a connection for every task. Where many tasks run at once, much
  of a difference comes from that, and not from how sessions are stored. With threads, all have a
  connection for every call that is under way.
- Sessions here have many keys, of which a request touches one. That suits a format that unpacks
  only what is touched. The cost curves show the opposite, too: everything in one value.
- asyncsession remembers what it has seen of a session (`cache_bytes`, at its default) and fetches
  only what came after. Here each process uses the same sessions again and again, so it has nearly
  always seen them; where processes share their users' requests, a load brings the commits of the
  others, and the first load of a session in each process brings the whole. Cycles are measured
  without that memory, too.
- asyncsession's core is compiled where the list of machines says so; `pip install` of a source tree
  does that only if asked to ([deploying.md](deploying.md#compiled)). The session libraries beside
  it have no compiled parts of their own; hiredis and msgpack serve whoever uses them.
- What the peers do to cookies and headers is left out, as far as their interfaces allow, except
  where it is end to end. JSON is the standard library's where a peer uses that, and msgspec's in
  Litestar.
- All but the scenarios with threads run on asyncio's own event loop; all but those that are end to
  end in one process."""

_METHOD = """\
All contenders of a scenario take turns against one Valkey server without persistence, over TCP, in
an order drawn anew for each repeat. Ratios are taken within a repeat, so that what disturbs the
machine for a while disturbs both sides; what is shown is the median over the repeats and, in
brackets, the range. Garbage is collected before each measurement and the collector stays on during
it, for all alike; only what the modules made on import is frozen out. Where time is measured, each
contender first runs for a while without that. What was done is checked against what is stored in
the end. asyncsession's `max_bytes` is 1 MiB, since the largest session here is about as large as
its default of 64 KB; its other options are the defaults."""

_RUN = """\
```sh
HATCH_BUILD_HOOKS_ENABLE=1 pip install -e '.[bench]'  # without the variable: not compiled
python -m bench            # everything; writes this page, its plots and benchmarks/results.json
python -m bench web wire   # some scenarios; the others keep what they had
python -m bench --quick    # a few minutes, to see that it works; writes to build/bench
python -m bench --render   # the page and the plots again, from the JSON file
```

The end-to-end scenarios load their pages with `wrk` if that is installed, else with a lean client
in Python. Of the races, some need a PostgreSQL on the machine ([races.md](races.md))."""

_OWN_PAGE = """\
The method, the figures and what follows from them have a page of their own: [{page}]({page})."""

# In a page of its own, what stands between these is made anew, and the rest is written by hand.
_BEGIN = "<!-- Made by `python -m bench {name}` from benchmarks/results.json: do not edit. -->"
_END = "<!-- The end of what is made. -->"

_QUICK = """\
**Figures marked *quick* are of a run that only shows that the suite works: they mean nothing.**"""


def render(records: Mapping[str, Record], folder: Path, measured: Collection[str]) -> Path:
    """Write the pages, and the plots of what was measured; return the path of the page of all."""
    for name in measured:
        SCENARIOS[name].plot(records[name].rows, folder / _FOLDER / f"{name}.png")
    for name, record in records.items():
        if (own := SCENARIOS[name].page) is not None:
            (folder / own).write_text(own_page(name, record), "utf-8")
    written = folder / "benchmarks.md"
    written.write_text(page(records), "utf-8")
    return written


def page(records: Mapping[str, Record]) -> str:
    """Return the page about some scenarios' records."""
    is_quick = any(record.settings["quick"] for record in records.values())
    parts = [_INTRODUCTION, *([_QUICK] if is_quick else []), "## Bias", _BIAS]
    parts += ["## Machine", *_machines(records)]
    parts += ["## Method", _METHOD, _wrap(DESCRIPTION), "The contenders:", _contenders()]
    for name, scenario in SCENARIOS.items():
        if name in records:
            parts += _section(name, scenario, records[name])
    return "\n\n".join([*parts, "## Run it", _RUN]) + "\n"


def own_page(name: str, record: Record) -> str:
    """Return the page that a scenario has for itself: the one in the docs, with this record.

    Raises:
        ValueError: the page in the docs lacks the marks between which the record goes.
    """
    scenario = SCENARIOS[name]
    assert scenario.page is not None
    written = (_DOCS / scenario.page).read_text("utf-8")
    begin = _BEGIN.format(name=name)
    if not 0 < written.find(begin) < written.find(_END):
        raise ValueError(f"{scenario.page} has no {begin} with a {_END} after it")
    head, tail = written[: written.index(begin)], written[written.index(_END) :]
    made = [
        begin,
        *([_QUICK] if record.settings["quick"] else []),
        _wrap(scenario.method),
        _settings(record),
        _picture(name, scenario),
        scenario.tables(record.rows).rstrip(),
        *_machines({name: record}),
    ]
    return head + "\n\n".join([*made, tail])


def _section(name: str, scenario: Scenario, record: Record) -> list[str]:
    title, picture = f"## {scenario.title}", _picture(name, scenario)
    if scenario.page is not None:
        return [title, _OWN_PAGE.format(page=scenario.page), _settings(record), picture]
    tables = scenario.tables(record.rows).rstrip()
    return [title, _wrap(scenario.method), _settings(record), picture, tables]


def _picture(name: str, scenario: Scenario) -> str:
    return f"![{scenario.title}][{name}]\n\n[{name}]: {_FOLDER}/{name}.png"


def _machines(records: Mapping[str, Record]) -> list[str]:
    """Return each environment once, with the names of its scenarios where they differ."""
    named: list[tuple[dict[str, Any], list[str]]] = []
    for name, record in records.items():
        for environment, names in named:
            if environment == record.environment:
                names.append(name)
                break
        else:
            named.append((record.environment, [name]))
    parts = []
    for environment, names in named:
        if len(named) > 1:
            parts.append(f"For {', '.join(names)}:")
        libraries = (f"{name} {version}" for name, version in environment["libraries"].items())
        lines = [f"{key}: {value}" for key, value in environment.items() if key != "libraries"]
        lines.append(f"libraries: {', '.join(libraries)}")
        parts.append("\n".join(_wrap_item(line) for line in lines))
    return parts


def _contenders() -> str:
    lines = []
    for kind in dict.fromkeys((*FULL, *GUARDED)):
        about = (inspect.getdoc(kind) or "").partition("\n")[0]
        lines.append([f"{kind.name}", about])
    rows = ["| contender | what it does |", "| --- | --- |"]
    return "\n".join([*rows, *(f"| {name} | {about} |" for name, about in lines)])


def _settings(record: Record) -> str:
    settings = record.settings
    said = f"Taken {record.taken}; {settings['repeats']} repeats of {settings['seconds']:g} s."
    return f"{said[:-1]}, *quick*." if settings["quick"] else said


def _wrap_item(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent="- ", subsequent_indent="  ")


def _wrap(text: str) -> str:
    return "\n\n".join(textwrap.fill(part, _WIDTH) for part in text.split("\n\n"))
