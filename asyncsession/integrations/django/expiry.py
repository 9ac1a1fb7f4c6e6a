"""What `set_expiry` means to the store.

The manager's timeouts hold for all sessions. A custom expiry is one more limit: the moment at which
a session ends is known from what it holds, and a session that is loaded after that is none. Where
it asks for longer than the idle timeout, the store is told to keep the session for as long.

- A date is that moment.
- Seconds are counted from the last save, as Django's own engines do: reading is no activity there.
  The moment is put down under `ENDS` with each save.
- 0 is about the cookie only, and None is no custom expiry.

Pure: no framework, no store.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from asyncsession.machine import Settings
from asyncsession.session import Session

__all__ = ["ENDS", "ends_at", "has_ended", "kept_for", "renew"]

EXPIRY = "_session_expiry"  # Django's: seconds, or a date in ISO 8601
ENDS = "_session_ends"
"""The session key under which the moment stands, in seconds since 1970, on the server's clock."""

_RENEWALS = 10  # what has nothing else to save is put off once in a tenth of its seconds
_LONGEST_RENEWAL = 60.0  # or once in so many seconds, if that is shorter


def ends_at(session: Mapping[str, Any]) -> float | None:
    """Return when a custom expiry ends a session, in seconds since 1970; None if none does."""
    if EXPIRY not in session:  # which costs less than to get what nearly no session has
        return None
    expiry = session[EXPIRY]
    if not expiry:
        return None
    if isinstance(expiry, str):
        return datetime.fromisoformat(expiry).timestamp()
    ends: float | None = session.get(ENDS)
    return ends


def has_ended(session: Mapping[str, Any], settings: Settings) -> bool:
    """Tell whether a custom expiry has ended a session."""
    ends = ends_at(session)
    return ends is not None and ends <= _now(settings)


def renew(session: Session, settings: Settings) -> None:
    """Put down when a session ends that is about to be saved."""
    seconds = None
    if EXPIRY in session:  # see `ends_at`
        seconds = session[EXPIRY]
    if not isinstance(seconds, (int, float)) or not seconds:
        if ENDS in session:
            del session[ENDS]
        return
    ends, known = _now(settings) + seconds, session.get(ENDS)
    interval = min(abs(seconds) / _RENEWALS, _LONGEST_RENEWAL)
    if known is None or session.modified or not 0 <= ends - known < interval:
        session[ENDS] = ends


def kept_for(session: Mapping[str, Any], settings: Settings) -> Settings:
    """Return the settings with which the store keeps a session as long as it may have to.

    Never for less than the idle timeout: a request that does not know of a custom expiry, since
    another one has only just taken it back, must not cut the session short.
    """
    ends = ends_at(session)
    lasts = 0.0 if ends is None else ends - _now(settings)
    if lasts <= settings.idle_timeout:
        return settings
    return replace(settings, idle_timeout=min(lasts, settings.absolute_timeout))


def _now(settings: Settings) -> float:
    """Return the server's time, or ours before the first reply."""
    now = settings.clock.now()
    return time.time() if now is None else now / 1000
