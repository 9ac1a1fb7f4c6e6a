"""What the browser's and the server's process both know."""

from __future__ import annotations

__all__ = ["COOKIE", "OWN_KEY", "WAYS", "WORK"]

WAYS = {
    "read-modify-write": "read-modify-write",
    "lock": "SET NX lock",
    "watch": "WATCH/MULTI/EXEC",
    "asyncsession": "asyncsession",
}
"""The path under which a way of keeping the session is mounted, and its name for people."""

COOKIE = "session"
OWN_KEY = "seen:"  # begins the session key that only one request sets
WORK = 0.003  # seconds between load and save: a quick database query
