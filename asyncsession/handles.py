"""What is done to a session by its handle, wherever it has moved since: look, find, end."""

from __future__ import annotations

from typing import Final

from asyncsession.blob import FORMAT, Kind, head
from asyncsession.errors import InvalidSessionData, SessionConflict
from asyncsession.ids import checked_handle
from asyncsession.log import Log
from asyncsession.machine import RETRY_HORIZON, Budget, Reply, Settings, send
from asyncsession.protocol import Code, Machine
from asyncsession.session import Session

__all__ = ["HORIZON", "LOOK", "MAGIC", "end", "find", "follow"]

HORIZON: Final = round(RETRY_HORIZON * 1000)
"""How long tombstones stay, ms."""

MAGIC: Final = FORMAT[:2]
"""What any session of ours begins with, whatever its format."""

LOOK: Final = (bytes(12),)
"""The arguments of a load that only looks: it fetches the whole log, and writes nothing."""

_MAX_HOPS: Final = 16
"""Rotations that one operation follows; damaged tombstones might name each other."""


def follow(settings: Settings, budget: Budget, script: str, handle: str,
           *args: bytes | str | int) -> Machine[tuple[Reply, str]]:  # fmt: skip
    """Run a script on a session; return its reply, and the handle that the session has now.

    Raises:
        SessionConflict: it was rotated too often.
        What `send` raises.
    """
    for _ in range(_MAX_HOPS + 1):
        reply = yield from send(settings, budget, script, (settings.key(handle),), *args)
        if reply.code is not Code.MOVED:
            if reply.code is Code.GONE:
                settings.cache.drop(handle)
            return reply, handle
        settings.cache.drop(handle)
        handle = checked_handle(reply.data)
    raise SessionConflict("the session is rotated faster than can be followed")


def find(
    settings: Settings, budget: Budget, handle: str, principal: str
) -> Machine[Session | None]:
    """Return a live session of a principal's, without touching it; None if there is none.

    One that cannot be read is returned as such: with no content, and `is_unreadable`. All values
    are looked at, so that damage shows here and not on the page that lists the session.
    """
    try:
        for _ in range(_MAX_HOPS + 1):
            reply = yield from send(settings, budget, "load", (settings.key(handle),), *LOOK)
            if reply.code is Code.OK:
                log = Log.parse(reply.data)
                session = Session("", log, handle)
                is_theirs = session.stored_principal == principal
                for key in log.keys() if is_theirs else ():
                    log.value(key)
                return session if is_theirs else None
            if reply.code is not Code.MOVED:
                return None
            handle = checked_handle(reply.data)
    except InvalidSessionData:
        pass
    return Session.unreadable(handle)


def end(settings: Settings, budget: Budget, session: Session) -> Machine[None]:
    """Leave a tombstone, following rotations: whoever logs out means the session, not the id."""
    mark = MAGIC if session.is_unreadable else head(Kind.DESTROYED, session.incarnation)
    _reply, handle = yield from follow(settings, budget, "destroy", session.handle, mark, HORIZON)
    settings.cache.drop(handle)
