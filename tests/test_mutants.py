"""Each safeguard of the protocol is needed: without it, a scenario fails."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Awaitable, Callable

import pytest
from support.backends import Backend
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
from asyncsession.draft import Draft
from asyncsession.scripts import SCRIPTS, Script

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


SCRIPT_MUTANTS: dict[str, tuple[str, str, str, Scenario]] = {
    "no commit id": (
        "commit",
        "if string.find(blob, id, 1, true) then",
        "if false then",
        faults,
    ),
    "length for a version": (
        "commit",
        "base > log and sub(blob, base - 15, base) == ARGV[4]",
        "base > log and base <= #blob",
        failover_to_an_older_copy,
    ),
    "ids forgotten at compaction": (
        "commit",
        "history = table.concat(ids)",
        "history = ''",
        late_duplicate_after_compaction,
    ),
    "what is forgotten is not noted": (
        "commit",
        "forgotten = math.max(forgotten, math.min(number(history, keep, 6), now + SLACK))",
        "",
        late_duplicate_of_a_forgotten_commit,
    ),
    "no tombstone": (
        "destroy",
        "redis.call('SET', KEYS[1], mark, 'PX', ARGV[2])",
        "redis.call('DEL', KEYS[1])",
        late_create,
    ),
    "commits create what is gone": (
        "commit",
        "if not creating then return reply(GONE) end",
        "",
        late_create_by_commit,
    ),
    "tombstones are no obstacle": (
        "commit",
        (
            "if kind == 'D' and #blob == HEAD then return reply(GONE) end\n"
            "  if kind ~= 'L' or not before_log(blob) then return reply(UNREADABLE) end"
        ),
        "if kind ~= 'L' then blob = head .. bytes(now, 6) .. bytes(2^47, 6) .. ('\\0'):rep(16) end",
        gone,
    ),
    "guards unchecked": (
        "commit",
        "if guards ~= '' then",
        "if false then",
        guarded,
    ),
    "compaction drops the tail": (
        "commit",
        "bytes(#body, 4) .. body .. sub(blob, base + 1)",
        "bytes(#body, 4) .. body",
        writers,
    ),
}


SCENARIOS = sorted({scenario for *_, scenario in SCRIPT_MUTANTS.values()}, key=lambda f: f.__name__)


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_the_protocol_itself_passes(valkey: Backend, scenario: Scenario) -> None:
    await scenario(valkey)


@pytest.mark.parametrize("name", SCRIPT_MUTANTS)
async def test_mutant_is_caught(
    valkey: Backend, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, old, new, scenario = SCRIPT_MUTANTS[name]
    source = SCRIPTS[script].source
    assert source.count(old) == 1, "the mutant no longer fits the script"
    mutated = source.replace(old, new)
    sha = hashlib.sha1(mutated.encode(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(SCRIPTS, script, Script(mutated, sha))
    with pytest.raises(AssertionError):
        await scenario(valkey)


async def test_a_counter_for_a_commit_id_is_caught(
    valkey: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = Draft.stamp

    def count(self: Draft) -> None:
        stamp(self)
        self._id = (self.session.version + 1).to_bytes(16, "big")

    monkeypatch.setattr(Draft, "stamp", count)
    with pytest.raises(AssertionError):
        await writers(valkey)
