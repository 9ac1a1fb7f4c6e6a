"""Clients in several processes, a store that fails in every way we know, and what must hold."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from support.chaos.plan import DEFAULT, Plan
from support.chaos.runner import Result, run
from support.history import LOSSES
from support.mutants import MUTANTS, marks
from support.servers import available

COMMITS = 20_000
"""Faulted commits of the whole module: acknowledged ones of clients all of whose calls run the risk
of a faulty network, on a server that is killed, paused, full, read-only, and robbed of scripts and
sessions meanwhile."""


@pytest.mark.parametrize("target", available())
def test_faulted_commits(target: str) -> None:
    commits = -(-COMMITS // len(available()))
    result = asyncio.run(run(Plan(seed=1, commits=commits, target=target)))
    assert result.violations == [], f"to replay it: {result.plan.command()}"
    assert result.told["acknowledged"] >= commits
    assert result.surprises["CommitOutcomeUnknown"] <= 0.001 * commits
    assert sum(result.messages.values()) > 0.05 * commits
    assert min(result.events[one] for one in ("kill", "memory", "pause", "readonly")) > 0


def small(faults: tuple[str, ...], *, mutant: str = "", kept_ids: int = 0, seed: int = 1) -> Result:
    plan = Plan(
        seed=seed,
        commits=400,
        target=available()[0],
        processes=1,
        faults=faults,
        sessions=2,
        longest=40,
        rate=0.4,
        mutant=mutant,
        kept_ids=kept_ids,
    )
    return asyncio.run(run(plan))


CATCHERS: dict[str, tuple[str, ...]] = {
    "no commit id": ("cut", "twice"),
    "length for a version": ("rewind",),
    "ids forgotten at compaction": ("twice",),
    "what is forgotten is not noted": ("twice",),
    "no tombstone": ("twice",),
    "commits create what is gone": ("evict",),
    "tombstones are no obstacle": (),
    "guards unchecked": (),
    "compaction drops the tail": (),
    "a counter for a commit id": (),
}
SLOWEST = "tombstones are no obstacle"


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(name, marks=[pytest.mark.soak] if name == SLOWEST else marks(name))
        for name in MUTANTS
    ],
)
def test_mutant_is_caught(mutant: str) -> None:
    """By the clients and the checker that find nothing in the library as it is, see above.

    What coincides with what is up to the machine, so a run may miss it.
    """
    kept_ids = 1 if "forgotten is not" in mutant else 0
    allowed = LOSSES if "rewind" in CATCHERS[mutant] else set()
    for seed in range(1, 5):
        result = small(CATCHERS[mutant], mutant=mutant, kept_ids=kept_ids, seed=seed)
        if {violation.rule for violation in result.violations} - allowed:
            return
    pytest.fail("four runs broke no rule")


def test_lost_writes_leave_nothing_broken() -> None:
    """A session that was put back to what it had been, as by a failover, goes on from there."""
    result = small(("rewind",))
    assert result.events["rewind"] > 0
    assert {violation.rule for violation in result.violations} <= LOSSES


@pytest.mark.soak
@pytest.mark.parametrize("target", ["cluster", "sentinel"])
@pytest.mark.parametrize("faults", [DEFAULT, ("failover", "clock")], ids=["kept", "lost"])
def test_several_servers(target: str, faults: tuple[str, ...]) -> None:
    """With a replica that takes over in good order nothing is lost, and else nothing is broken."""
    result = asyncio.run(run(Plan(seed=1, commits=8000, target=target, faults=faults)))
    assert result.violations == [], f"to replay it: {result.plan.command()}"
    assert result.told["acknowledged"] >= 8000
    assert bool(result.refused) == ("failover" in faults)


@pytest.mark.soak
def test_a_million_faulted_commits() -> None:
    """The command of docs/trust.md, which shows how far it is: run this with -s."""
    command = [sys.executable, "-m", "support.chaos", "--commits", "1000000"]
    assert subprocess.run(command, cwd=Path(__file__).parent, check=False).returncode == 0
