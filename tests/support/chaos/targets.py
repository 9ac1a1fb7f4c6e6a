"""Stores to run on, and what can happen to them."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from random import Random
from time import monotonic_ns, time_ns
from typing import Self

from redis.asyncio import Redis

from asyncsession import InvalidSessionData
from asyncsession.blob import HEADER_BYTES, Log
from asyncsession.ids import session_handle, store_key
from support.chaos.plan import Event, Plan
from support.chaos.worker import PREFIX, SharedBoard
from support.history import Copy, Kind, Operation, Outcome
from support.servers import Server

__all__ = ["SingleServer"]

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


class SingleServer:
    """One server that has written everything to disk before it answers.

    Attributes:
        happened: how often each fault did.
        operations: of the history, that are no client's.
    """

    def __init__(self, plan: Plan, board: SharedBoard) -> None:
        self.happened: Counter[str] = Counter()
        self.operations: list[Operation] = []
        self._server = Server(plan.target, appendonly="yes", appendfsync="always")
        self._board = board
        self._slots = plan.sessions
        self._straggling = _STRAGGLING if {"twice", "late"} & set(plan.faults) else 0.0

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.port

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._server.start)
        return self

    async def __aexit__(self, *details: object) -> None:
        await asyncio.to_thread(self._server.close)

    async def suffer(self, event: Event, chance: Random) -> None:
        """Have something happen; return when it is over."""
        if event.fault == "kill":
            await asyncio.to_thread(self._server.kill)
            await asyncio.sleep(event.seconds / 2)
            await asyncio.to_thread(self._server.start)
            self.happened["kill"] += 1
            return
        async with self._client() as redis:
            done = await getattr(self, f"_{event.fault}")(redis, event.seconds, chance)
        self.happened[event.fault] += done is not False

    def _client(self) -> Redis:
        return Redis(unix_socket_path=str(self._server.config["unixsocket"]))

    async def _reset(self, redis: Redis, _seconds: float, _chance: Random) -> None:
        await redis.client_kill_filter(_type="normal", skipme=True)

    async def _flush(self, redis: Redis, _seconds: float, _chance: Random) -> None:
        await redis.script_flush()

    async def _pause(self, redis: Redis, seconds: float, _chance: Random) -> None:
        await redis.client_pause(int(seconds * 1000))

    async def _memory(self, redis: Redis, seconds: float, _chance: Random) -> None:
        await redis.config_set("maxmemory", "1")
        await asyncio.sleep(seconds)
        await redis.config_set("maxmemory", "0")

    async def _readonly(self, redis: Redis, seconds: float, _chance: Random) -> None:
        await redis.replicaof("127.0.0.1", "1")  # where no master is
        await asyncio.sleep(seconds)
        await redis.replicaof("NO", "ONE")

    async def _evict(self, redis: Redis, _seconds: float, chance: Random) -> bool:
        """Remove a session as its idle timeout would, without a tombstone."""
        for key in self._keys(chance):
            began, found = monotonic_ns(), await _live(redis, key)
            if found is None:
                continue
            log = _log(found)
            if log.created / 1000 > time_ns() / 1e9 - self._straggling:
                continue
            if not await redis.eval(_END, 1, key, found):
                continue
            name, ended = log.value("name"), monotonic_ns()
            self.operations.append(
                Operation("nobody", name, Kind.DESTROY, began, ended, Outcome.ACKNOWLEDGED)
            )
            return True
        return False

    async def _rewind(self, redis: Redis, seconds: float, chance: Random) -> bool:
        """Put a session back to what it was a little before, as a failover would."""
        key = next(self._keys(chance), "")
        found = await _live(redis, key)
        if found is None:
            return False
        await asyncio.sleep(seconds / 20)
        return bool(await redis.eval(_REWIND, 1, key, found))

    def _keys(self, chance: Random) -> Iterator[str]:
        slots = chance.sample(range(self._slots), self._slots)
        ids = (self._board.get(slot)[1] for slot in slots)
        return (store_key(PREFIX, session_handle(one)) for one in ids if one)

    async def final(self) -> dict[str, list[Copy]]:
        """Return all live sessions by their names."""
        found: defaultdict[str, list[Copy]] = defaultdict(list)
        async with self._client() as redis:
            async for key in redis.scan_iter(f"{PREFIX}:*", count=1000, _type="string"):
                blob = await _live(redis, key)
                if blob is None:
                    continue
                try:
                    log = _log(blob)
                    copy = {name: log.value(name) for name in log.keys()}  # noqa: SIM118
                except InvalidSessionData:
                    damaged = Operation("nobody", key, Kind.READ, 0, 0, Outcome.UNREADABLE)
                    self.operations.append(damaged)
                else:
                    found[copy.get("name", key)].append(copy)
        return dict(found)


async def _live(redis: Redis, key: str) -> bytes | None:
    """Return what is stored of a live session."""
    blob = await redis.get(key)
    assert blob is None or isinstance(blob, bytes)
    return blob if blob and blob[3:4] == b"L" else None


def _log(blob: bytes) -> Log:
    """Return the log of a blob as it is stored, with the ids of folded commits."""
    retired = int.from_bytes(blob[HEADER_BYTES - 4 : HEADER_BYTES], "big")
    return Log.parse(blob[:HEADER_BYTES] + blob[HEADER_BYTES + retired :])
