"""Stores to run on, and what can happen to them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from random import Random
from time import monotonic_ns, sleep, time
from typing import ClassVar, Self

from redis import Redis

from asyncsession import InvalidSessionData
from asyncsession.blob import HEADER_BYTES
from asyncsession.ids import session_handle, store_key
from asyncsession.log import Log
from support.chaos.plan import Event, Plan
from support.chaos.worker import PREFIX, SharedBoard
from support.history import Copy, Kind, Operation, Outcome
from support.servers import Server

__all__ = ["SingleServer", "Target"]

_KEEP = "if not blob or string.sub(blob, 4, 12) ~= string.sub(ARGV[1], 4, 12) then return 0 end"
_END = f"local blob = redis.call('GET', KEYS[1]) {_KEEP} return redis.call('DEL', KEYS[1])"
_REWIND = (
    f"local blob = redis.call('GET', KEYS[1]) {_KEEP}"
    " redis.call('SET', KEYS[1], ARGV[1], 'KEEPTTL') return 1"
)
_STRAGGLING = 6.0
"""Seconds after which no copy of a session's first commit is under way any more. Before that, a
session that disappears without a trace could be made again by such a copy; the library's timeouts
keep it for longer."""


class Target(ABC):
    """A store. What happens to it is a method each, which blocks and is named after the fault.

    Attributes:
        url: for the managers.
        port: that of the one server there is, for a faulty network before it; None if there are
            several.
        happened: how often each fault did.
        crashes: when (`monotonic_ns`) a master was killed for others to take its place.
        operations: of the history, that are no client's.
    """

    url: str
    port: int | None = None
    faults: ClassVar[tuple[str, ...]] = ()

    def __init__(self, plan: Plan, board: SharedBoard) -> None:
        self.happened: Counter[str] = Counter()
        self.crashes: list[int] = []
        self.operations: list[Operation] = []
        self._board = board
        self._slots = plan.sessions
        self._straggling = _STRAGGLING if {"twice", "late"} & set(plan.faults) else 0.0

    @abstractmethod
    def start(self) -> None:
        """Start all there is, and wait until it is well."""

    @abstractmethod
    def close(self) -> None:
        """End all there is."""

    @abstractmethod
    def masters(self) -> list[Server]:
        """Return the servers that hold the sessions."""

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self.start)
        except BaseException:
            await asyncio.to_thread(self.close)
            raise
        return self

    async def __aexit__(self, *details: object) -> None:
        await asyncio.to_thread(self.close)

    async def suffer(self, event: Event, chance: Random) -> None:
        """Have something happen; return when it is over."""
        method: Callable[[float, Random], bool | None] = getattr(self, f"_{event.fault}")
        done = await asyncio.to_thread(method, event.seconds, chance)
        self.happened[event.fault] += done is not False

    def final(self) -> dict[str, list[Copy]]:
        """Return all live sessions by their names."""
        found: defaultdict[str, list[Copy]] = defaultdict(list)
        for master in self.masters():
            with _binary(master) as redis:
                for key in redis.scan_iter(f"{PREFIX}:*", count=1000, _type="string"):
                    blob = _live(redis, key)
                    if blob is None:
                        continue
                    try:
                        log = _log(blob)
                        copy = {name: log.value(name) for name in log.keys()}  # noqa: SIM118
                    except InvalidSessionData:
                        damaged = Operation("nobody", str(key), Kind.READ, 0, 0, Outcome.UNREADABLE)
                        self.operations.append(damaged)
                    else:
                        found[copy.get("name", str(key))].append(copy)
        return dict(found)

    def _reset(self, _seconds: float, chance: Random) -> None:
        chance.choice(self.masters()).run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def _flush(self, _seconds: float, chance: Random) -> None:
        chance.choice(self.masters()).run("SCRIPT", "FLUSH")

    def _pause(self, seconds: float, chance: Random) -> None:
        chance.choice(self.masters()).run("CLIENT", "PAUSE", int(seconds * 1000))

    def _memory(self, seconds: float, chance: Random) -> None:
        server = chance.choice(self.masters())
        server.run("CONFIG", "SET", "maxmemory", 1)
        sleep(seconds)
        server.run("CONFIG", "SET", "maxmemory", 0)


class SingleServer(Target):
    """One server that has written everything to disk before it answers."""

    faults = ("reset", "kill", "flush", "pause", "memory", "readonly", "evict", "rewind")

    def __init__(self, plan: Plan, board: SharedBoard) -> None:
        super().__init__(plan, board)
        self._server = Server(plan.target, appendonly="yes", appendfsync="always")

    def start(self) -> None:
        """Start the server."""
        self._server.start()
        self.url, self.port = self._server.url, self._server.port

    def close(self) -> None:
        """End the server."""
        self._server.close()

    def masters(self) -> list[Server]:
        """Return the server."""
        return [self._server]

    def _kill(self, seconds: float, _chance: Random) -> None:
        self._server.kill()
        sleep(seconds / 2)
        self._server.start()

    def _readonly(self, seconds: float, _chance: Random) -> None:
        self._server.run("REPLICAOF", "127.0.0.1", 1)  # where no master is
        sleep(seconds)
        self._server.run("REPLICAOF", "NO", "ONE")

    def _evict(self, _seconds: float, chance: Random) -> bool:
        """Remove a session as its idle timeout would, without a tombstone."""
        with _binary(self._server) as redis:
            for key in self._keys(chance):
                began, blob = monotonic_ns(), _live(redis, key)
                if blob is None:
                    continue
                log = _log(blob)
                if log.created / 1000 > time() - self._straggling:
                    continue
                if redis.eval(_END, 1, key, blob):
                    name, ended = log.value("name"), monotonic_ns()
                    self.operations.append(
                        Operation("nobody", name, Kind.DESTROY, began, ended, Outcome.ACKNOWLEDGED)
                    )
                    return True
        return False

    def _rewind(self, seconds: float, chance: Random) -> bool:
        """Put a session back to what it was a little before, as a failover would."""
        key = next(self._keys(chance), "")
        with _binary(self._server) as redis:
            blob = _live(redis, key)
            if blob is None:
                return False
            sleep(seconds / 20)
            return bool(redis.eval(_REWIND, 1, key, blob))

    def _keys(self, chance: Random) -> Iterator[str]:
        slots = chance.sample(range(self._slots), self._slots)
        ids = (self._board.get(slot)[1] for slot in slots)
        return (store_key(PREFIX, session_handle(one)) for one in ids if one)


def _binary(server: Server) -> Redis:
    return Redis(unix_socket_path=str(server.config["unixsocket"]))


def _live(redis: Redis, key: str | bytes) -> bytes | None:
    """Return what is stored of a live session."""
    blob = redis.get(key)
    assert blob is None or isinstance(blob, bytes)
    return blob if blob and blob[3:4] == b"L" else None


def _log(blob: bytes) -> Log:
    """Return the log of a blob as it is stored, with ids of folded commits and room behind it."""
    retired = int.from_bytes(blob[HEADER_BYTES - 4 : HEADER_BYTES], "big")
    frames, end = blob[HEADER_BYTES + retired :], 0
    while length := int.from_bytes(frames[end : end + 4], "big"):
        end += 4 + length
    return Log.parse(blob[:HEADER_BYTES] + frames[:end])
