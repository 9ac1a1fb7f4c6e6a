"""Contenders without asyncio: what Flask and Django sessions do, without the HTTP around it."""

from __future__ import annotations

import pickle
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import flask
from django.conf import settings
from flask_session.redis.redis import RedisSession, RedisSessionInterface
from redis import Redis

from asyncsession import SyncSessionManager, merge
from bench.contenders.base import Change
from bench.shapes import COUNTER, LIFETIME

__all__ = ["BLOCKING", "BlockingContender"]

T = TypeVar("T")

_MAX_BYTES = 2**20  # as for the asynchronous manager


class BlockingContender(ABC):
    """Keeps sessions in the server at a URL; threads share it.

    Attributes:
        name: on the page.
    """

    name: ClassVar[str]

    @abstractmethod
    def __init__(self, url: str) -> None: ...

    @abstractmethod
    def create(self, content: Mapping[str, Any]) -> str:
        """Store a new session, and return its id."""

    @abstractmethod
    def change(self, session_id: str, change: Change) -> None:
        """Load a session, change it, save it."""

    @abstractmethod
    def read(self, session_id: str, look: Callable[[Mapping[str, Any]], T]) -> T:
        """Load a session and return what `look` finds in it; save nothing."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""


class SyncSession(BlockingContender):
    """`SyncSessionManager`: `load` and `save`; the counter is merged by `merge.counter`."""

    name = "asyncsession"

    def __init__(self, url: str) -> None:
        self._manager = SyncSessionManager(
            url, idle_timeout=LIFETIME, merge={COUNTER: merge.counter}, max_bytes=_MAX_BYTES
        )

    def create(self, content: Mapping[str, Any]) -> str:
        session = self._manager.load()
        session.update(content)
        self._manager.save(session)
        return session.id

    def change(self, session_id: str, change: Change) -> None:
        session = self._manager.load(session_id)
        change(session)
        self._manager.save(session)

    def read(self, session_id: str, look: Callable[[Mapping[str, Any]], T]) -> T:
        return look(self._manager.load(session_id))

    def close(self) -> None:
        self._manager.close()


class FlaskSession(BlockingContender):
    """Its Redis interface: what it reads and writes; msgpack by msgspec."""

    name = "Flask-Session"

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(url)
        self._interface = RedisSessionInterface(flask.Flask("bench"), self._redis)
        self._prefix = self._interface.key_prefix

    def create(self, content: Mapping[str, Any]) -> str:
        session_id = secrets.token_urlsafe(32)
        self._save(session_id, RedisSession(dict(content), session_id))
        return session_id

    def change(self, session_id: str, change: Change) -> None:
        session = self._load(session_id)
        change(session)
        self._save(session_id, session)

    def read(self, session_id: str, look: Callable[[Mapping[str, Any]], T]) -> T:
        return look(self._load(session_id))

    def close(self) -> None:
        self._redis.close()

    # These are the methods that a store of Flask-Session's consists of.

    def _load(self, session_id: str) -> Any:
        stored = self._interface._retrieve_session_data(self._prefix + session_id)  # noqa: SLF001
        return RedisSession(stored, session_id)

    def _save(self, session_id: str, session: Any) -> None:
        self._interface._upsert_session(  # noqa: SLF001
            timedelta(seconds=LIFETIME), session, self._prefix + session_id
        )


class DjangoRedis(BlockingContender):
    """Django's cache sessions on django-redis; pickle, its default."""

    name = "Django, django-redis"

    def __init__(self, url: str) -> None:
        if not settings.configured:
            settings.configure(SECRET_KEY="bench", SESSION_COOKIE_AGE=LIFETIME)  # noqa: S106
        settings.CACHES = {"default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": url}}
        # They need the settings.
        from django.contrib.sessions.backends.cache import SessionStore
        from django.core.cache import caches

        self._store: Any = SessionStore
        self._caches = caches

    def create(self, content: Mapping[str, Any]) -> str:
        session = self._store()
        session.update(content)
        session.save()
        return str(session.session_key)

    def change(self, session_id: str, change: Change) -> None:
        session = self._store(session_id)
        change(session)
        session.save()

    def read(self, session_id: str, look: Callable[[Mapping[str, Any]], T]) -> T:
        return look(self._store(session_id))

    def close(self) -> None:
        self._caches.close_all()


class Plain(BlockingContender):
    """redis-py by hand: GET, change, SET of one pickle, and no protection at all."""

    name = "GET and SET"

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(url)

    def create(self, content: Mapping[str, Any]) -> str:
        session_id = secrets.token_urlsafe(24)
        self._save(session_id, dict(content))
        return session_id

    def change(self, session_id: str, change: Change) -> None:
        session = self._load(session_id)
        change(session)
        self._save(session_id, session)

    def read(self, session_id: str, look: Callable[[Mapping[str, Any]], T]) -> T:
        return look(self._load(session_id))

    def close(self) -> None:
        self._redis.close()

    def _load(self, session_id: str) -> dict[str, Any]:
        stored: Any = self._redis.get(f"session:{session_id}")
        session: dict[str, Any] = pickle.loads(stored)  # noqa: S301 - our own
        return session

    def _save(self, session_id: str, session: dict[str, Any]) -> None:
        self._redis.set(f"session:{session_id}", pickle.dumps(session), ex=LIFETIME)


BLOCKING: tuple[type[BlockingContender], ...] = (SyncSession, FlaskSession, DjangoRedis, Plain)
