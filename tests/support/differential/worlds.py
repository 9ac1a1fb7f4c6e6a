"""The worlds of a schedule: managers that remember more or less, and how their calls fail."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from enum import Enum, auto
from typing import Any, NamedTuple, Self, TypeVar

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from asyncsession import Session, SessionManager, SyncSessionManager
from asyncsession.ids import session_handle, store_key
from asyncsession.protocol import Call, Code, Lost, Transport
from asyncsession.transport.batches import Batches
from support.differential.changes import POLICIES
from support.faults import Fault, is_script
from support.proxy import FaultProxy

__all__ = [
    "IDLE_HOURS",
    "KINDS",
    "MAX_BYTES",
    "Abandoned",
    "Fate",
    "Held",
    "Plan",
    "Stage",
    "World",
]

T = TypeVar("T")

MAX_BYTES = 150_000
"""More than what any schedule keeps in a session, so that a session may be behind and be let in."""
IDLE_HOURS = 24


class Kind(NamedTuple):
    """A kind of world: whether its managers are awaited, and what they may remember, in bytes."""

    is_async: bool
    options: dict[str, int]


KINDS = {
    "forgetful": Kind(True, {"cache_bytes": 0}),
    "remembering": Kind(True, {}),
    "evicting": Kind(True, {"cache_bytes": 4000}),  # a small session or two
    "blocking": Kind(False, {}),
}


class Fate(Enum):
    """What becomes of one call."""

    ANSWERED = auto()
    LOST = auto()
    """It never arrives; the caller tries again."""
    UNANSWERED = auto()
    """It is done, and no answer comes; the caller tries again."""
    ABANDONED = auto()
    """The caller goes away before it is sent."""
    LEFT = auto()
    """It is done, and the caller has gone away."""
    DROPPED = auto()
    """As `LOST`, with the connection; only on the faulty line."""
    CUT = auto()
    """Done, and the connection breaks in the middle of the answer; only on the faulty line."""

    def __repr__(self) -> str:
        return str(self)  # as it is written in a program


class Abandoned(BaseException):
    """The caller was cancelled, or interrupted, while it waited."""


class Plan(NamedTuple):
    """What happens to the first call of a script that a verb makes; the last, if it conflicts.

    Attributes:
        script: which.
        fate: what becomes of it.
        before, after: what else happens right before it arrives, and right after it was done, if
            its connection has not broken.
    """

    script: str
    fate: Fate = Fate.ANSWERED
    before: Callable[[], Awaitable[None]] | None = None
    after: Callable[[], Awaitable[None]] | None = None


_ON_THE_LINE = {Fate.DROPPED: Fault.DROP, Fate.CUT: Fault.CUT}


class Way:
    """A transport on which one call at a time can be given a plan.

    Args:
        transport: the one beneath.
        line: what `transport` goes through, if anything.

    Attributes:
        plan: for the next call of its script.
        manager: whose calls these are, unless it blocks.
    """

    def __init__(self, transport: Transport, line: Line | None = None) -> None:
        self._transport = transport
        self._line = line
        self.plan: Plan | None = None
        self.manager: SessionManager | None = None

    async def _beside(self, happens: Callable[[], Awaitable[None]]) -> None:
        """Have something happen that another request of the same process may do, too.

        Its commits wait for no commit under way, which would wait for them here.
        """
        if self.manager is None:
            await happens()
            return
        batches, self.manager._batches = self.manager._batches, Batches()
        try:
            await happens()
        finally:
            self.manager._batches = batches

    async def call(self, call: Call) -> Any:
        plan = self.plan
        if plan is None or plan.script != call.script:
            return await self._transport.call(call)
        self.plan = None
        if plan.before is not None:
            await self._beside(plan.before)
        if plan.fate is Fate.LOST:
            raise Lost("never arrived")
        if plan.fate is Fate.ABANDONED:
            raise Abandoned
        if self._line is not None and plan.fate in _ON_THE_LINE:
            self._line.fault = _ON_THE_LINE[plan.fate]
        reply = await self._transport.call(call)
        if call.script == "commit" and reply[22] == Code.CONFLICT:
            # Not done yet. Who remembers more has others' work folded earlier, and may be told so.
            self.plan = plan._replace(before=None)
            return reply
        if plan.after is not None:
            await self._beside(plan.after)
        if plan.fate is Fate.UNANSWERED:
            raise Lost("not answered")
        if plan.fate is Fate.LEFT:
            raise Abandoned
        return reply

    async def aclose(self) -> None:
        await self._transport.aclose()


class Line:
    """A faulty way to a server, in a thread of its own: blocking managers use it, too.

    Attributes:
        fault: what happens to the next script that comes along.
    """

    def __init__(self, port: int) -> None:
        self.fault = Fault.PASS
        self.url = ""
        self._port = port
        self._is_open = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def _decide(self, request: list[bytes]) -> Fault:
        if not is_script(request):
            return Fault.PASS
        fault, self.fault = self.fault, Fault.PASS
        return fault

    async def _serve(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        async with FaultProxy(self._port, self._decide) as proxy:
            self.url = proxy.url
            self._is_open.set()
            await self._closing.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        self._is_open.wait()
        return self

    def __exit__(self, *details: object) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()


class Blocking:
    """The verbs of something that blocks, to be awaited; they are done by then."""

    def __init__(self, blocking: Any) -> None:
        self._blocking = blocking

    def __getattr__(self, verb: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def done(*args: Any, **options: Any) -> Any:
            return getattr(self._blocking, verb)(*args, **options)

        return done

    async def update(self, session_id: str, change: Callable[[Session], Any]) -> Session:
        session: Session = self._blocking.update(session_id, lambda one: _finish(change(one)))
        return session


class _BlockingWay:
    """A `Way` for a manager that blocks."""

    def __init__(self, way: Way) -> None:
        self._way = way

    def call(self, call: Call) -> Any:
        return _finish(self._way.call(call))

    def close(self) -> None:
        _finish(self._way.aclose())


def _finish(work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns that never waits."""
    try:
        work.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise AssertionError("it waits for an event loop, in a world without one")


class Stage:
    """A server, an event loop, and connections that all worlds share.

    Args:
        port: of the server, on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self.url = f"redis://127.0.0.1:{port}/0"
        self._line = Line(port)

    def __enter__(self) -> Self:
        self._line.__enter__()
        self.loop = asyncio.new_event_loop()
        urls = (self.url, self._line.url)
        self._awaited = [SessionManager(url)._transport for url in urls]
        self._blocking = [SyncSessionManager(url, connections=4)._transport for url in urls]
        self._redis = Redis.from_url(self.url)
        self._async_redis = AsyncRedis.from_url(self.url)
        return self

    def __exit__(self, *details: object) -> None:
        for transport in self._awaited:
            self.loop.run_until_complete(transport.aclose())
        for blocking in self._blocking:
            blocking.close()
        self.loop.run_until_complete(self._async_redis.aclose())
        self._redis.close()
        self.loop.close()
        self._line.__exit__()

    def manager(
        self, kind: Kind, prefix: str, *, is_faulty: bool, **options: int
    ) -> tuple[Any, Way]:
        """Return a manager that remembers nothing yet, and the way that its calls take."""
        made = SessionManager if kind.is_async else SyncSessionManager
        told: dict[str, Any] = {"idle_timeout": IDLE_HOURS * 3600, "timeout": 10, **options}
        manager: Any = made(self.url, prefix=prefix, merge=POLICIES, max_bytes=MAX_BYTES, **told)
        line = self._line if is_faulty else None
        if kind.is_async:
            manager._transport = way = Way(self._awaited[is_faulty], line)
            way.manager = manager
            return manager, way
        transport: Any = Blocking(self._blocking[is_faulty])
        way = Way(transport, line)
        manager._transport = _BlockingWay(way)
        return Blocking(manager), way

    def redis(self, kind: Kind) -> Any:
        """Return a plain client for a world of this kind, to be awaited."""
        return self._async_redis if kind.is_async else Blocking(self._redis)

    def clear(self, prefix: str) -> None:
        """Remove what was stored under a prefix."""
        for key in self._redis.scan_iter(match=f"{prefix}*", count=1000):
            self._redis.delete(key)


class Held(NamedTuple):
    """A session that a request holds, and which of its world's managers is the request's."""

    manager: int
    session: Session


class World:
    """Managers of one kind on a store of their own, and the sessions that requests hold.

    Args:
        stage: with the server.
        name: of the kind.
        prefix: of the schedule.
        size: of what the first session keeps all the time, bytes.
        keys: that the schedule changes.

    Attributes:
        managers: of two processes, and of a third one behind a faulty line.
        stranger, reader: of processes that remember nothing; the latter only reads.
        ids: of all sessions seen so far, in the same order in each world.
        held: sessions of requests under way.
        copies: of the store as it was, by key, with what was left of its time in ms.
        seen: what could be seen during the step that is done.
    """

    def __init__(
        self, stage: Stage, name: str, prefix: str, size: int, keys: tuple[str, ...]
    ) -> None:
        self.name, self.prefix = name, f"{prefix}{name}"
        self._stage, self._kind = stage, KINDS[name]
        self.redis = stage.redis(self._kind)
        made = [self._make(is_faulty=number == 2, **self._kind.options) for number in range(3)]
        self.managers, self.ways = [one for one, _ in made], [way for _, way in made]
        self.stranger = self.fresh(cache_bytes=0)
        # It puts no timeout off, and so hides from nobody that others should have.
        self.reader = self.fresh(cache_bytes=0, idle_timeout=3600)
        self.size, self.keys = size, keys
        self.ids: list[str] = []
        self.held: list[Held] = []
        self.copies: list[dict[str, tuple[bytes, int]]] = []
        self.seen: list[Any] = []

    def fresh(self, **options: int) -> Any:
        """Return a manager of a process that has just begun."""
        return self._make(is_faulty=False, **options)[0]

    def _make(self, *, is_faulty: bool, **options: int) -> tuple[Any, Way]:
        return self._stage.manager(self._kind, self.prefix, is_faulty=is_faulty, **options)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Carry out what a schedule asks for."""
        if self._kind.is_async:
            return self._stage.loop.run_until_complete(work)
        return _finish(work)

    def key(self, session_id: str) -> str:
        """Return the Redis key of a session."""
        return store_key(self.prefix, session_handle(session_id))

    def note(self, *sessions: Session) -> None:
        """Keep the ids of stored sessions, for schedules to name them by number."""
        self.ids += [one.id for one in sessions if one.id not in self.ids and not one.is_new]

    def hold(self, manager: int, session: Session) -> None:
        """Have a request hold a session; there are no more than six."""
        self.note(session)
        self.held.append(Held(manager, session))
        del self.held[:-6]

    async def copy(self) -> None:
        """Keep what is stored now."""
        kept = {}
        for key in await self.redis.keys(f"{self.prefix}:*"):
            kept[key.decode()] = await self.redis.dump(key), await self.redis.pttl(key)
        self.copies.append(kept)

    async def bring_back(self, number: int, keys: list[str] | None) -> None:
        """Make these keys (None for all) again what they were when a copy was made.

        They have half of their time left at the most: half of what they have now would show which
        later steps give them all of it again.
        """
        kept = self.copies[number]
        if keys is None:
            stored = await self.redis.keys(f"{self.prefix}:*")
            keys = list({*kept, *(key.decode() for key in stored)})
        for key in keys:
            if key not in kept:
                await self.redis.delete(key)
                continue
            dump, left = kept[key]
            left = min(left, IDLE_HOURS * 1_800_000) if left > 0 else 0
            await self.redis.restore(key, left, dump, replace=True)
