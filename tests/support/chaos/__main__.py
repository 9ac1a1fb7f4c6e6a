"""`python -m support.chaos`, from the directory of the tests."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

from rich.progress import MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from support.chaos.plan import CLIENT, DEFAULT, EVENTS, MESSAGES, TARGETS, Plan
from support.chaos.report import as_record, environment, markdown
from support.chaos.runner import Failed, run
from support.servers import available

_WAVE = 20_000  # commits of one run at the most; more become several, each with the next seed


def main() -> int:
    """Run what the command line says; return 1 if a rule was broken."""
    options = _parser().parse_args()
    targets = [options.target] if options.target != "all" else available()
    plan = Plan(
        seed=options.seed,
        commits=options.commits,
        processes=options.processes,
        faults=tuple(options.faults.split(",")),
    )
    if unknown := set(plan.faults) - {*MESSAGES, *EVENTS, *CLIENT}:
        _parser().error(f"no such fault: {', '.join(sorted(unknown))}")
    ran_on, records = environment(), []
    columns = TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        bar = progress.add_task("commits", total=plan.commits)
        done = 0
        for number, target in enumerate(cycle(targets)):
            if done >= plan.commits:
                break
            commits = min(_WAVE, plan.commits - done)
            wave = replace(plan, seed=plan.seed + number, commits=commits, target=target)
            progress.update(bar, description=f"seed {wave.seed}, {target}")
            watch = partial(_show, progress, bar, done)
            try:
                result = asyncio.run(run(wave, watch))
            except Failed as failure:
                progress.console.print(str(failure), f"To replay it: {wave.command()}", sep="\n")
                return 1
            done += commits
            records.append(as_record(result))
            progress.console.print(str(result))
            for violation in result.violations[:20]:
                progress.console.print(str(violation))
            if result.violations:
                progress.console.print(f"To replay it: {wave.command()}")
            if options.report:
                _write(options.report, ran_on, records)
    return int(any(record["violations"] for record in records))


def _show(progress: Progress, bar: TaskID, before: int, now: int) -> None:
    progress.update(bar, completed=before + now)


def _write(path: Path, ran_on: dict[str, object], records: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"environment": ran_on, "runs": records}
    path.with_suffix(".json").write_text(json.dumps(kept, indent=1), "utf-8")
    path.with_suffix(".md").write_text(markdown(ran_on, records), "utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m support.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first run (default: 1)")
    parser.add_argument("--commits", type=int, default=_WAVE, help=f"(default: {_WAVE})")
    parser.add_argument(
        "--target", choices=(*TARGETS, "all"), default="all", help="all take turns (the default)"
    )
    parser.add_argument("--processes", type=int, default=3, help="of clients (default: 3)")
    parser.add_argument(
        "--faults",
        default=",".join(DEFAULT),
        help="names with commas between (default: %(default)s)",
    )
    parser.add_argument(
        "--report",
        type=Path,
        help="write this file with the suffixes .json and .md, after each run",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
