"""What must hold under parallel requests and faults, as functions that assert it.

Tests run them on the library as it is, and on mutants of the protocol, which have to fail.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from asyncsession import (
    CommitOutcomeUnknown,
    SessionGone,
    SessionManager,
    StoreUnavailable,
    merge,
)
from asyncsession.ids import store_key
from support.backends import Backend
from support.faults import is_commit
from support.mutants import rewrite
from support.proxy import Fault, FaultProxy

POLICIES = {
    "n": merge.counter,
    "tags": merge.union,
    "log": merge.append,
    "high": merge.maximum,
    "low": merge.minimum,
}


async def many_writers(managers: Sequence[SessionManager], writers: int, commits: int) -> float:
    """Everything that `writers` change at once is there; return the attempts per commit."""
    session = await managers[0].load()
    session.update({"n": 0, "tags": set(), "log": [], "high": 0, "low": 0})
    session.update({"nested": {"by": {}}, "list": [], f"old:{writers}": 1})
    session.update({f"old:{number}": [number] for number in range(writers)})
    await managers[0].save(session)
    attempts = 0

    async def writer(number: int) -> None:
        nonlocal attempts
        for turn in range(commits):
            manager = managers[(number + turn) % len(managers)]
            mine = await manager.load(session.id)
            mark = f"{number}.{turn}"
            mine["n"] += 1
            mine["tags"].add(mark)
            mine["log"].append(mark)
            mine["list"].append(mark)
            mine["high"] = max(mine["high"], number * commits + turn)
            mine["low"] = min(mine["low"], -number * commits - turn)
            mine[f"own:{number}"] = turn
            mine["nested"]["by"][mark] = turn
            mine.pop(f"old:{number}", None)
            attempts += (await manager.save(mine)).attempts

    await asyncio.gather(*map(writer, range(writers)))
    marks = {f"{number}.{turn}" for number in range(writers) for turn in range(commits)}
    final = await managers[-1].load(session.id)
    assert final["n"] == len(marks)
    assert final["tags"] == marks
    assert Counter(final["log"]) == Counter(final["list"]) == Counter(marks)
    assert final["high"] == len(marks) - 1
    assert final["low"] == 1 - len(marks)
    assert set(final["nested"]["by"]) == marks
    assert all(final[f"own:{number}"] == commits - 1 for number in range(writers))
    assert [key for key in final if key.startswith("old:")] == [f"old:{writers}"]
    assert final.version == len(marks) + 1
    return attempts / len(marks)


class Tally:
    """How commits ended.

    Attributes:
        acknowledged, unknown, refused: the marks of the commits that ended so.
    """

    def __init__(self) -> None:
        self.acknowledged: list[str] = []
        self.unknown: list[str] = []
        self.refused: list[str] = []

    @property
    def total(self) -> int:
        return len(self.acknowledged) + len(self.unknown) + len(self.refused)


async def faulted_commits(
    backend: Backend, proxy: FaultProxy, *, writers: int, commits: int, **options: Any
) -> Tally:
    """Commits through a faulty network are there once if acknowledged, and at most once if not."""
    direct = backend.manager(merge=POLICIES)
    session = await direct.load()
    session.update({"n": 0, "log": []})
    await direct.save(session)
    tally = Tally()

    async def writer(number: int) -> None:
        manager = backend.manager(proxy.url, merge=POLICIES, **options)
        for turn in range(commits):
            mark = f"{number}.{turn}"
            try:
                mine = await manager.load(session.id)
            except StoreUnavailable:
                tally.refused.append(mark)
                continue
            assert not mine.is_new, "a live session was mistaken for a new one"
            mine["n"] = mine["n"] + 1
            mine["log"].append(mark)
            try:
                await manager.save(mine)
            except CommitOutcomeUnknown:
                tally.unknown.append(mark)
            except StoreUnavailable:
                tally.refused.append(mark)
            else:
                tally.acknowledged.append(mark)

    async with asyncio.timeout(100):  # nobody waits for ever, whatever is lost
        await asyncio.gather(*map(writer, range(writers)))
    await proxy.drained()
    final = await direct.load(session.id)
    found = Counter(final["log"])
    assert not [mark for mark, count in found.items() if count > 1], "applied twice"
    assert not set(tally.acknowledged) - set(found), "an acknowledged commit is lost"
    assert not set(tally.refused) & set(found), "a commit that was refused took effect"
    assert final["n"] == len(found)
    assert final.version == len(found) + 1
    return tally


async def late_duplicate_after_compaction(backend: Backend) -> None:
    """A copy of a commit that arrives after its frame was folded away does nothing."""
    assert backend.port
    direct = backend.manager(merge=POLICIES)
    session = await direct.load()
    session.update({"n": 0, "pad": "x" * 100})
    await direct.save(session)
    held = asyncio.Event()
    async with Replay(backend.port) as replay:
        manager = backend.manager(replay.url, merge=POLICIES)
        mine = await manager.load(session.id)
        mine["n"] += 1
        await manager.save(mine)
        for _ in range(150):
            other = await direct.load(session.id)
            other["n"] += 1
            await direct.save(other)
        held.set()
        await replay.again()
    final = await direct.load(session.id)
    assert final.log is not None
    assert final.log.frames < 100, "the log was never compacted"
    assert final["n"] == 151


async def late_duplicate_of_a_forgotten_commit(backend: Backend) -> None:
    """A copy of a commit whose id even the header has forgotten is refused for its age."""
    with pytest.MonkeyPatch.context() as patch:
        rewrite(patch, "commit", "local KEPT_IDS = 1024", "local KEPT_IDS = 4")
        await late_duplicate_after_compaction(backend)


async def late_create(backend: Backend) -> None:
    """A copy of the create that arrives after the session was destroyed does not revive it."""
    assert backend.port
    async with Replay(backend.port) as replay:
        manager = backend.manager(replay.url)
        session = await manager.load()
        session["user"] = 42
        await manager.save(session)
        await manager.destroy(session)
        await replay.again()
    assert (await backend.manager().load(session.id)).is_new


async def failover_to_an_older_copy(backend: Backend) -> None:
    """After a failover that lost a write, another log of the same length is not taken for ours."""

    def add(base: Any, ours: Any, theirs: Any) -> Any:
        return ours + theirs - base

    manager = backend.manager(merge={"n": add})
    session = await manager.load()
    session["n"] = 0
    await manager.save(session)
    key = store_key(backend.prefix, session.handle)
    older = await backend.redis.get(key)
    lost, kept = await manager.load(session.id), await manager.load(session.id)
    lost["n"] = 1
    await manager.save(lost)
    mine = await manager.load(session.id)  # has seen a commit that is about to be lost
    await backend.redis.set(key, older, px=60_000)
    kept["n"] = 2
    await manager.save(kept)  # as long a frame as the lost one
    mine["n"] += 10
    await manager.save(mine)
    assert (await manager.load(session.id))["n"] == 12  # ours 11, base 1, theirs 2


class Replay(FaultProxy):
    """A proxy that keeps the last commit it has passed on, to deliver it again."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._commit: list[bytes] = []
        super().__init__(port, self._keep)

    def _keep(self, request: list[bytes]) -> Fault:
        if is_commit(request):
            self._commit = request
        return Fault.PASS

    async def again(self) -> None:
        """Send the kept commit to the server once more, and wait for its answer."""
        async with Redis(port=self._port, protocol=2) as redis:
            await redis.execute_command(*self._commit)  # type: ignore[no-untyped-call]


async def gone_is_gone(backend: Backend, *, slow_first: bool) -> None:
    """A slow commit loses against a destroy, whichever is sent first."""
    manager = backend.manager()
    session = await manager.load()
    session["a"] = 1
    await manager.save(session)
    slow = await manager.load(session.id)
    slow["a"] = 2
    if slow_first:
        await asyncio.gather(manager.save(slow), manager.destroy(session), return_exceptions=True)
    else:
        await manager.destroy(session)
        try:
            await manager.save(slow)
        except SessionGone:
            pass
        else:
            raise AssertionError("a destroyed session took a commit")
    assert (await manager.load(slow.id)).is_new
