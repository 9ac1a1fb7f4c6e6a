"""What went wrong, in the two kinds that matter: certainly not done, or perhaps done."""

from __future__ import annotations

import re
import ssl
from typing import Any

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    MasterDownError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from asyncsession.protocol import Lost, Refused

__all__ = ["BROKEN", "after_sending", "before_sending", "no_right", "of_node", "whole"]

BROKEN = (RedisError, OSError)
"""What redis-py raises for a connection that cannot be opened, or used any more."""

_LONGEST_REASON = 160  # characters of a server's message

# Codes of error replies that pass by themselves; the rest wants a person.
_PASSING = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY", "TRYAGAIN")
_FOR_GOOD = (
    AuthenticationError,
    AuthorizationError,
    InvalidResponse,  # whoever listens there does not speak the protocol
    ssl.SSLError,
)
_CUT_OFF = (ssl.SSLEOFError, ssl.SSLSyscallError, ssl.SSLZeroReturnError)

# A right that is missing within a script comes as "ERR": from Redis 7.0, and from later ones.
_NO_RIGHT = ("The user executing the script can't ", "ACL failure in script")
_CODE = re.compile(r"[A-Z]{3,} ")

# MASTERDOWN is filed under the errors of a Cluster, but comes from any replica.
_OF_CLUSTERS = (AskError, ClusterDownError, TryAgainError)
_CLUSTER_HINT = "; it is a node of a Cluster, and the URL of one begins with redis+cluster://"
_OTHER_HINT = "; what listens there does not speak the protocol of Redis"


def before_sending(error: Exception) -> Refused:
    """Return the fault for a connection that could not be opened."""
    if isinstance(error, ResponseError):  # to a command of redis-py's own, such as SELECT
        return Refused(_reason(error), passing=_code(error) in _PASSING)
    cause: BaseException | None = error
    while cause is not None and not _is_for_good(cause):
        cause = cause.__cause__ or cause.__context__
    return Refused(_reason(error), passing=cause is None)


def after_sending(error: Exception) -> Refused | Lost:
    """Return the fault for a call that was sent: an error reply is a refusal, silence a loss.

    Our scripts write last and all at once, so a script that failed has written nothing.
    """
    if not isinstance(error, (ResponseError, BusyLoadingError, AuthenticationError,
                              AuthorizationError)):  # fmt: skip
        return Lost(_reason(error))
    return Refused(_reason(error), passing=_code(error) in _PASSING)


def of_node(fault: Refused) -> Refused:
    """Return a fault as it is told where the URL is a Cluster's: without the advice to use one."""
    return Refused(str(fault).removesuffix(_CLUSTER_HINT), passing=fault.passing)


def no_right(answer: object) -> Refused | None:
    """Return the refusal that the answer to `MAY_WAIT` is; None unless a right is missing.

    To be asked before the write: a commit that nobody may wait for would be done all the same.
    """
    if not isinstance(answer, ResponseError) or _code(answer) != "NOPERM":
        return None
    return Refused(_reason(answer), passing=False)


def _is_for_good(error: BaseException) -> bool:
    return isinstance(error, _FOR_GOOD) and not isinstance(error, _CUT_OFF)


def _code(error: BaseException) -> str:
    """Return the code of an error reply; empty for what is none."""
    code: str = getattr(error, "status_code", None) or ""
    text = str(error)
    if code == "ERR" and text.startswith(_NO_RIGHT):
        return "NOPERM"
    if not code and isinstance(error, ResponseError) and (found := _CODE.match(text)):
        return found[0].rstrip()  # of which redis-py knows nothing
    return code


def _unconfirmed(error: BaseException) -> Lost:
    """Return the fault for a write that was done, where no WAIT came to say on how many replicas.

    A primary that becomes a replica while it waits says UNBLOCKED, and what it had written last may
    be gone with its role.
    """
    return Lost(_reason(error))


def whole(reply: Any, *confirmed: Any) -> Any:
    """Return a reply; with a WAIT behind it, the two of them: the reply, and how many replicas.

    Args:
        reply: of a script, or the error that came instead.
        confirmed: the answer to the WAIT, or the error that came instead.

    Raises:
        Exception: the reply is an error.
        Lost: the answer to the WAIT is one.
    """
    if isinstance(reply, BaseException):
        raise reply
    for answer in confirmed:
        if isinstance(answer, BaseException):
            raise _unconfirmed(answer) from answer
    return [reply, *confirmed] if confirmed else reply


def _reason(error: BaseException) -> str:
    code, text = _code(error), str(error) or "no answer in time"
    hint = ""
    if isinstance(error, _OF_CLUSTERS) and not isinstance(error, MasterDownError):
        hint = _CLUSTER_HINT
    elif isinstance(error, InvalidResponse):
        hint = _OTHER_HINT
    words = f"{code or type(error).__name__}: {text.removeprefix(code).lstrip()}"
    return words[:_LONGEST_REASON] + hint
