"""What becomes of a commit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from asyncsession.delta import Review
from asyncsession.log import Log

__all__ = ["Commit", "Rerun"]


class Commit(NamedTuple):
    """What became of a `save`.

    Attributes:
        version: commits the session has seen, this one included.
        attempts: times the commit script was answered; 0 if there was nothing to save.
        merged: keys that others had changed as well, and whose changes were joined.
        overwritten: keys where one of two concurrent values had to go, and theirs went.
        dropped: keys where ours went, by policy, or since what it was a change of has gone.
    """

    version: int
    attempts: int
    merged: tuple[str, ...] = ()
    overwritten: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @classmethod
    def reviewed(cls, version: int, attempts: int, fates: Mapping[str, Review]) -> Commit:
        """Return the outcome of a commit that met others at these keys."""
        by_fate = {fate: tuple(sorted(k for k, f in fates.items() if f & fate)) for fate in Review}
        merged = tuple(sorted(key for key, fate in fates.items() if not fate))
        overwritten, dropped = by_fate[Review.OVERWRITTEN], by_fate[Review.DROPPED]
        return cls(version, attempts, merged, overwritten, dropped)

    def followed_by(self, other: Commit) -> Commit:
        """Return what became of this commit and the next one together."""
        return Commit(
            other.version,
            self.attempts + other.attempts,
            tuple(sorted({*self.merged, *other.merged})),
            tuple(sorted({*self.overwritten, *other.overwritten})),
            tuple(sorted({*self.dropped, *other.dropped})),
        )


class Rerun(NamedTuple):
    """A serialisable change met another one: it has to be computed again on this state."""

    log: Log
