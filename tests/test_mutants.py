"""Each safeguard of the protocol is needed: without it, a scenario fails."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import pytest
from support import mutants
from support.backends import Backend
from support.mutants import MUTANTS
from support.proxy import Fault, FaultProxy, seeded
from support.scenarios import (
    POLICIES,
    failover_to_an_older_copy,
    faulted_commits,
    gone_is_gone,
    late_create,
    late_duplicate_after_compaction,
    late_duplicate_of_a_forgotten_commit,
    many_writers,
)

from asyncsession import SessionGone

Scenario = Callable[[Backend], Awaitable[None]]


async def faults(backend: Backend) -> None:
    assert backend.port
    decide = seeded(5, 0.3, (Fault.CUT, Fault.SWALLOW, Fault.TWICE))
    async with FaultProxy(backend.port, decide) as proxy:
        await faulted_commits(backend, proxy, writers=8, commits=10, timeout=2)


async def writers(backend: Backend) -> None:
    managers = [backend.manager(merge=POLICIES) for _ in range(2)]
    await many_writers(managers, writers=16, commits=12)  # enough for several compactions


async def gone(backend: Backend) -> None:
    await gone_is_gone(backend, slow_first=False)


async def late_create_by_commit(backend: Backend) -> None:
    """A slow commit on a session whose tombstone has gone, too, must not bring it back."""
    manager = backend.manager()
    session = await manager.load()
    session["a"] = 1
    await manager.save(session)
    slow = await manager.load(session.id)
    await backend.redis.delete(*(await backend.keys()))
    slow["a"] = 2
    with contextlib.suppress(SessionGone):
        await manager.save(slow)
    assert (await manager.load(slow.id)).is_new


async def guarded(backend: Backend) -> None:
    """A custom merge sees what others wrote."""
    manager = backend.manager(merge={"n": lambda base, ours, theirs: ours + theirs - base})
    session = await manager.load()
    session["n"] = 0
    await manager.save(session)
    one, two = await manager.load(session.id), await manager.load(session.id)
    one["n"], two["n"] = 1, 1
    await manager.save(one)
    await manager.save(two)
    assert two["n"] == 2


CATCHERS: dict[str, Scenario] = {
    "no commit id": faults,
    "length for a version": failover_to_an_older_copy,
    "ids forgotten at compaction": late_duplicate_after_compaction,
    "what is forgotten is not noted": late_duplicate_of_a_forgotten_commit,
    "no tombstone": late_create,
    "commits create what is gone": late_create_by_commit,
    "tombstones are no obstacle": gone,
    "guards unchecked": guarded,
    "compaction drops the tail": writers,
    "a counter for a commit id": writers,
}


SCENARIOS = sorted(set(CATCHERS.values()), key=lambda scenario: scenario.__name__)


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_the_protocol_itself_passes(valkey: Backend, scenario: Scenario) -> None:
    await scenario(valkey)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=mutants.marks(name)) for name in MUTANTS]
)
async def test_mutant_is_caught(
    valkey: Backend, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutants.apply(name, monkeypatch)
    with pytest.raises(AssertionError):
        await CATCHERS[name](valkey)
