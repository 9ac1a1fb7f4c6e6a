"""A store that refuses, seen by both managers at once: what is raised, and that nothing is done."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from asyncsession import Session, SessionManager, StoreUnavailable, SyncSessionManager
from support.threads import InThreads

__all__ = ["Pair", "both", "contents", "every_verb", "saved"]


class Pair:
    """An async and a sync manager on one store, each with a session that holds a = 1."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._made: list[Any] = [
            SessionManager(url, prefix="async", **options),
            InThreads(SyncSessionManager(url, prefix="sync", **options)),
        ]
        self._sessions: list[Session] = []

    async def each(self, check: Callable[[Any], Awaitable[Any]]) -> list[Any]:
        """Do the same with either manager, at once."""
        return await asyncio.gather(*map(check, self._made))

    async def begin(self, **form: str) -> None:
        """Save the sessions; one that is saved twice has room behind it if it is large."""
        self._sessions = await self.each(saved)
        for more in ({"b": 1}, {"b": 2}) if form else ():
            for manager, session in zip(self._made, self._sessions, strict=True):
                session.update(form | more)
                await manager.save(session)

    async def is_refused(self, name: str) -> None:
        """Change the sessions, and see that no manager can save them; both name the cause."""

        async def refused(manager: Any, session: Session) -> None:
            session["a"] = 2
            with pytest.raises(StoreUnavailable, match=name):
                await manager.save(session)
            assert session["a"] == 2, "the change is kept"

        await asyncio.gather(*map(refused, self._made, self._sessions))

    async def is_unreachable(self, name: str) -> None:
        """See that no manager can load or save anything; both name the cause."""

        async def unreachable(manager: Any) -> None:
            session = Session()
            session["a"] = 1
            for verb, argument in ((manager.load, session.id), (manager.save, session)):
                with pytest.raises(StoreUnavailable, match=name):
                    await verb(argument)

        await self.each(unreachable)

    async def recovers(self) -> None:
        """See that the same managers save those sessions when the cause is gone."""

        async def finishes(manager: Any, session: Session) -> None:
            await manager.save(session)
            assert (await manager.load(session.id))["a"] == 2

        await asyncio.gather(*map(finishes, self._made, self._sessions))

    async def aclose(self) -> None:
        for manager in self._made:
            await manager.aclose()


async def saved(manager: Any) -> Session:
    """Return a new session that holds a = 1 and is saved."""
    session: Session = await manager.load()
    session["a"] = 1
    await manager.save(session)
    return session


@asynccontextmanager
async def both(url: str, *, patience: float = 1.0, **options: Any) -> AsyncIterator[Pair]:
    """Open both managers; close them when the block is left.

    Args:
        url: of the store.
        patience: the managers' `timeout`, seconds; what lasts is retried for so long.
        options: of the managers.
    """
    pair = Pair(url, {"timeout": patience} | options)
    try:
        yield pair
    finally:
        await pair.aclose()


async def every_verb(manager: Any) -> None:
    """Do all that a manager can do, so that every command of every script is run."""
    session, user = await saved(manager), f"user:{uuid.uuid4()}"
    session["a"], session.principal = 2, user
    await manager.save(session)
    await manager.rotate(session)
    rotated_at = session.last_seen
    while session.last_seen == rotated_at:  # a touch in the same millisecond has nothing to note
        await manager.touch(session)
    await manager.refresh(session)
    await manager.update(session.id, lambda found: found.update(a=3))
    assert len(await manager.sessions_of(user)) == 1
    await manager.destroy(session)
    assert await manager.sessions_of(user) == []
    assert await manager.destroy_all(user) == 0
    assert (await manager.load(session.id)).is_new


async def contents(redis: Redis) -> dict[Any, Any]:
    """Return all that a server holds, as it would dump it."""
    return {key: await redis.dump(key) for key in sorted(await redis.keys())}
