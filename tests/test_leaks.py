"""After thousands of operations that were cancelled or failed, all is as it was before them.

Tasks, threads, file descriptors, connections as the server counts them, turns, pending replies,
timers, memory and the library's own objects. What is there after a first round (scripts, caches,
a connection) must not become more in many.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import socket
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from support.processes import eventually
from support.servers import Server

from asyncsession import (
    Session,
    SessionError,
    SessionManager,
    StoreUnavailable,
    SyncSessionManager,
    merge,
)
from asyncsession.ids import store_key
from asyncsession.transport.lane import Lane

OPTIONS: dict[str, Any] = {
    "cache_bytes": 0,  # which keeps what was seen of the latest sessions
    "merge": {"own": merge.reject, "joint": lambda base, ours, theirs: theirs},
    "max_bytes": 512,
    "max_sessions": 3,
}
BLOCKS = 2000  # of memory; one for every fourth operation is more
GROWTH = 32 * 1024  # bytes that one round may leave; one object for each operation is more
WATCHED = ("asyncsession.", "asyncio", "_asyncio", "redis.")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server("valkey9") as started:
        yield started


@contextmanager
def deaf(server: Server) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def closed_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def connections(server: Server) -> int:
    """Return how many the server counts."""
    with Redis.from_url(server.url) as redis:
        return len(redis.client_list()) - 1


class Traces:
    """What this process and the server hold at one moment.

    Attributes:
        counts: of things that must not be more than before.
        blocks: of memory that Python has handed out.
    """

    def __init__(self) -> None:
        for _ in range(3):
            gc.collect()
        self.blocks = sys.getallocatedblocks()
        kinds = Counter(type(one) for one in gc.get_objects())
        self.counts = {
            f"{kind.__module__}.{kind.__qualname__}": count
            for kind, count in kinds.items()
            if str(kind.__module__).startswith(WATCHED)
        }
        self.counts["threads"] = threading.active_count()
        self.counts["files"] = len(list(Path("/proc/self/fd").iterdir()))

    def more_than(self, before: Traces) -> dict[str, int]:
        """Return what there is more of than before."""
        more = {name: count - before.counts.get(name, 0) for name, count in self.counts.items()}
        return {name: count for name, count in more.items() if count > 0}


class Trouble:
    """Operations of an async manager that end badly, each in its own way."""

    def __init__(self, server: Server, seed: int) -> None:
        self._server = server
        self._random = random.Random(seed)
        self.manager = SessionManager(server.url, **OPTIONS)
        self.nowhere = SessionManager(f"redis://127.0.0.1:{closed_port()}", timeout=0.02, **OPTIONS)
        self.hasty = SessionManager(server.url, timeout=0.02, **OPTIONS)
        self.outcomes: Counter[str] = Counter()
        self.operations = 0

    async def round(self, size: int) -> None:
        """Let so many operations of each kind end badly."""
        session = await self.manager.load()
        session["own"], session["joint"], session.principal = 0, 0, "user:1"
        await self.manager.save(session)
        for kind in (self.cut_off, self.conflict, self.too_large, self.gone, self.unreadable,
                     self.unknown, self.unreachable):  # fmt: skip
            await kind(session.id, size)
        await self.manager.destroy_all("user:1")

    async def all_end(self, operations: list[Any]) -> None:
        """Wait for operations, none of which may succeed unnoticed or fail in a strange way."""
        for outcome in await asyncio.gather(*operations, return_exceptions=True):
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, (SessionError, asyncio.CancelledError)), outcome
            self.outcomes[type(outcome).__name__] += 1
            self.operations += 1

    async def cut_off(self, session_id: str, size: int) -> None:
        """Cancelled, after any number of steps."""
        sessions = [await self.manager.load(session_id) for _ in range(5)]

        async def change(session: Session) -> None:
            await asyncio.sleep(0)
            session["own"] = session["own"] + 1

        for _ in range(size):
            one = self._random.choice(sessions)
            one["joint"] = self._random.random()
            verbs: list[Callable[[], Any]] = [
                lambda: self.manager.load(session_id),
                lambda one=one: self.manager.save(one),  # type: ignore[misc]
                lambda: self.manager.update(session_id, change),
                lambda: self.manager.sessions_of("user:1"),
                lambda one=one: self.manager.refresh(one),  # type: ignore[misc]
                lambda one=one: self.manager.touch(one),  # type: ignore[misc]
            ]
            tasks = [asyncio.ensure_future(self._random.choice(verbs)()) for _ in range(4)]
            for task in tasks:
                for _ in range(self._random.randrange(6)):
                    await asyncio.sleep(0)
                task.cancel()
            await self.all_end(tasks)

    async def conflict(self, session_id: str, size: int) -> None:
        sessions = [await self.manager.load(session_id) for _ in range(size)]
        for number, session in enumerate(sessions):
            session["own"] = number + 1000 * self.operations
        await self.all_end([self.manager.save(session) for session in sessions])

    async def too_large(self, session_id: str, size: int) -> None:
        session = await self.manager.load(session_id)
        for _ in range(size):
            session["big"] = "x" * 1000
            await self.all_end([self.manager.save(session)])

    async def gone(self, session_id: str, size: int) -> None:
        for _ in range(size // 4):
            short = Session()
            short["a"] = 1
            await self.manager.save(short)
            others = [await self.manager.load(short.id) for _ in range(3)]
            await self.manager.destroy(short)
            for other in others:
                other["a"] = 2
            await self.all_end([*map(self.manager.save, others), self.manager.touch(others[0])])

    async def unreadable(self, session_id: str, size: int) -> None:
        other = Session()
        with Redis.from_url(self._server.url) as redis:
            redis.set(store_key("session", other.handle), b"junk")
        other["a"] = 1
        for _ in range(size // 2):
            await self.all_end([self.manager.load(other.id), self.manager.save(other)])

    async def unknown(self, session_id: str, size: int) -> None:
        """Never answered, of which some are cancelled besides."""
        sessions = [Session() for _ in range(size)]
        with suppress(StoreUnavailable):
            await self.hasty.load(session_id)
        with deaf(self._server):
            for session in sessions:
                session["a"] = 1
            tasks = [asyncio.ensure_future(self.hasty.save(session)) for session in sessions]
            await asyncio.sleep(0)
            for task in tasks[::5]:
                task.cancel()
            await self.all_end(tasks)

    async def unreachable(self, session_id: str, size: int) -> None:
        await self.all_end([self.nowhere.load(session_id) for _ in range(size)])

    async def aclose(self) -> None:
        """Close all, and wait until the server has seen it."""
        for manager in (self.manager, self.nowhere, self.hasty):
            await idle(manager)
            await manager.aclose()
        await asyncio.to_thread(eventually, lambda: connections(self._server) == 0)


async def settled(lane: Lane) -> None:
    while (link := lane._link) is not None and (link._waiting or link._tasks):  # noqa: ASYNC110
        await asyncio.sleep(0)


async def idle(manager: SessionManager) -> None:
    """Wait until a manager's connections have read what was still to come."""
    lanes = [lane for lanes in manager._transport._lanes.values() for lane in lanes]  # type: ignore[attr-defined]
    for lane in lanes:
        await settled(lane)
        assert lane._link is None or not lane._link._outbox
    assert not manager._turns._locks, "turns that nobody ends"


@pytest.fixture
async def trouble(server: Server) -> AsyncIterator[Trouble]:
    made = Trouble(server, 1)
    yield made
    await made.aclose()


@contextmanager
def bounded() -> Iterator[None]:
    """Trace what a block allocates, and see that next to nothing of it is kept."""
    gc.collect()
    tracemalloc.start()
    try:
        yield
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < GROWTH
    finally:
        tracemalloc.stop()


async def test_nothing_is_left_of_operations_that_were_cancelled_or_failed(
    server: Server, trouble: Trouble
) -> None:
    await trouble.round(100)
    await trouble.aclose()
    before = Traces()
    while trouble.operations < 9000:
        await trouble.round(200)
    await trouble.aclose()
    after = Traces()
    assert len(asyncio.all_tasks()) == 1
    assert not after.more_than(before)
    assert after.blocks - before.blocks < BLOCKS
    with bounded():
        await trouble.round(40)
        await trouble.aclose()
    expected = {"CancelledError", "SessionConflict", "SessionTooLarge", "SessionGone",
                "InvalidSessionData", "CommitOutcomeUnknown", "StoreUnavailable"}  # fmt: skip
    assert expected <= set(trouble.outcomes)


class Blocked:
    """The same for threads."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.manager = SyncSessionManager(server.url, connections=4, **OPTIONS)
        self.nowhere = SyncSessionManager(
            f"redis://127.0.0.1:{closed_port()}", timeout=0.02, **OPTIONS
        )
        self.hasty = SyncSessionManager(server.url, connections=4, timeout=0.02, **OPTIONS)
        self.outcomes: Counter[str] = Counter()

    def round(self, size: int) -> None:
        """Let so many operations of each kind end badly, in several threads."""
        session = self.manager.load()
        session["own"], session.principal = 0, "user:1"
        self.manager.save(session)
        with ThreadPoolExecutor(4) as threads:
            for kind in (self.conflict, self.too_large, self.gone, self.unreachable):
                list(threads.map(kind, [session.id] * size))
            with deaf(self._server):
                list(threads.map(self.unknown, [session.id] * (size // 5)))
        self.manager.destroy_all("user:1")

    def ends(self, verb: Callable[[Any], Any], argument: Any) -> None:
        with suppress(SessionError):
            try:
                verb(argument)
            except SessionError as error:
                self.outcomes[type(error).__name__] += 1
                raise

    def conflict(self, session_id: str) -> None:
        one, other = (self.manager.load(session_id) for _ in range(2))
        one["own"], other["own"] = random.random(), random.random()
        self.ends(self.manager.save, one)
        self.ends(self.manager.save, other)

    def too_large(self, session_id: str) -> None:
        session = self.manager.load(session_id)
        session["big"] = "x" * 1000
        self.ends(self.manager.save, session)

    def gone(self, session_id: str) -> None:
        one = Session()
        one["a"] = 1
        self.manager.save(one)
        other = self.manager.load(one.id)
        self.manager.destroy(one)
        other["a"] = 2
        self.ends(self.manager.save, other)

    def unreachable(self, session_id: str) -> None:
        self.ends(self.nowhere.load, session_id)

    def unknown(self, session_id: str) -> None:
        session = Session()
        session["a"] = 1
        self.ends(self.hasty.save, session)

    def close(self) -> None:
        """Close all, and wait until the server has seen it."""
        for manager in (self.manager, self.nowhere, self.hasty):
            manager.close()
        eventually(lambda: connections(self._server) == 0)


def test_nothing_is_left_of_operations_that_failed_in_threads(server: Server) -> None:
    blocked = Blocked(server)
    blocked.round(40)
    blocked.close()
    before = Traces()
    for _ in range(4):
        blocked.round(100)
        assert not blocked.manager._turns._locks
    blocked.close()
    after = Traces()
    assert not after.more_than(before)
    assert after.blocks - before.blocks < BLOCKS
    with bounded():
        blocked.round(20)
        blocked.close()
    assert {"SessionConflict", "SessionTooLarge", "SessionGone", "StoreUnavailable"} <= set(
        blocked.outcomes
    )
