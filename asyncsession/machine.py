"""What all operations share: settings, the server's clock, time limits, sending."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast

from asyncsession.blob import ID_BYTES
from asyncsession.cache import Cache
from asyncsession.errors import CommitOutcomeUnknown, InvalidSessionData, StoreUnavailable
from asyncsession.ids import index_key, store_key
from asyncsession.merge import Policies
from asyncsession.protocol import Call, Code, Durability, Lost, Machine, Pause, Refused, Shared

__all__ = [
    "COMMIT_WINDOW",
    "KEPT_IDS",
    "MAX_TIMEOUT",
    "RETRY_HORIZON",
    "Budget",
    "Clock",
    "Reply",
    "Settings",
    "definite",
    "give_up",
    "send",
]

MAX_TIMEOUT: Final = 10.0
"""Seconds that an operation may take at most, all its retries together."""

COMMIT_WINDOW: Final = 15.0
"""Seconds after a commit was first sent in which a copy of it may take effect. The scripts refuse
later copies by the server's own clock, so nothing delayed in the network can surprise anybody.
They repeat this number and the next two; a test compares."""

KEPT_IDS: Final = 1024
"""Folded commit ids that a blob remembers at the most, so that a session that is written to without
pause stays small (22 KB). A copy that was issued before one that is forgotten is refused."""

RETRY_HORIZON: Final = 30.0
"""Seconds for which the ids of folded commits and the tombstones of ended sessions are kept: the
window, and as much again for servers whose clocks differ when one takes over from another."""

_RECENT: Final = 60.0  # seconds; in which clocks do not drift apart by more than some milliseconds
_FIRST_PAUSE: Final = 0.002  # seconds; full jitter below it, doubling
_LONGEST_PAUSE: Final = 0.25


class Clock:
    """The server's clock as far as its replies have told it, whatever this machine's clock says."""

    def __init__(self) -> None:
        self._offset: float | None = None
        self._observed = 0.0  # when it was last told

    def observe(self, now: int) -> None:
        """Take in that the server's clock showed `now` ms just before."""
        at = time.monotonic()
        self._offset, self._observed = now - at * 1000, at

    def now(self) -> int | None:
        """Return the server's time in ms, never later than it is; None before the first reply."""
        return None if self._offset is None else int(self._offset + time.monotonic() * 1000)

    def recent(self) -> int:
        """Return the same if a reply has told it lately, else 0."""
        offset, at = self._offset, time.monotonic()
        return 0 if offset is None or at - self._observed > _RECENT else int(offset + at * 1000)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a manager was set up with; times in seconds, sizes in bytes.

    Attributes:
        durability: what a write waits for; None for the server's own word.
        idle, absolute: the timeouts in ms.
        terms: both as the commit script takes them.
    """

    prefix: str
    idle_timeout: float
    absolute_timeout: float
    max_bytes: int
    timeout: float
    policies: Policies
    max_sessions: int | None = None
    ends_oldest: bool = False
    durability: Durability | None = None
    clock: Clock = field(default_factory=Clock)
    cache: Cache = field(default_factory=Cache)
    idle: int = field(init=False)
    absolute: int = field(init=False)
    terms: bytes = field(init=False)

    def __post_init__(self) -> None:
        idle, absolute = round(self.idle_timeout * 1000), round(self.absolute_timeout * 1000)
        object.__setattr__(self, "idle", idle)
        object.__setattr__(self, "absolute", absolute)
        object.__setattr__(self, "terms", idle.to_bytes(6, "big") + absolute.to_bytes(6, "big"))

    def key(self, handle: str) -> str:
        """Return the Redis key of a session."""
        return store_key(self.prefix, handle)

    def index(self, principal: str) -> str:
        """Return the Redis key of a principal's index."""
        return index_key(self.prefix, principal)


class Budget:
    """The time that one operation has, and whether something it sent is still unaccounted for.

    Attributes:
        unsure: a copy of the commit was sent and never answered.
    """

    __slots__ = ("_ends", "_last_start", "_pauses", "_per_call", "unsure")

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self._per_call = seconds / 4  # so that a reply that never comes leaves time to ask again
        # A try without the time for an answer would only turn a refusal into an unknown outcome.
        self._last_start = self._ends - seconds / 16
        self._pauses = 0
        self.unsure = False

    def sibling(self) -> Budget:
        """Return a budget of the same time, which knows of nothing that is unaccounted for."""
        other = Budget(0.0)
        other._ends, other._per_call = self._ends, self._per_call
        other._last_start, other._pauses = self._last_start, self._pauses
        return other

    def call_timeout(self, durability: Durability | None = None) -> float:
        """Return for how many seconds to wait for the next reply."""
        left, allowed = self._ends - time.monotonic(), self._per_call
        if durability is not None:
            allowed += durability.seconds
        return allowed if left > allowed else max(left, 0.001)

    def pause(self) -> Pause | None:
        """Return the next wait, with full jitter, or None if there is no time for another try."""
        ceiling = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._pauses)
        self._pauses += 1
        seconds = random.uniform(0, ceiling)  # noqa: S311  jitter, not a secret
        return Pause(seconds) if time.monotonic() + seconds < self._last_start else None


class Reply(NamedTuple):
    """A script's reply: a code, and what the script's contract says beside it.

    Attributes:
        found: whether the base was found: 0, or 1; 2 for not at its place any more.
        base: what the call that was answered has named as such; another's where it was shared.
    """

    code: Code
    now: int
    data: Any
    found: int = 1
    base: Any = None


def send(settings: Settings, budget: Budget, script: str, keys: tuple[str, ...],
         *args: bytes | str | int, base: Any = None) -> Machine[Reply]:  # fmt: skip
    """Run a script until it is answered, and return its reply.

    With a base the reply may be another's, see `Call`. A lost call marks the budget as unsure; what
    that means is up to the operation.

    Raises:
        StoreUnavailable: refused for good, or until the deadline; nothing sent is unaccounted for.
        CommitOutcomeUnknown: for a script that writes data: no answer until the deadline, or too
            few replicas have confirmed it.
        InvalidSessionData: what is stored under the key is not of this format. Where that was only
            looked at, it says nothing of what is unaccounted for: see `definite`.
    """
    durability = settings.durability
    if durability is not None and not _is_write(script, keys, args):
        durability = None
    while True:
        try:
            raw = yield Call(script, keys, args, budget.call_timeout(durability), durability, base)
            raw, confirmed = (raw, 0) if durability is None else raw
            raw, based = raw if type(raw) is Shared else (raw, base)
            reply = _read(script, raw, args, based)
        except Refused as refused:
            failure: Refused | Lost = refused
            # With a copy unaccounted for, a later try may tell what giving up now would leave open.
            pause = budget.pause() if refused.passing or budget.unsure else None
        except Lost as lost:
            failure = lost
            budget.unsure = budget.unsure or script in _WRITING
            pause = budget.pause()
        else:
            if reply.now:
                settings.clock.observe(reply.now)
            if reply.code is _OK and durability is None:
                return reply
            if reply.code is Code.UNREADABLE:
                unreadable = InvalidSessionData(
                    "what is stored under this session's key is not of a format this version reads;"
                    " it was left as it is"
                )
                if budget.unsure and script in _WRITING:
                    raise _caused(give_up(budget), unreadable)
                raise unreadable
            if durability is None or confirmed >= durability.replicas:
                return reply
            if reply.code not in _DONE and not (script == "destroy" and reply.code is Code.GONE):
                return reply  # a refusal, and nothing was written
            budget.unsure = budget.unsure or script in _WRITING
            raise _unconfirmed(budget, durability, confirmed)
        if pause is None:
            raise _caused(give_up(budget, failure), failure)
        yield pause


def give_up(
    budget: Budget, failure: Exception | None = None
) -> StoreUnavailable | CommitOutcomeUnknown:
    """Return the error of an operation that ran out of time or was refused for good."""
    if budget.unsure:
        latest = f" ({failure})" if failure else ""
        return CommitOutcomeUnknown(f"sent, and never answered: done once, or not at all{latest}")
    return StoreUnavailable(
        f"Redis was not reached, or refused: {failure}" if failure else "out of time"
    )


class definite:  # noqa: N801  a context manager
    """Let an error pass only if nothing is unaccounted for."""

    __slots__ = ("_budget",)

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if not self._budget.unsure or isinstance(error, CommitOutcomeUnknown):
            return
        if isinstance(error, Exception):
            raise _caused(give_up(self._budget), error)


def _caused(error: Exception, cause: Exception) -> Exception:
    """Return an error with its cause, which a compiled `raise ... from` leaves out."""
    error.__cause__ = cause
    return error


def _unconfirmed(
    budget: Budget, durability: Durability, confirmed: int
) -> StoreUnavailable | CommitOutcomeUnknown:
    few = f"{confirmed} of {durability.replicas} replicas confirmed it"
    if not budget.unsure:
        return StoreUnavailable(
            f"a first step was taken, and {few} within {durability.seconds:g} s; nothing was done"
            " beyond it, and it may be taken again"
        )
    return CommitOutcomeUnknown(
        f"the primary has it, but {few} within {durability.seconds:g} s, so a failover may lose it;"
        " saving or destroying the same session again waits again, and does nothing twice"
    )


def _is_write(script: str, keys: tuple[str, ...], args: tuple[bytes | str | int, ...]) -> bool:
    """Tell whether a call writes what must not be lost: more than when a session was seen."""
    match script:
        case "commit" | "destroy":
            return True
        case "adopt":
            return len(keys) > 1  # else it looks for the mark only
        case "index":
            return args[0] in ("join", "confirm", "revoke")
    return False


_OK: Final = Code.OK
_WRITING: Final = ("commit", "destroy")
_DONE: Final = (Code.OK, Code.APPLIED)
_CODES: Final = {int(code): code for code in Code}


def _read(script: str, raw: Any, args: tuple[bytes | str | int, ...], base: Any) -> Reply:
    if script != "commit":
        if type(raw) is bytes:
            return Reply(_OK, 0, raw, 1, base)
        code, now, data = raw
        return Reply(_CODES[code], now, data, 1, base)
    if raw[6:22] != cast("bytes", args[0])[:ID_BYTES]:
        raise Lost("the reply belongs to another commit")
    return Reply(_CODES[raw[22]], int.from_bytes(raw[:6], "big"), raw[24:], raw[23])
