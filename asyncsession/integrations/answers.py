"""What a client is told when its session stands in the way of its request, in any framework.

`answer_to` is public: an application's `on_error` may use its status and `retry_after`.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from asyncsession.errors import (
    CommitOutcomeUnknown,
    InvalidSessionData,
    SessionConflict,
    SessionGone,
    StoreUnavailable,
    TooManySessions,
)

__all__ = ["Answer", "answer_to", "note"]

_log = logging.getLogger("asyncsession")


class Answer(NamedTuple):
    """A response of our own.

    Attributes:
        status: of HTTP.
        text: for the reader of the page; names no key, no value, no server.
        retry_after: seconds, for the header of that name; None for no such header.
    """

    status: int
    text: str
    retry_after: int | None = None

    def headers(self) -> list[tuple[str, str]]:
        """Return the headers of the response, with lower-case names."""
        headers = [("content-type", "text/plain; charset=utf-8"), ("cache-control", "no-store")]
        if self.retry_after is not None:
            headers.append(("retry-after", str(self.retry_after)))
        return headers


_CONFLICT = Answer(409, "Another request changed the session at the same time. Try again.\n")
_GONE = Answer(409, "The session ended while this request was under way. Begin again.\n")
_FULL = Answer(403, "There are too many sessions of this account. End one of them first.\n")
_UNAVAILABLE = Answer(503, "The session store is not available. Try again.\n", retry_after=1)
_UNREADABLE = Answer(500, "The session could not be read. Begin again without it.\n")


def answer_to(error: Exception) -> Answer | None:
    """Return what to tell the client of a request that `error` ended; None if it is not ours.

    `SessionTooLarge` and `InvalidSessionValue` are mistakes of the application's, and stay
    exceptions like all others.
    """
    match error:
        case SessionConflict():
            return _CONFLICT
        case SessionGone():
            return _GONE
        case TooManySessions():
            return _FULL  # and not 409: trying again does not help
        case StoreUnavailable() | CommitOutcomeUnknown():
            return _UNAVAILABLE
        case InvalidSessionData():
            return _UNREADABLE
    return None


def note(error: Exception) -> None:
    """Log an error that a client is told of, so that those who run the application hear of it."""
    match error:
        case InvalidSessionData():
            _log.error("a session cannot be read, and is left as it is", exc_info=error)
        case StoreUnavailable() | CommitOutcomeUnknown():
            _log.warning("%s: %s", type(error).__name__, error)
