"""The words that the commit machine and the transports share.

The machine yields a `Call`, a `Pause`, a `Queue` or an `Apply`. Whoever drives it performs that and
sends back the reply, or throws in how it failed: `Refused` where the server certainly did nothing,
`Lost` where it may have done it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from enum import IntEnum
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

__all__ = [
    "Apply",
    "BlockingTransport",
    "Call",
    "Code",
    "Durability",
    "Group",
    "Lost",
    "Machine",
    "Pause",
    "Queue",
    "Refused",
    "Shared",
    "Together",
    "Transport",
]

T = TypeVar("T")


class Code(IntEnum):
    """First element of every script's reply. The scripts repeat these numbers; a test compares."""

    OK = 1
    APPLIED = 2
    CONFLICT = 3
    GONE = 4
    MOVED = 5
    TOO_LARGE = 6
    LATE = 7
    UNREADABLE = 8


class Durability(NamedTuple):
    """How far a write has to have spread before it is acknowledged.

    Attributes:
        replicas: how many have to confirm it, at the least.
        seconds: how long the server waits for them, at the most.
    """

    replicas: int
    seconds: float


class Call(NamedTuple):
    """Run a script.

    Attributes:
        script: its name, as in `asyncsession.scripts.SCRIPTS`.
        keys: Redis keys, all in one Cluster slot.
        args: its arguments.
        timeout: seconds after which the reply is not waited for any longer.
        durability: what a write waits for. What comes back for such a call is two things: the
            reply, and how many replicas have confirmed it, be they enough or not.
        base: what the reply goes on from, for a read that may be shared: whoever asks for the same
            before it is sent may be given the reply to this one, as `Shared`. None for any other.
    """

    script: str
    keys: tuple[str, ...]
    args: tuple[bytes | str | int, ...]
    timeout: float
    durability: Durability | None = None
    base: Any = None


class Shared(NamedTuple):
    """What comes back for a read that was not sent, since another was about to be.

    Attributes:
        reply: the script's reply to that one.
        base: of that one's call.
    """

    reply: Any
    base: Any


class Pause(NamedTuple):
    """Wait for so many seconds."""

    seconds: float


class Queue(NamedTuple):
    """Wait for a turn at a session among the commits of this process, and keep it until the end.

    What comes back is whether anybody was at it before. A driver without turns sends False.

    Attributes:
        handle: of the session.
        seconds: after which to go on without it.
    """

    handle: str
    seconds: float


class Apply(NamedTuple):
    """Have the application change a session. What it raises ends the machine.

    Attributes:
        change: a function of the application's. What it returns is awaited where the driver can.
        session: to call it with.
    """

    change: Callable[[Any], Any]
    session: Any

    def perform(self) -> Any:
        """Call the function, and return what it returns.

        Raises:
            RuntimeError: it raised StopIteration, which would end a machine as if it were done.
            What else it raises.
        """
        try:
            return self.change(self.session)
        except StopIteration as error:
            raise RuntimeError("the change raised StopIteration") from error


class Together(NamedTuple):
    """Carry these machines through, at once or in any order, and send back what they return.

    Where some of them raise, the others are carried through nevertheless, and the first exception
    ends the whole.
    """

    machines: tuple[Machine[Any], ...]


Machine: TypeAlias = Generator[Call | Pause | Queue, Any, T]
Group: TypeAlias = Generator[Call | Pause | Queue | Apply | Together, Any, T]


class Refused(Exception):
    """The server was not reached, or answered that it did nothing.

    Attributes:
        passing: whether trying again makes sense.
    """

    def __init__(self, reason: str, *, passing: bool) -> None:
        self.passing = passing
        super().__init__(reason)


class Lost(Exception):
    """The call was sent and its reply did not come: it may have taken effect, or still may."""


class Transport(Protocol):
    """Performs calls."""

    async def call(self, call: Call) -> Any:
        """Run a script and return its reply.

        Raises:
            Refused: it was certainly not done.
            Lost: it may have been done.
        """

    async def aclose(self) -> None:
        """Close what is open."""


class BlockingTransport(Protocol):
    """Performs calls, and makes the thread wait for the reply."""

    def call(self, call: Call) -> Any:
        """Run a script and return its reply.

        Raises:
            Refused: it was certainly not done.
            Lost: it may have been done.
        """

    def close(self) -> None:
        """Close what is open."""
