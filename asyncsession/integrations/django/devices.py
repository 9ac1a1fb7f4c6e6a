"""A user's sessions: to list, to end one of them, to sign out everywhere (ASVS 5.0 7.4, 7.5.2).

`user` is an object of the user model. Theirs are the sessions for which `PRINCIPAL` returns the
same as for one that this user has logged in to. An `AnonymousUser`, or one that is not in the
database yet, has none: nothing is listed or ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.contrib.auth import SESSION_KEY

from asyncsession.errors import ConfigurationError
from asyncsession.integrations.django import expiry
from asyncsession.integrations.django.config import current
from asyncsession.integrations.django.store import SessionStore
from asyncsession.machine import Settings
from asyncsession.session import Session

__all__ = [
    "aend_session",
    "aend_sessions",
    "asessions_of",
    "end_session",
    "end_sessions",
    "sessions_of",
]


def sessions_of(user: Any, current_session: SessionStore | None = None) -> list[Session]:
    """Return the live sessions of a user, last seen first; see `SessionManager.sessions_of`.

    Args:
        user: of the user model, or anonymous: they have none.
        current_session: `request.session`; the one in the list that is the same has `is_current`.

    Raises:
        ConfigurationError: `PRINCIPAL` is None, or says that the session would be nobody's.
        StoreUnavailable: Redis could not be reached in time.
    """
    principal, manager = _principal(user), current().blocking
    if principal is None:
        return []
    mine = _loaded(current_session)
    return _live(manager.sessions_of(principal, current=mine), manager.settings)


async def asessions_of(user: Any, current_session: SessionStore | None = None) -> list[Session]:
    """See `sessions_of`."""
    principal, manager = _principal(user), current().awaited
    if principal is None:
        return []
    mine = await _aloaded(current_session)
    return _live(await manager.sessions_of(principal, current=mine), manager.settings)


def end_session(user: Any, handle: str) -> bool:
    """End the session of a user that has this handle; return whether there was one.

    It is looked for among the sessions of this user only, so nobody ends another's.
    """
    principal, manager = _principal(user), current().blocking
    for session in [] if principal is None else manager.sessions_of(principal):
        if session.handle == handle:
            manager.destroy(session)
            return True
    return False


async def aend_session(user: Any, handle: str) -> bool:
    """See `end_session`."""
    principal, manager = _principal(user), current().awaited
    for session in [] if principal is None else await manager.sessions_of(principal):
        if session.handle == handle:
            await manager.destroy(session)
            return True
    return False


def end_sessions(user: Any, keep: SessionStore | Session | None = None) -> int:
    """End all sessions of a user, those just logging in included; return how many.

    Args:
        user: of the user model.
        keep: one to leave alone, such as `request.session`.

    Raises:
        StoreUnavailable, CommitOutcomeUnknown: not all could be; call it again.
    """
    principal = _principal(user)
    if principal is None:
        return 0
    kept = _loaded(keep) if isinstance(keep, SessionStore) else keep
    return current().blocking.destroy_all(principal, keep=kept)


async def aend_sessions(user: Any, keep: SessionStore | Session | None = None) -> int:
    """See `end_sessions`."""
    principal = _principal(user)
    if principal is None:
        return 0
    kept = await _aloaded(keep) if isinstance(keep, SessionStore) else keep
    return await current().awaited.destroy_all(principal, keep=kept)


def _principal(user: Any) -> str | None:
    """Return what the sessions of a user are indexed by, None for somebody who can have none."""
    principal_of = current().principal
    if principal_of is None:
        raise ConfigurationError("ASYNCSESSION: PRINCIPAL is None, so nobody's sessions are known")
    if user.pk is None:
        return None
    principal = principal_of({SESSION_KEY: user._meta.pk.value_to_string(user)})  # noqa: SLF001
    if principal is None:
        raise ConfigurationError(
            f"ASYNCSESSION: PRINCIPAL returns None for a session that holds only {SESSION_KEY!r}"
        )
    return principal


def _live(sessions: Iterable[Session], settings: Settings) -> list[Session]:
    return [one for one in sessions if one.is_unreadable or not expiry.has_ended(one, settings)]


def _loaded(store: SessionStore | None) -> Session | None:
    return None if store is None else store.kept()


async def _aloaded(store: SessionStore | None) -> Session | None:
    return None if store is None else await store.akept()
