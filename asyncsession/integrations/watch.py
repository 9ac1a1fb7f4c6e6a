"""The watch over the session of a connection that stays open, such as a WebSocket.

Framework-neutral. Nothing tells a process that a session was ended in another one, so it is looked
up now and then. An integration runs `watch` in a task of its own beside the application's handler,
closes the connection with `SESSION_ENDED` when that returns, and cancels the task when the handler
has finished.
"""

from __future__ import annotations

import anyio

from asyncsession.errors import (
    ConfigurationError,
    InvalidSessionData,
    SessionGone,
    StoreUnavailable,
)
from asyncsession.manager import SessionManager
from asyncsession.session import Session

__all__ = ["SESSION_ENDED", "check_interval", "watch"]

SESSION_ENDED = 1008
"""The close code of a WebSocket whose session has ended: policy violation (RFC 6455 7.4.1)."""


async def watch(manager: SessionManager, session: Session, every: float) -> None:
    """Return when a session has ended, whoever ended it; until then, wait, and at least once.

    Looking does not put off the idle timeout: a connection that is merely open is not in use.
    The application's object is left as it is; what it has not saved stays so. While the store
    cannot be reached, or what it has cannot be read, nobody knows that the session has ended.

    Args:
        manager: the session's.
        session: as the application has it. A new one is watched from its first commit on.
        every: seconds between two looks.
    """
    twin: Session | None = None
    while True:
        await anyio.sleep(every)
        if session.is_destroyed:
            return
        if twin is None and session.log is not None:
            twin = session.restarted(session.log)
        if twin is None:
            continue
        try:
            await manager.refresh(twin)
        except SessionGone:
            return
        except (StoreUnavailable, InvalidSessionData):
            continue


def check_interval(every: float | None) -> None:
    """Raise `ConfigurationError` for what cannot be an integration's `watch` option."""
    if every is not None and (not isinstance(every, (int, float)) or not every > 0):
        raise ConfigurationError("watch: seconds, more than 0; None to look never")
