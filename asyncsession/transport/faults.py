"""What went wrong, in the two kinds that matter: certainly not done, or perhaps done."""

from __future__ import annotations

import ssl

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    RedisError,
    ResponseError,
)

from asyncsession.protocol import Lost, Refused

__all__ = ["BROKEN", "after_sending", "before_sending"]

BROKEN = (RedisError, OSError)
"""What redis-py raises for a connection that cannot be opened, or used any more."""

_LONGEST_REASON = 160  # characters of a server's message

# Codes of error replies that pass by themselves; the rest wants a person.
_PASSING = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY", "TRYAGAIN")
_FOR_GOOD = (AuthenticationError, AuthorizationError, ssl.SSLCertVerificationError)


def before_sending(error: Exception) -> Refused:
    """Return the fault for a connection that could not be opened."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, _FOR_GOOD):
        cause = cause.__cause__ or cause.__context__
    return Refused(_reason(error), passing=cause is None)


def after_sending(error: Exception) -> Refused | Lost:
    """Return the fault for a call that was sent: an error reply is a refusal, silence a loss.

    Our scripts write last and all at once, so a script that failed has written nothing.
    """
    if not isinstance(error, (ResponseError, BusyLoadingError, *_FOR_GOOD)):
        return Lost(_reason(error))
    code = getattr(error, "status_code", None) or str(error).split(" ", 1)[0]
    return Refused(_reason(error), passing=code in _PASSING)


def _reason(error: Exception) -> str:
    code = getattr(error, "status_code", None) if isinstance(error, RedisError) else None
    return f"{code or type(error).__name__}: {error}"[:_LONGEST_REASON]
