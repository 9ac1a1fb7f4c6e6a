"""What a history is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

__all__ = ["LOSSES", "Copy", "History", "Kind", "Operation", "Outcome", "Rule", "Violation"]

Copy = Mapping[str, Any]
"""What a session held: key to value."""


class Kind(StrEnum):
    """What a client asked for."""

    CREATE = "create"
    """The first commit of a session. `value`: its principal, or None."""
    APPEND = "append"
    """Put `value`, which nobody else appends, at the end of the list `key`."""
    ADD = "add"
    """Add `value` to the counter `key`."""
    OWN = "own"
    """Set `key`, which no other process sets, to `value`, which is set only once."""
    READ = "read"
    """What was seen is `value`: a `Copy`, or None where the id led to no session."""
    ROTATE = "rotate"
    """Change the id, known as `name`, for the one known as `value`."""
    DESTROY = "destroy"
    DESTROY_ALL = "destroy all"
    """Destroy the sessions of a principal; `session` is its name."""


class Outcome(StrEnum):
    """What the client was told."""

    ACKNOWLEDGED = "acknowledged"
    FAILED = "failed"
    """It was not done, and never will be."""
    GONE = "gone"
    """There was no such session any more. If an earlier answer was lost, it may have been done, and
    seen by others until the session ended."""
    UNREADABLE = "unreadable"
    """What is stored is damaged."""
    UNKNOWN = "unknown"
    """It is done once or not at all, and perhaps later."""


class Operation(NamedTuple):
    """One thing that one process did; what one commit did is one operation for each key.

    Attributes:
        process: who did it; a process does one thing after the other.
        session: of which session, by a name that it has for life.
        kind: what it was.
        began: when it was asked for; all processes share the clock, whatever its unit.
        ended: when the outcome was known.
        outcome: what the process was told.
        key: of the session.
        value: see `Kind`.
        commit: operations that were committed together share it.
        name: a public name of the id that was used to find the session.
    """

    process: str
    session: str
    kind: Kind
    began: float
    ended: float
    outcome: Outcome
    key: str = ""
    value: Any = None
    commit: str = ""
    name: str = ""


@dataclass(frozen=True)
class History:
    """What happened, and what was there when all had ended.

    Attributes:
        operations: in any order.
        final: all live copies of each session; more than one is never right.
    """

    operations: list[Operation] = field(default_factory=list)
    final: dict[str, list[Copy]] = field(default_factory=dict)


class Rule(StrEnum):
    """What must never be seen."""

    LOST = "an acknowledged change is not there in the end"
    STALE = "a read lacks what was acknowledged before it began"
    DUPLICATED = "a change was applied twice"
    PHANTOM = "a change is there that failed, was not asked for yet, or by nobody"
    FORKED = "two reads do not agree on the order"
    MISCOUNTED = "a counter is not what the adding comes to"
    TORN = "a commit took effect in part"
    OVERWRITTEN = "a key with one writer has a value that this writer had replaced"
    VANISHED = "a session is gone that nobody ended"
    FLICKERED = "a session that nobody ended was gone, and later there again"
    RESURRECTED = "a session was there after its end was acknowledged, or seen"
    REVIVED = "a commit was acknowledged that began after the end was"
    PLANTED = "an id that was rotated away loads the session"
    SPLIT = "a session is there twice"
    DAMAGED = "what is stored cannot be read"


class Violation(NamedTuple):
    """One rule that was broken, and how.

    Attributes:
        rule: that was broken.
        session: in which session.
        details: for people.
        missing: the item of a list that should have been there.
    """

    rule: Rule
    session: str
    details: str
    missing: str = ""

    def __str__(self) -> str:
        return f"{self.rule.name} in session {self.session}: {self.rule}: {self.details}"


LOSSES = frozenset(Rule) - {
    Rule.DUPLICATED, Rule.PHANTOM, Rule.TORN, Rule.FLICKERED, Rule.SPLIT, Rule.DAMAGED,
}  # fmt: skip
"""What may be seen where a store has lost writes that it had acknowledged."""
