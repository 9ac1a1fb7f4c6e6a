"""Every exception the library raises, in one tree.

Two kinds are never mixed: *definite* outcomes (nothing was written) and the one *unknown* outcome,
`CommitOutcomeUnknown`. No message ever contains a session id or a value.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "CommitOutcomeUnknown",
    "ConfigurationError",
    "InvalidSessionData",
    "InvalidSessionValue",
    "SessionConflict",
    "SessionError",
    "SessionGone",
    "SessionTooLarge",
    "StoreUnavailable",
    "TooManySessions",
]


class SessionError(Exception):
    """The root of every exception this library raises."""


class ConfigurationError(SessionError):
    """The library was set up in a way that cannot work; the message says what to change."""


class SessionConflict(SessionError):
    """Somebody else changed keys whose policy forbids merging, or retries ran out. Nothing written.

    Attributes:
        keys: the session keys in dispute, sorted; empty where no single key is to blame.
    """

    def __init__(self, message: str, keys: Iterable[str] = ()) -> None:
        self.keys = tuple(sorted(keys))
        super().__init__(f"{message}: {', '.join(map(repr, self.keys))}" if self.keys else message)


class SessionGone(SessionError):
    """The session was destroyed or has expired since it was loaded. Nothing is written, ever.

    If an answer had been lost before, the commit may have been done, and seen by others until the
    session ended. Nothing is left of it.
    """


class SessionTooLarge(SessionError):
    """The session would exceed `max_bytes`. Nothing written.

    Attributes:
        bytes: what the stored session would have taken.
        limit: the manager's `max_bytes`.
        largest: up to five (key, packed bytes) pairs, largest first.
    """

    def __init__(self, size: int, limit: int, largest: Iterable[tuple[str, int]] = ()) -> None:
        self.bytes = size
        self.limit = limit
        self.largest = tuple(largest)
        biggest = ", ".join(f"{key!r} ({count} bytes)" for key, count in self.largest)
        super().__init__(
            f"the session would take {size} bytes, the limit is {limit}"
            + (f"; largest keys: {biggest}" if biggest else "")
        )


class TooManySessions(SessionError):
    """The principal has as many sessions as they may, and `when_full` is "refuse". Nothing written.

    The session keeps its unsaved changes, the principal among them, so saving it again is refused
    again while there is no room. Of logins at the same moment some are refused only after their
    commit; then the session has ended (`session.is_destroyed`).

    Attributes:
        limit: the manager's `max_sessions`.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"the principal has {limit} sessions already, which is the limit")


class InvalidSessionData(SessionError):
    """What is stored cannot be read: corrupt, foreign, or of a newer format. Left as it is."""


class InvalidSessionValue(SessionError, TypeError):
    """A value (or a key) of a type that sessions cannot hold. Nothing written.

    Attributes:
        key: the session key under which it was found.
        type: the offending type.
    """

    def __init__(self, key: object, type_: type, reason: str = "") -> None:
        self.key = key
        self.type = type_
        super().__init__(
            f"session key {key!r}: {reason or f'values of type {type_.__qualname__} are not kept'}"
        )


class StoreUnavailable(SessionError):
    """Redis could not be reached, or refused, until the deadline. Nothing was written."""


class CommitOutcomeUnknown(SessionError):
    """A commit was sent, its answer never came: it took effect once, or not at all.

    Saving the same session again finishes the same commit. After the commit window
    (`asyncsession.machine.COMMIT_WINDOW`) it can't take effect any more; load anew to see.

    With `min_replicas` also: it is done, and so few replicas have confirmed it that a failover may
    lose it.
    """
