"""The rivals: three ways to keep a session in Redis, as they are written with redis-py.

Each stores the session as one JSON document, and has one method that lets a handler change it.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from redis.asyncio import Redis
from redis.exceptions import WatchError

__all__ = ["Handler", "LockedStore", "ReadModifyWriteStore", "WatchedStore"]

Handler: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]

_IDLE_TIMEOUT = 86_400  # seconds
# Longer than any handler should take; a lock that outlives its owner blocks the user so long.
_LOCK_TIMEOUT = 10_000  # ms
_LOCK_POLL = 0.02  # seconds, about; of 3 to 50 ms the quickest in this race
_BACKOFF = 0.002, 0.064  # seconds; first and longest upper limit of a random pause

# Only the owner may release: the lock may have expired meanwhile and be somebody else's.
_RELEASE = """
if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end
return 0
"""


class ReadModifyWriteStore:
    """Load, change, write back the whole: what most session libraries do."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis = redis
        self._prefix = prefix

    async def change(self, session_id: str, handler: Handler) -> int:
        """Run `handler` on the session and save it; return how many attempts that took."""
        session = await self.read(session_id)
        await handler(session)
        await self._redis.set(self._key(session_id), json.dumps(session), ex=_IDLE_TIMEOUT)
        return 1

    async def read(self, session_id: str) -> dict[str, Any]:
        """Return the session as it is stored; empty if there is none."""
        return _decode(await self._redis.get(self._key(session_id)))

    def _key(self, session_id: str) -> str:
        return f"{self._prefix}:{session_id}"


class LockedStore(ReadModifyWriteStore):
    """The same under a lock in Redis: requests of one session wait for one another."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        super().__init__(redis, prefix)
        self._release = redis.register_script(_RELEASE)

    async def change(self, session_id: str, handler: Handler) -> int:
        """As `ReadModifyWriteStore.change`; an attempt is a try for the lock."""
        async with self._lock(f"{self._key(session_id)}:lock") as attempts:
            await super().change(session_id, handler)
        return attempts

    @asynccontextmanager
    async def _lock(self, name: str) -> AsyncIterator[int]:
        token = secrets.token_hex(16)
        attempts = 1
        try:
            while not await self._redis.set(name, token, nx=True, px=_LOCK_TIMEOUT):
                await asyncio.sleep(_LOCK_POLL * random.uniform(0.5, 1.5))  # noqa: S311
                attempts += 1
            yield attempts
        finally:  # also when cancelled while it was being taken
            await self._release(keys=[name], args=[token])


class WatchedStore(ReadModifyWriteStore):
    """Compare-and-set of the whole: whoever is not first starts again, handler included."""

    async def change(self, session_id: str, handler: Handler) -> int:
        """As `ReadModifyWriteStore.change`; an attempt is a run of the handler."""
        key = self._key(session_id)
        limit, longest = _BACKOFF
        attempts = 0
        async with self._redis.pipeline(transaction=True) as pipe:
            while True:
                attempts += 1
                try:
                    await pipe.watch(key)
                    session = _decode(await pipe.get(key))
                    await handler(session)
                    pipe.multi()  # type: ignore[no-untyped-call]
                    pipe.set(key, json.dumps(session), ex=_IDLE_TIMEOUT)
                    await pipe.execute()
                except WatchError:
                    await asyncio.sleep(random.uniform(0, limit))  # noqa: S311
                    limit = min(limit * 2, longest)
                else:
                    return attempts


def _decode(stored: bytes | str | None) -> dict[str, Any]:
    session: dict[str, Any] = json.loads(stored) if stored else {}
    return session
