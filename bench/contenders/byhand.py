"""redis-py by hand: a session is one JSON document, unprotected or protected in three ways."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from redis.asyncio.lock import Lock
from redis.exceptions import WatchError

from bench.contenders.base import Change, RedisContender
from bench.shapes import LIFETIME
from bench.sites.locks import LOCK_POLL

__all__ = ["BACKOFF", "ByHand", "CompareAndSet", "Locked", "Watched"]

T = TypeVar("T")

_LOCK_TIMEOUT = 10  # seconds after which a lock whose owner has died is released
BACKOFF = 0.002, 0.25  # seconds; first and longest upper limit of a random pause


class ByHand(RedisContender):
    """redis-py by hand: GET, change, SET of one JSON document, and no protection at all."""

    name = "GET and SET"
    sends = frozenset({"get", "set"})

    async def create(self, content: Mapping[str, Any]) -> str:
        session_id = secrets.token_urlsafe(24)
        await self._redis.set(_key(session_id), self._encode(content), ex=LIFETIME)
        return session_id

    async def change(self, session_id: str, change: Change) -> int:
        session = await self._load(session_id)
        change(session)
        await self._redis.set(_key(session_id), self._encode(session), ex=LIFETIME)
        return 1

    async def read(self, session_id: str, look: Callable[[Mapping[str, Any]], T]) -> T:
        return look(await self._load(session_id))

    async def _load(self, session_id: str) -> dict[str, Any]:
        return self._decode(await self._redis.get(_key(session_id)))

    def _encode(self, session: Mapping[str, Any]) -> bytes:
        return json.dumps(session, separators=(",", ":")).encode()

    def _decode(self, stored: Any) -> dict[str, Any]:
        session: dict[str, Any] = json.loads(stored)
        return session


class _CountingLock(Lock):
    tries = 0

    async def do_acquire(self, token: str | bytes) -> bool:
        self.tries += 1
        return await super().do_acquire(token)


class Locked(ByHand):
    """The same inside redis-py's lock."""

    name = "redis-py Lock"
    sends = frozenset({"get", "set", "evalsha"})

    async def change(self, session_id: str, change: Change) -> int:
        name = f"{_key(session_id)}:lock"
        lock = _CountingLock(self._redis, name, timeout=_LOCK_TIMEOUT, sleep=LOCK_POLL)
        async with lock:
            await super().change(session_id, change)
        return lock.tries


class Watched(ByHand):
    """WATCH, GET, MULTI, SET, EXEC: whoever is not first begins again, after a random pause."""

    name = "WATCH and MULTI"
    sends = frozenset({"watch", "get", "multi", "set", "exec", "unwatch"})

    async def change(self, session_id: str, change: Change) -> int:
        key, attempts = _key(session_id), 0
        async with self._redis.pipeline(transaction=True) as pipe:
            while True:
                attempts += 1
                try:
                    await pipe.watch(key)
                    session = self._decode(await pipe.get(key))
                    change(session)
                    pipe.multi()  # type: ignore[no-untyped-call]
                    pipe.set(key, self._encode(session), ex=LIFETIME)
                    await pipe.execute()
                except WatchError:
                    await _pause(attempts)
                else:
                    return attempts


# The version is compared, and not the document, which would have to be sent twice. A refusal
# brings what is there now, so that the next attempt needs no GET.
_COMPARE_AND_SET = """
local current = redis.call('GETRANGE', KEYS[1], 0, 7)
if current ~= ARGV[1] then return redis.call('GETRANGE', KEYS[1], 0, -1) end
redis.call('SETEX', KEYS[1], ARGV[3], ARGV[2])
return 1
"""
_VERSION = 8  # random bytes before the document


class CompareAndSet(ByHand):
    """A script that replaces the document if nobody else has; a refusal is merged by the client."""

    name = "compare-and-set"
    sends = frozenset({"get", "set", "evalsha"})

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._script = self._redis.register_script(_COMPARE_AND_SET)

    async def change(self, session_id: str, change: Change) -> int:
        key, attempts = _key(session_id), 1
        stored: Any = await self._redis.get(key)
        session = self._decode(stored)
        change(session)
        while True:
            reply = await self._script(
                keys=[key], args=[stored[:_VERSION], self._encode(session), LIFETIME]
            )
            if reply == 1:
                return attempts
            await _pause(attempts)
            attempts += 1
            session = _merge(self._decode(stored), session, self._decode(reply))
            stored = reply

    def _encode(self, session: Mapping[str, Any]) -> bytes:
        return secrets.token_bytes(_VERSION) + super()._encode(session)

    def _decode(self, stored: Any) -> dict[str, Any]:
        return super()._decode(stored[_VERSION:])


def _merge(base: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Put our changes on top of theirs, by key: numbers are added up, else ours stands."""
    merged = dict(theirs)
    for key, value in ours.items():
        before = base.get(key)
        if value == before:
            continue
        if key in theirs and isinstance(value, int) and isinstance(before, int):
            merged[key] = theirs[key] + value - before
        else:
            merged[key] = value
    return merged


async def _pause(attempts: int) -> None:
    first, longest = BACKOFF
    await asyncio.sleep(random.uniform(0, min(longest, first * 2 ** (attempts - 1))))  # noqa: S311


def _key(session_id: str) -> str:
    return f"session:{session_id}"
