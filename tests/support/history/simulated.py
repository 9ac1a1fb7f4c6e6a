"""Histories that are right: a store that works, and clients that may be told less than happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from support.history.model import Copy, History, Kind, Operation, Outcome

__all__ = ["CREATED", "good_histories"]

CREATED = Operation("p0", "s", Kind.CREATE, 0, 5, Outcome.ACKNOWLEDGED, value="user:1", name="id0")
"""How each history begins."""

_STEP = 10
_LATE = ("unknown, and done later", "unknown, and never done")
_FATES = ("acknowledged", "acknowledged", "failed", "unknown, and done", *_LATE)
_VERBS = ("commit", "commit", "commit", "read", "read", "read", "rotate", "destroy")


class _Store:
    """One session, and what clients did to it."""

    def __init__(self) -> None:
        self.operations = [CREATED]
        self.now = 0
        self.is_live = True
        self.log: list[str] = []
        self.n = 0
        self.own: dict[str, str] = {}
        self.names = ["id0"]
        self._free: dict[str, int] = {}
        self._late: list[Callable[[], bool]] = []
        self._serial = 0

    def copy(self) -> Copy:
        return {"log": list(self.log), "n": self.n, **self.own}

    def step(self, process: str, verb: str, fate: str, before: int, after: int) -> None:
        """Have a process do something, which happens now, or later, or not at all."""
        self.now += _STEP
        began = max(self._free.get(process, 0) + 1, self.now - before)
        if began > self.now:
            return
        ended = self._free[process] = self.now + after
        if verb == "read":
            name = self.names[-1 - before % min(2, len(self.names))]
            seen = self.copy() if self.is_live and name == self.names[-1] else None
            self._note(process, Kind.READ, began, ended, Outcome.ACKNOWLEDGED, "", seen, name=name)
            return
        self._serial += 1
        mark, amount, old, new = f"m{self._serial}", before % 5 - 1, self.names[-1], f"id{self.now}"
        effect = {
            "commit": lambda: self._commit(process, mark, amount),
            "rotate": lambda: self._rotate(old, new),
            "destroy": self._destroy,
        }[verb]
        outcome = Outcome(fate.partition(",")[0])
        if fate == "unknown, and done later":
            self._late.append(effect)
        elif fate in ("acknowledged", "unknown, and done") and not effect():
            outcome = Outcome.GONE if outcome is Outcome.ACKNOWLEDGED else outcome
        if verb == "commit":
            for kind, key, value in (
                (Kind.APPEND, "log", mark), (Kind.ADD, "n", amount), (Kind.OWN, process, mark),
            ):  # fmt: skip
                self._note(process, kind, began, ended, outcome, key, value, commit=mark)
        elif verb == "rotate":
            self._note(process, Kind.ROTATE, began, ended, outcome, "", new, name=old)
        else:
            self._note(process, Kind.DESTROY, began, ended, outcome)

    def deliver(self) -> None:
        """What was late happens now."""
        late, self._late = self._late, []
        for effect in late:
            effect()

    def _commit(self, process: str, mark: str, amount: int) -> bool:
        if self.is_live:
            self.log.append(mark)
            self.n += amount
            self.own[process] = mark
        return self.is_live

    def _rotate(self, old: str, new: str) -> bool:
        if self.is_live and self.names[-1] == old:
            self.names.append(new)
            return True
        return False

    def _destroy(self) -> bool:
        self.is_live = False
        return True

    def _note(self, process: str, kind: Kind, began: int, ended: int, outcome: Outcome,
              key: str = "", value: Any = None, commit: str = "",
              name: str = "") -> None:  # fmt: skip
        self.operations.append(
            Operation(process, "s", kind, began, ended, outcome, key, value, commit, name)
        )


@st.composite
def good_histories(draw: st.DrawFn, *, lives: bool = False) -> History:
    """Draw a history of one session called `s`.

    Args:
        draw: given by Hypothesis.
        lives: the session is never ended.
    """
    verbs = [verb for verb in _VERBS if not (lives and verb == "destroy")]
    steps = st.tuples(
        st.sampled_from(["p0", "p1", "p2"]),
        st.sampled_from(verbs),
        st.sampled_from(_FATES),
        st.integers(1, 25),
        st.integers(1, 25),
        st.booleans(),
    )
    store = _Store()
    for *step, is_delivered in draw(st.lists(steps, min_size=1, max_size=25)):
        if is_delivered:
            store.deliver()
        store.step(*step)
    store.now += 10 * _STEP
    store.deliver()
    for process in ("p0", "p1"):  # so that there is something to break
        store.step(process, "commit", "acknowledged", 3, 1)
        store.step("p2", "read", "acknowledged", 2, 1)
    return History(store.operations, {"s": [store.copy()]} if store.is_live else {})
