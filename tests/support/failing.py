"""What sessions have to bear while a master fails: the same for a cluster and for Sentinel."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import pytest

from asyncsession import (
    CommitOutcomeUnknown,
    Session,
    SessionGone,
    SessionManager,
    StoreUnavailable,
    SyncSessionManager,
    merge,
)
from support.threads import InThreads

__all__ = ["Load", "both_managers", "crash", "started"]

_PAUSE = 0.005  # seconds between two commits of a writer: the log has to fit into a session
_tokens = itertools.count()


def both_managers(url: str, prefix: str, **options: Any) -> list[Any]:
    """Return a manager on the event loop, and one whose calls are made in threads."""
    options |= {"prefix": prefix, "merge": {"log": merge.append}, "max_bytes": 2**20}
    return [SessionManager(url, **options), InThreads(SyncSessionManager(url, **options))]


@dataclass
class _Writer:
    manager: Any
    session_id: str
    acknowledged: list[int] = field(default_factory=list)


class Load:
    """Writers that append to the logs of sessions, each its own numbers, until the context ends.

    Args:
        managers: they share.
        sessions: each is written to through every manager.

    Attributes:
        failures: what writers were told instead of an acknowledgement.
    """

    def __init__(self, managers: list[Any], sessions: list[Session]) -> None:
        self._writers = [_Writer(manager, one.id) for one in sessions for manager in managers]
        self._has_stopped = False
        self._progress = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self.failures: list[Exception] = []

    def acknowledged(self) -> dict[str, set[int]]:
        """Return what has been acknowledged so far, for each session."""
        found: dict[str, set[int]] = {}
        for writer in self._writers:
            found.setdefault(writer.session_id, set()).update(writer.acknowledged)
        return found

    async def progress(self, count: int = 3) -> None:
        """Wait until every writer has been acknowledged so many times again."""
        goals = [(writer, len(writer.acknowledged) + count) for writer in self._writers]
        async with self._progress, asyncio.timeout(30):
            await self._progress.wait_for(
                lambda: all(len(writer.acknowledged) >= goal for writer, goal in goals)
            )

    async def _write(self, writer: _Writer) -> None:
        while not self._has_stopped:
            token = next(_tokens)
            try:
                async with writer.manager.session(writer.session_id) as session:
                    session["log"].append(token)
            except (StoreUnavailable, CommitOutcomeUnknown) as failure:
                self.failures.append(failure)
            else:
                writer.acknowledged.append(token)
                async with self._progress:
                    self._progress.notify_all()
            await asyncio.sleep(_PAUSE)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._write(writer)) for writer in self._writers]
        return self

    async def __aexit__(self, *details: object) -> None:
        self._has_stopped = True
        await asyncio.gather(*self._tasks)


async def started(manager: Any, **values: Any) -> Session:
    """Return a session that has been saved with these values."""
    session: Session = await manager.load()
    session.principal = values.pop("principal", None)
    session.update(values)
    await manager.save(session)
    return session


async def crash(
    url: str,
    prefix: str,
    *,
    is_hit: Callable[[Session], bool],
    settle: Callable[[], Awaitable[None]],
    kill: Callable[[], Awaitable[None]],
    takeover: Callable[[], Awaitable[None]],
    repair: Callable[[], Awaitable[None]],
) -> None:
    """Kill a master under load, through both managers at once, and look at everything after it.

    Args:
        url: of the store.
        prefix: of its keys.
        is_hit: whether a session is on the master that will be killed.
        settle: waits until the replicas have what was acknowledged so far.
        kill: kills the master.
        takeover: waits until another one has taken its place.
        repair: starts the killed one again and waits until all is well.
    """
    managers = both_managers(url, prefix, timeout=10)
    hasty = both_managers(url, prefix, timeout=0.2)
    sessions = [await started(managers[0], log=[]) for _ in range(8)]
    while not any(map(is_hit, sessions)):
        sessions.append(await started(managers[0], log=[]))
    doomed = [await started(managers[0], user=n) for n in range(6)]
    rotated = [await started(managers[0], user=n) for n in range(6)]
    theirs = [await started(managers[0], principal="user:42", user=n) for n in range(6)]
    late = [await managers[0].load(session.id) for session in (*doomed, *theirs)]
    old_ids = [session.id for session in rotated]
    refusals = 0

    async def probe(manager: Any) -> None:
        nonlocal refusals
        while not is_over.is_set():
            for session in sessions:
                try:
                    assert not (await manager.load(session.id)).is_new, "merely away is not gone"
                except StoreUnavailable:
                    refusals += 1

    async def end_and_rotate(one: Any, other: Any) -> None:
        destroyed = (one.destroy(session) for session in doomed[::2])
        by_id = (other.destroy(session.id) for session in doomed[1::2])
        anew = (m.rotate(session) for m, session in zip([one, other] * 3, rotated, strict=True))
        await asyncio.gather(*destroyed, *by_id, *anew, one.destroy_all("user:42"))

    async def check() -> None:
        for manager in managers:
            for session in (*doomed, *theirs):
                assert (await manager.load(session.id)).is_new
            for number, (session, old_id) in enumerate(zip(rotated, old_ids, strict=True)):
                assert (await manager.load(old_id)).is_new
                assert dict(await manager.load(session.id)) == {"user": number}
            assert await manager.sessions_of("user:42") == []
            for session in late:
                session["late"] = True
                with pytest.raises(SessionGone):
                    await manager.save(session)
            for session in sessions:
                log = (await manager.load(session.id))["log"]
                assert len(log) == len(set(log)), "something was done twice"
                assert kept[session.id] <= set(log), "something that was acknowledged is lost"

    load, is_over = Load(managers, sessions), asyncio.Event()
    async with load:
        await load.progress()
        await settle()
        kept = load.acknowledged()
        await kill()
        outage = load.acknowledged()
        probes = [asyncio.create_task(probe(manager)) for manager in hasty]
        deeds = asyncio.create_task(end_and_rotate(*managers))
        await takeover()
        await deeds
        is_over.set()
        await asyncio.gather(*probes)
        await load.progress()
    for session in sessions:
        # What was acknowledged last before the end may not have reached a replica.
        made = load.acknowledged()[session.id]
        kept[session.id] |= made - outage[session.id] if is_hit(session) else made
    assert load.failures == [], "a failover within the deadline is not noticed"
    assert refusals > 0
    await check()
    await repair()
    await check()
    for manager in (*managers, *hasty):
        await manager.aclose()
