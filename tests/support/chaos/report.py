"""What came of many runs, as JSON to keep and Markdown to read."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from support.chaos.runner import Result
from support.servers import FLAVOURS

__all__ = ["as_record", "environment", "markdown"]

Record = dict[str, Any]


def environment() -> Record:
    """Return what the runs ran on."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "redis-py": version("redis"),
        "servers": {name: _server(path) for name, path in FLAVOURS.items() if path},
    }


def _server(path: str) -> str:
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\S+)", said)
    return found[1] if found else said.strip()


def as_record(result: Result) -> Record:
    """Return a result as JSON can hold it."""
    plan = result.plan
    return {
        "seed": plan.seed,
        "target": plan.target,
        "processes": plan.processes,
        "faults": list(plan.faults),
        "seconds": round(result.seconds, 1),
        "operations": result.operations,
        "told": {str(outcome): count for outcome, count in result.told.items()},
        "surprises": dict(result.surprises),
        "messages": dict(result.messages),
        "events": dict(result.events),
        "losses": dict(result.losses),
        "refused": [round(seconds, 2) for seconds in result.refused],
        "violations": [str(violation) for violation in result.violations[:20]],
        "replay": plan.command(),
    }


def markdown(ran_on: Record, records: Sequence[Record]) -> str:
    """Return a page about all runs."""
    servers = ", ".join(f"{name} {number}" for name, number in ran_on["servers"].items())
    totals = {
        part: Counter[str]() for part in ("told", "surprises", "messages", "events", "losses")
    }
    for record in records:
        for part, counter in totals.items():
            counter.update(record[part])
    told, surprises = totals["told"], totals["surprises"]
    seconds = sum(record["seconds"] for record in records)
    operations = sum(record["operations"] for record in records)
    broken = [record for record in records if record["violations"]]
    rows: list[tuple[str, int | str]] = [
        ("commits acknowledged", told["acknowledged"]),
        ("commits refused, definitely", told["failed"]),
        ("commits to a session that had ended", told["gone"]),
        ("`CommitOutcomeUnknown` raised", surprises["CommitOutcomeUnknown"]),
        ("`SessionConflict` raised", surprises["SessionConflict"]),
        ("calls cancelled by their callers", surprises["Interrupted"]),
        ("commits whose outcome stayed unknown to the client", told["unknown"]),
        ("operations checked, reads included", operations),
        ("runs in which a rule was broken", len(broken)),
    ]
    intro = (
        f"{len(records)} runs, {seconds / 60:.0f} minutes. Python {ran_on['python']},"
        f" {ran_on['system']}, {ran_on['cores']} cores, redis-py {ran_on['redis-py']}, {servers}."
    )
    if refused := sorted(seconds for record in records for seconds in record["refused"]):
        median, longest = refused[len(refused) // 2], refused[-1]
        lost = ", ".join(f"{count:,} {what}" for what, count in totals["losses"].items())
        rows += [
            ("failovers", len(refused)),
            ("acknowledged writes lost in them, and sessions for want of them", lost),
            ("seconds without commits, median and longest", f"{median:.1f}, {longest:.1f}"),
        ]
    lines = [
        intro,
        "",
        "| | |",
        "|---|---:|",
        *(f"| {what} | {_figure(count)} |" for what, count in rows),
        "",
        "| fault | times |",
        "|---|---:|",
    ]
    for counter in (totals["messages"], totals["events"]):
        lines += [f"| {name} | {count:,} |" for name, count in sorted(counter.items())]
    for record in broken:
        lines += ["", f"`{record['replay']}`", ""]
        lines += [f"- {violation}" for violation in record["violations"]]
    return "\n".join(lines) + "\n"


def _figure(count: int | str) -> str:
    return f"{count:,}" if isinstance(count, int) else count
