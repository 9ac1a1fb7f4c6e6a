"""Contenders with sessions to work on: distinct ones, each used by one task at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from bench.contenders import Contender
from bench.run import Run, WorkNotDone, count_all, create_all, rate
from bench.shapes import COUNTER, Shape

__all__ = ["Field"]

_WARM_UP = 0.2  # of the length of a measurement


class Field:
    """Contenders, each with as many sessions of the same content.

    Args:
        run: what the scenario was given.
        contenders: on an empty server.
        shape: of the sessions.
    """

    def __init__(self, run: Run, contenders: Sequence[Contender], shape: Shape) -> None:
        self.contenders = contenders
        self._seconds = run.settings.seconds
        self._shape = shape
        self._ids: dict[str, list[str]] = {}
        self._done: Counter[str] = Counter()

    @classmethod
    async def open(
        cls,
        run: Run,
        stack: AsyncExitStack,
        kinds: Sequence[type[Contender]],
        shape: Shape,
        kilobytes: float,
        sessions: int,
    ) -> Field:
        """Create the sessions of all contenders on a server that is emptied before."""
        field = cls(run, await run.open(stack, kinds), shape)
        content = shape.build(kilobytes)
        for contender in field.contenders:
            run.say(f"{sessions} sessions of {kilobytes:g} KB: {contender.name}")
            field._ids[contender.name] = await create_all(contender, content, sessions)
        return field

    def ids(self, contender: Contender) -> list[str]:
        """Return the ids of a contender's sessions."""
        return self._ids[contender.name]

    async def cycles(self, contender: Contender, tasks: int) -> dict[str, float]:
        """Load, change and save for the length of a measurement; return the rate."""
        return await self._cycles(contender, tasks, self._seconds)

    async def warm_up(self, contender: Contender, tasks: int) -> dict[str, float]:
        """Do the same for a shorter while: connections are opened, scripts are known."""
        return await self._cycles(contender, tasks, self._seconds * _WARM_UP)

    async def reads(self, contender: Contender, tasks: int) -> dict[str, float]:
        """Load and read two keys for the length of a measurement; return the rate.

        Raises:
            WorkNotDone: what was read is not what was stored.
        """
        wrong = 0

        async def cycle(session_id: str) -> None:
            nonlocal wrong
            user, counted = await contender.read(session_id, _two_keys)
            wrong += not (user == "buyer" and counted == 0)

        done, seconds = await rate(cycle, self.ids(contender), tasks, self._seconds)
        if wrong:
            raise WorkNotDone(f"{contender.name}: {wrong} of {done} reads were wrong")
        return {"rate": done / seconds}

    async def change_all(self, contender: Contender) -> None:
        """Count once in every session, one after the other."""
        for session_id in self.ids(contender):
            await contender.change(session_id, self._count)
        self._done[contender.name] += len(self.ids(contender))

    async def read_all(self, contender: Contender) -> None:
        """Read every session once, one after the other."""
        for session_id in self.ids(contender):
            await contender.read(session_id, self._shape.counted)

    async def check(self) -> None:
        """See that all that was counted is in the sessions.

        Raises:
            WorkNotDone: it is not.
        """
        for contender in self.contenders:
            ids = self.ids(contender)
            found = await count_all(contender, ids, self._shape.counted)
            done = self._done[contender.name]
            if found != done:
                raise WorkNotDone(f"{contender.name} counted {done} times, and shows {found}")

    async def _cycles(self, contender: Contender, tasks: int, seconds: float) -> dict[str, float]:
        async def cycle(session_id: str) -> None:
            await contender.change(session_id, self._count)

        done, elapsed = await rate(cycle, self.ids(contender), tasks, seconds)
        self._done[contender.name] += done
        return {"rate": done / elapsed}

    def _count(self, session: MutableMapping[str, Any]) -> None:
        self._shape.count(session)


def _two_keys(session: Mapping[str, Any]) -> tuple[str, int]:
    return session["user"]["roles"][0], session[COUNTER]
