"""Locks around whole requests, so that load and save are both inside: for any WSGI application."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from http.cookies import SimpleCookie
from typing import Any

from redis import Redis

__all__ = ["LOCK_POLL", "in_redis_lock", "in_thread_lock"]

WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

LOCK_POLL = 0.05  # seconds; of 2 to 100 ms what does well with 8, 32 and 128 writers alike
_TIMEOUT = 10  # seconds after which a lock whose owner has died is released


def in_thread_lock(application: WSGI, _url: str) -> WSGI:
    """One request of this process at a time."""
    lock = threading.Lock()
    return _inside(application, lambda _cookie: lock)


def in_redis_lock(application: WSGI, url: str) -> WSGI:
    """One request of each session at a time: redis-py's Lock, which is SET NX and a script."""
    redis = Redis.from_url(url)

    def lock_of(cookie: str) -> AbstractContextManager[object]:
        if not cookie:
            return nullcontext()
        lock: AbstractContextManager[object] = redis.lock(
            f"lock:{cookie}", timeout=_TIMEOUT, sleep=LOCK_POLL
        )
        return lock

    return _inside(application, lock_of)


def _inside(application: WSGI, lock_of: Callable[[str], AbstractContextManager[object]]) -> WSGI:
    def locked(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        cookies = SimpleCookie(environ.get("HTTP_COOKIE", ""))
        with lock_of(next((morsel.value for morsel in cookies.values()), "")):
            return list(application(environ, start_response))

    return locked
