"""Async sessions in Redis with optimistic concurrency."""

from asyncsession import merge
from asyncsession.errors import (
    CommitOutcomeUnknown,
    ConfigurationError,
    InvalidSessionData,
    InvalidSessionValue,
    SessionConflict,
    SessionError,
    SessionGone,
    SessionTooLarge,
    StoreUnavailable,
    TooManySessions,
)
from asyncsession.manager import SessionManager
from asyncsession.outcome import Commit
from asyncsession.session import Session
from asyncsession.sync import SyncSessionManager

__all__ = [
    "Commit",
    "CommitOutcomeUnknown",
    "ConfigurationError",
    "InvalidSessionData",
    "InvalidSessionValue",
    "Session",
    "SessionConflict",
    "SessionError",
    "SessionGone",
    "SessionManager",
    "SessionTooLarge",
    "StoreUnavailable",
    "SyncSessionManager",
    "TooManySessions",
    "merge",
]
