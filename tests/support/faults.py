"""What can happen to a request on its way, and who decides."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from enum import Enum, auto

from asyncsession.scripts import SCRIPTS

__all__ = ["Decide", "Fault", "is_commit", "is_script", "seeded"]


class Fault(Enum):
    """What happens to one request."""

    PASS = auto()
    DROP = auto()
    """Not forwarded; the client's connection is reset."""
    CUT = auto()
    """Executed; at most half of the reply is delivered, then the connection is reset."""
    SWALLOW = auto()
    """Executed; the reply is never delivered, the connection stays open."""
    LOST = auto()
    """Never forwarded; the connection stays open."""
    TWICE = auto()
    """Executed and answered, and executed again `delay` later, over another connection.

    Not if it was refused: nobody could call that refusal definite then. TCP repeats nothing.
    """
    DELAY = auto()
    """Forwarded `delay` later, as is everything behind it."""
    LATE = auto()
    """The connection is reset at once; executed `delay` later, over another connection."""


Decide = Callable[[list[bytes]], Fault]


def is_script(request: list[bytes]) -> bool:
    """Whether the request runs a script."""
    return bool(request) and request[0].upper() in (b"EVALSHA", b"EVAL")


def is_commit(request: list[bytes]) -> bool:
    """Whether the request runs the commit script."""
    return is_script(request) and request[1] in (
        SCRIPTS["commit"].sha.encode(),
        SCRIPTS["commit"].source.encode(),
    )


def seeded(
    seed: int,
    rate: float,
    faults: Sequence[Fault],
    only: Callable[[list[bytes]], bool] = is_script,
) -> Decide:
    """Return a `decide` that gives the share `rate` of the requests of interest a random fault.

    Args:
        seed: the same seed gives the same decisions for the same sequence of requests.
        rate: 0.0 for never, 1.0 for always.
        faults: what to choose from; name one twice to have it twice as often.
        only: which requests are of interest; all others pass.
    """
    rng = random.Random(seed)

    def decide(request: list[bytes]) -> Fault:
        return rng.choice(faults) if only(request) and rng.random() < rate else Fault.PASS

    return decide
