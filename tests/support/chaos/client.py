"""What one client does to the sessions it shares, as a generator: it asks for calls and gets told.

One logic serves tasks and threads, as in the library itself.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import suppress
from random import Random
from typing import Any, NamedTuple, Protocol

from asyncsession import (
    CommitOutcomeUnknown,
    InvalidSessionData,
    Session,
    SessionConflict,
    SessionGone,
    StoreUnavailable,
    merge,
)
from asyncsession.ids import session_handle
from support.history import Copy, Kind, Operation, Outcome

__all__ = ["POLICIES", "Board", "Client", "Diary", "Do", "Interrupted"]


def _added(base: Any, ours: Any, theirs: Any) -> int:
    base, ours, theirs = (0 if one is merge.MISSING else one for one in (base, ours, theirs))
    return int(ours + theirs - base)


POLICIES: dict[str, Any] = {
    "log": merge.append,
    "n": merge.counter,
    "sum": _added,
}

Effect = tuple[Kind, str, Any]
"""What a commit does to one key: the kind of operation, the key, the value."""

_PRINCIPALS = 4
_BACK_OFF = 0.05, 0.15  # seconds to wait after a refusal
_TRIES = 3
_SLOW, _LONGEST_THOUGHT = 0.1, 0.1  # of the requests, and their seconds between load and save
_LOOKED_AT = 0.3  # of the sessions that are loaded: the rest of a run's time is for commits


class Do(NamedTuple):
    """Ask for a verb of the manager, or for a wait of so many seconds."""

    verb: str
    args: tuple[Any, ...] = ()


class Interrupted(Exception):
    """The call was cancelled, and whoever made it does not know what became of it."""


class Missing(Exception):
    """An id led to no session."""


class Board(Protocol):
    """Where clients of all processes tell each other the ids of the sessions they share."""

    def get(self, slot: int) -> tuple[str, str]:
        """Return a session's name and its id; both are empty where there is none yet."""

    def put(self, slot: int, name: str, session_id: str) -> None:
        """Put a session there."""


class Diary:
    """What the clients of a process did.

    Attributes:
        operations: for the history.
        counts: of what they were told.
        note: is called for each acknowledged commit.
    """

    def __init__(self, note: Callable[[], None]) -> None:
        self.operations: list[Operation] = []
        self.counts: Counter[str] = Counter()
        self.note = note


class Client:
    """One client.

    Args:
        name: four characters of its own.
        rng: decides about what it does.
        board: the sessions that it shares.
        slots: how many there are.
        longest: commits after which it replaces a session.
        diary: what it writes into.
    """

    def __init__(
        self, name: str, rng: Random, board: Board, slots: int, longest: int, diary: Diary
    ) -> None:
        self._name = name
        self._rng = rng
        self._board = board
        self._slots = slots
        self._longest = longest
        self._diary = diary
        self._serial = 0
        self._has_own = rng.random() < 0.25  # or sessions would be made of little else

    def work(self, is_done: Callable[[], bool]) -> Generator[Do, Any, None]:
        """Do something to one of the sessions, again and again."""
        while not is_done():
            slot = int(self._slots * self._rng.random() ** 2)  # some are hot, some live long
            name, session_id = self._board.get(slot)
            if not name:
                yield from self._create(slot)
                continue
            try:
                session = yield from self._load(name, session_id)
            except Missing:
                if self._board.get(slot) == (name, session_id):
                    yield from self._create(slot)
                continue
            except (StoreUnavailable, Interrupted):
                yield self._wait()
                continue
            if len(session.get("log", ())) >= self._longest:
                if self._rng.random() < 0.5:
                    yield from self._destroy(name, session)
                if self._board.get(slot)[0] == name:
                    yield from self._create(slot)
                continue
            yield from self._use(slot, name, session)

    def _use(self, slot: int, name: str, session: Session) -> Generator[Do, Any, None]:
        chance = self._rng.random()
        if chance < 0.05:
            yield from self._rotate(slot, name, session)
        elif chance < 0.10:
            yield from self._update(name, session.id)
        elif chance < 0.13:
            yield from self._visit()
        elif chance < 0.14:
            yield from self._destroy(name, session)
        elif chance < 0.143:
            yield from self._destroy_all()
        else:
            if chance < 0.17:
                yield from self._refresh(name, session)
            if chance > 1 - _SLOW:
                yield Do("wait", (self._rng.uniform(0, _LONGEST_THOUGHT),))
            yield from self._commit(name, session, "save")

    def _load(self, name: str, session_id: str) -> Generator[Do, Any, Session]:
        began = _now()
        try:
            session: Session = yield Do("load", (session_id,))
        except InvalidSessionData:
            self._did(name, Kind.READ, began, Outcome.UNREADABLE)
            raise Missing from None
        if session.is_new:
            self._saw(name, began, None, session_handle(session_id))
            raise Missing
        if self._rng.random() < _LOOKED_AT:
            self._saw(name, began, _copy(session), session.handle)
        return session

    def _refresh(self, name: str, session: Session) -> Generator[Do, Any, None]:
        began = _now()
        try:
            yield Do("refresh", (session,))
        except SessionGone:
            self._saw(name, began, None, "")  # it follows rotations, so these are no excuse
        except (StoreUnavailable, Interrupted):
            pass
        except InvalidSessionData:
            self._did(name, Kind.READ, began, Outcome.UNREADABLE)
        else:
            if not session.is_stale:  # which is shown nothing of its successor
                self._saw(name, began, _copy(session), session.handle)

    def _create(self, slot: int | None) -> Generator[Do, Any, tuple[str, Session] | None]:
        try:
            session: Session = yield Do("load")
        except Interrupted:
            return None
        name = self._mark()
        principal = None
        session.update({"name": name, "log": [], "n": 0, "sum": 0, "stock": 0})
        if self._rng.random() < 0.2:
            principal = session.principal = f"user:{self._rng.randrange(_PRINCIPALS)}"
        outcome = yield from self._commit(name, session, "save", [(Kind.CREATE, "", principal)])
        if outcome is not Outcome.ACKNOWLEDGED:
            return None
        if slot is not None:
            self._board.put(slot, name, session.id)
        return name, session

    def _visit(self) -> Generator[Do, Any, None]:
        """Begin a session, end it, and look for it."""
        made = yield from self._create(None)
        if made is None:
            return
        name, session = made
        session_id = session.id
        yield from self._destroy(name, session)
        with suppress(Missing, StoreUnavailable, Interrupted):
            yield from self._load(name, session_id)

    def _rotate(self, slot: int, name: str, session: Session) -> Generator[Do, Any, None]:
        old = session.handle
        began = _now()
        outcome = yield from self._commit(name, session, "rotate")
        if outcome is Outcome.ACKNOWLEDGED and (session.is_stale or session.handle == old):
            outcome = Outcome.FAILED  # another was faster
        self._did(name, Kind.ROTATE, began, outcome, value=session.handle, id_name=old)
        if outcome is Outcome.ACKNOWLEDGED and self._board.get(slot)[0] == name:
            self._board.put(slot, name, session.id)

    def _commit(
        self,
        name: str,
        session: Session,
        verb: str,
        more: list[Effect] | None = None,
    ) -> Generator[Do, Any, Outcome]:
        mark = self._mark()
        effects = (more or []) + self._change(session, mark)
        began = _now()
        outcome = yield from self._settled(verb, session)
        for kind, key, value in effects:
            self._did(name, kind, began, outcome, key, value, mark)
        self._count(outcome)
        if outcome is Outcome.ACKNOWLEDGED and not session.is_stale and self._rng.random() < 0.2:
            self._saw(name, began, _copy(session), session.handle)
        if outcome is Outcome.FAILED:
            yield self._wait()
        return outcome

    def _change(self, session: Session, mark: str) -> list[Effect]:
        amount = self._rng.choice((1, 2, -1))
        effects = [(Kind.APPEND, "log", mark), (Kind.ADD, "n", amount)]
        # Of a mutant's session anything may be missing.
        session.setdefault("log", []).append(mark)
        session["n"] = session.get("n", 0) + amount
        if self._has_own:
            effects.append((Kind.OWN, f"own:{self._name}", mark))
            session[f"own:{self._name}"] = mark
        if self._rng.random() < 0.2:
            effects.append((Kind.ADD, "sum", amount))
            session["sum"] = session.get("sum", 0) + amount
        return effects

    def _update(self, name: str, session_id: str) -> Generator[Do, Any, None]:
        mark, began = self._mark(), _now()

        def change(session: Session) -> None:
            if session.is_new:
                raise Missing
            session["stock"] = session.get("stock", 0) - 1
            session.setdefault("log", []).append(mark)

        try:
            yield Do("update", (session_id, change))
            outcome = Outcome.ACKNOWLEDGED
        except Missing:
            self._saw(name, began, None, session_handle(session_id))
            return
        except (CommitOutcomeUnknown, Interrupted) as error:
            self._surprised(error)
            outcome = Outcome.UNKNOWN
        except SessionGone:
            outcome = Outcome.GONE
        except InvalidSessionData:
            outcome = Outcome.UNREADABLE
        except (StoreUnavailable, SessionConflict) as error:
            self._surprised(error)
            outcome = Outcome.FAILED
        self._did(name, Kind.APPEND, began, outcome, "log", mark, mark)
        self._did(name, Kind.ADD, began, outcome, "stock", -1, mark)
        self._count(outcome)

    def _destroy(self, name: str, session: Session) -> Generator[Do, Any, None]:
        began = _now()
        outcome = yield from self._settled("destroy", session)
        self._did(name, Kind.DESTROY, began, outcome)

    def _destroy_all(self) -> Generator[Do, Any, None]:
        principal, began = f"user:{self._rng.randrange(_PRINCIPALS)}", _now()
        try:
            yield Do("destroy_all", (principal,))
            outcome = Outcome.ACKNOWLEDGED
        except (CommitOutcomeUnknown, Interrupted, StoreUnavailable):
            outcome = Outcome.UNKNOWN  # of some, whatever it is of the others
        self._did(principal, Kind.DESTROY_ALL, began, outcome)

    def _settled(self, verb: str, session: Session) -> Generator[Do, Any, Outcome]:
        """Call a verb, mostly until its outcome is known, and return that."""
        is_unsure = False
        for _ in range(_TRIES):
            try:
                yield Do(verb, (session,))
            except (CommitOutcomeUnknown, Interrupted) as error:
                self._surprised(error)
                is_unsure = True
                if self._rng.random() < 0.3:
                    break
            except SessionGone:
                return Outcome.GONE
            except InvalidSessionData:
                return Outcome.UNREADABLE
            except (StoreUnavailable, SessionConflict) as error:
                self._surprised(error)
                if not is_unsure:
                    return Outcome.FAILED
                if verb == "destroy":
                    return Outcome.UNKNOWN  # a session that was not told does not know
                if isinstance(error, SessionConflict) and not session.modified:
                    return Outcome.ACKNOWLEDGED  # it met what was done after a login was committed
                return Outcome.FAILED
            else:
                return Outcome.ACKNOWLEDGED
        return Outcome.UNKNOWN

    def _surprised(self, error: Exception) -> None:
        self._diary.counts[type(error).__name__] += 1

    def _count(self, outcome: Outcome) -> None:
        self._diary.counts[outcome] += 1
        if outcome is Outcome.ACKNOWLEDGED:
            self._diary.note()

    def _saw(self, name: str, began: float, seen: Any, id_name: str) -> None:
        self._did(name, Kind.READ, began, Outcome.ACKNOWLEDGED, value=seen, id_name=id_name)

    def _did(
        self,
        name: str,
        kind: Kind,
        began: float,
        outcome: Outcome,
        key: str = "",
        value: Any = None,
        commit: str = "",
        id_name: str = "",
    ) -> None:
        self._diary.operations.append(
            Operation(self._name, name, kind, began, _now(), outcome, key, value, commit, id_name)
        )

    def _mark(self) -> str:
        """Return a name that nobody else uses, as long as all others."""
        self._serial += 1
        return f"{self._name}.{self._serial:06}"

    def _wait(self) -> Do:
        return Do("wait", (self._rng.uniform(*_BACK_OFF),))


def _copy(session: Session) -> Copy:
    return {**session, "log": list(session.get("log", ()))}


def _now() -> int:
    return time.monotonic_ns()  # the same clock in all processes
