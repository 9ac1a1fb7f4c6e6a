"""asyncsession, through its public verbs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from asyncsession import SessionConflict, SessionManager, merge
from bench.contenders.base import Change, Contender, GaveUp
from bench.shapes import COUNTER, LIFETIME

__all__ = ["AsyncSession", "ForgetfulSession", "MergeFunctionSession", "SerialisableSession"]

T = TypeVar("T")

_MAX_BYTES = 2**20  # the default is 64 KB, which is as large as the largest session here
_TIMEOUT = 10.0  # seconds, the longest


class AsyncSession(Contender):
    """`load` and `save`; the counter is merged by `merge.counter`."""

    name = "asyncsession"
    sends = frozenset({"evalsha"})

    def __init__(
        self,
        url: str,
        counter: merge.Policy | merge.MergeFunction = merge.counter,
        **options: Any,
    ) -> None:
        self._manager = SessionManager(
            url,
            idle_timeout=LIFETIME,
            merge={COUNTER: counter},
            max_bytes=_MAX_BYTES,
            timeout=_TIMEOUT,
            **options,
        )

    async def create(self, content: Mapping[str, Any]) -> str:
        session = await self._manager.load()
        session.update(content)
        await self._manager.save(session)
        return session.id

    async def change(self, session_id: str, change: Change) -> int:
        try:
            session = await self._manager.load(session_id)
            change(session)
            commit = await self._manager.save(session)
        except SessionConflict as conflict:
            raise GaveUp from conflict
        return commit.attempts

    async def read(self, session_id: str, look: Callable[[Mapping[str, Any]], T]) -> T:
        return look(await self._manager.load(session_id))

    async def aclose(self) -> None:
        await self._manager.aclose()


class ForgetfulSession(AsyncSession):
    """The same where nothing is remembered (`cache_bytes=0`): each load brings the whole."""

    name = "asyncsession, unremembered"

    def __init__(self, url: str) -> None:
        super().__init__(url, cache_bytes=0)


def _add_up(base: Any, ours: Any, theirs: Any) -> Any:
    return theirs + ours - base


class MergeFunctionSession(AsyncSession):
    """The counter is merged by a function of the user's, which has to see what others wrote."""

    name = "asyncsession, merge function"

    def __init__(self, url: str) -> None:
        super().__init__(url, _add_up)


class SerialisableSession(AsyncSession):
    """`update`: the change runs again whenever a key that it read has been written meanwhile."""

    name = "asyncsession, update()"

    async def change(self, session_id: str, change: Change) -> int:
        attempts = 0

        def counted(session: Any) -> None:
            nonlocal attempts
            attempts += 1
            change(session)

        try:
            await self._manager.update(session_id, counted)
        except SessionConflict as conflict:
            raise GaveUp from conflict
        return attempts
