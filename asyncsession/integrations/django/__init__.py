"""Django's sessions on ours: a session engine, and a middleware that commits them.

SESSION_ENGINE = "asyncsession.integrations.django"
ASYNCSESSION = {"URL": "redis://localhost:6379/0"}
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "asyncsession.integrations.django.CommitMiddleware",  # directly after it
    ...
]
"""

from __future__ import annotations

from asyncsession.integrations.django import checks as _checks
from asyncsession.integrations.django.config import aclose, user_principal
from asyncsession.integrations.django.devices import (
    aend_session,
    aend_sessions,
    asessions_of,
    end_session,
    end_sessions,
    sessions_of,
)
from asyncsession.integrations.django.flash import merge_messages
from asyncsession.integrations.django.middleware import CommitMiddleware
from asyncsession.integrations.django.store import SessionStore

__all__ = [
    "CommitMiddleware",
    "SessionStore",
    "aclose",
    "aend_session",
    "aend_sessions",
    "asessions_of",
    "end_session",
    "end_sessions",
    "merge_messages",
    "sessions_of",
    "user_principal",
]

del _checks  # imported to be registered
