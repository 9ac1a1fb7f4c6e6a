"""The verbs that all contenders have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

from redis.asyncio import ConnectionPool, Redis

__all__ = ["Change", "Contender", "GaveUp", "RedisContender"]

T = TypeVar("T")

# One for each task and to spare. Of redis-py's pools the plain one was the quickest here, and
# with fewer connections than tasks it raises.
_CONNECTIONS = 512

Change: TypeAlias = Callable[[MutableMapping[str, Any]], None]


class GaveUp(Exception):
    """A change was not made: the contender stopped trying, and said so."""


class Contender(ABC):
    """Keeps sessions in Redis in one way.

    Args:
        url: of the server.

    Attributes:
        name: for people.
        sends: the commands it sends, as `INFO commandstats` names them; those that its scripts
            call are counted there, too, and are not in here.
    """

    name: ClassVar[str]
    sends: ClassVar[frozenset[str]]

    @abstractmethod
    def __init__(self, url: str) -> None: ...

    @abstractmethod
    async def create(self, content: Mapping[str, Any]) -> str:
        """Store a new session, and return its id."""

    @abstractmethod
    async def change(self, session_id: str, change: Change) -> int:
        """Load a session, change it, save it; return how many attempts that took.

        Raises:
            GaveUp: nothing was changed.
        """

    @abstractmethod
    async def read(self, session_id: str, look: Callable[[Mapping[str, Any]], T]) -> T:
        """Load a session and return what `look` finds in it; save nothing."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connections."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_details: object) -> None:
        await self.aclose()


class RedisContender(Contender):
    """A contender with a redis-py client, hiredis and a pool that is large enough."""

    def __init__(self, url: str) -> None:
        pool = ConnectionPool.from_url(url, max_connections=_CONNECTIONS)
        self._redis: Redis = Redis.from_pool(pool)

    async def aclose(self) -> None:
        """Close the pool."""
        await self._redis.aclose()
