"""What becomes of a commit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from asyncsession.delta import Review
from asyncsession.log import Log

__all__ = ["Commit", "Rerun"]


_OVERWRITTEN, _DROPPED = int(Review.OVERWRITTEN), int(Review.DROPPED)


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
        merged: list[str] = []
        overwritten: list[str] = []
        dropped: list[str] = []
        for key in sorted(fates):
            fate = int(fates[key])  # working with flags takes many times as long
            if not fate:
                merged.append(key)
            if fate & _OVERWRITTEN:
                overwritten.append(key)
            if fate & _DROPPED:
                dropped.append(key)
        return cls(version, attempts, tuple(merged), tuple(overwritten), tuple(dropped))

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
