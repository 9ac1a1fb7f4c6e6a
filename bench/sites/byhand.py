"""Flask sessions in Redis by hand, in the forms that tutorials and answers recommend."""

from __future__ import annotations

import pickle
import queue
import secrets
import threading
from abc import ABC, abstractmethod
from typing import Any

from flask import Flask, Request, Response
from flask.sessions import SessionInterface, SessionMixin
from redis import Redis
from werkzeug.datastructures import CallbackDict

from bench.shapes import LIFETIME

__all__ = ["ByHand", "CachedCopy", "DeferredWrite", "FieldPerKey", "FieldPerSession", "Plain"]


class _Session(CallbackDict[str, Any], SessionMixin):
    """A session's content, its id, and what was loaded where the interface compares."""

    def __init__(self, initial: dict[str, Any], sid: str) -> None:
        def changed(session: CallbackDict[str, Any]) -> None:
            session.modified = True  # type: ignore[attr-defined]

        super().__init__(initial, changed)
        self.sid = sid
        self.modified = False
        self.loaded: dict[str, Any] = {}


class ByHand(SessionInterface, ABC):
    """A session interface over three functions: read, write, delete.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        self.redis = Redis.from_url(url)

    @abstractmethod
    def read(self, sid: str) -> dict[str, Any]:
        """Return what is stored, empty if there is nothing."""

    @abstractmethod
    def write(self, session: _Session) -> None:
        """Store a changed session."""

    @abstractmethod
    def delete(self, sid: str) -> None:
        """Delete what is stored."""

    def drain(self) -> None:
        """Return when all that was to be written is."""

    def open_session(self, app: Flask, request: Request) -> _Session:
        """Load the session of the request's cookie, or begin one."""
        sid = request.cookies.get(self.get_cookie_name(app))
        if sid is None:
            return _Session({}, secrets.token_urlsafe(24))
        return _Session(self.read(sid), sid)

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Store the session if it was changed; delete one that was emptied."""
        assert isinstance(session, _Session)
        if not session.modified:
            return
        name = self.get_cookie_name(app)
        if not session:
            self.delete(session.sid)
            response.delete_cookie(name)
            return
        self.write(session)
        response.set_cookie(name, session.sid, httponly=True, samesite="Lax")


class Plain(ByHand):
    """GET and SET of one pickle."""

    def read(self, sid: str) -> dict[str, Any]:
        return _read(self.redis.get(f"session:{sid}"))

    def write(self, session: _Session) -> None:
        self.store(session.sid, pickle.dumps(dict(session)))

    def store(self, sid: str, pickled: bytes) -> None:
        """Write one pickle."""
        self.redis.set(f"session:{sid}", pickled, ex=LIFETIME)

    def delete(self, sid: str) -> None:
        self.redis.delete(f"session:{sid}")


class FieldPerSession(ByHand):
    """One hash `sessions` with a field for each session; HGET and HSET of one pickle."""

    def read(self, sid: str) -> dict[str, Any]:
        return _read(self.redis.hget("sessions", sid))

    def write(self, session: _Session) -> None:
        self.redis.hset("sessions", session.sid, pickle.dumps(dict(session)))

    def delete(self, sid: str) -> None:
        self.redis.hdel("sessions", sid)


class FieldPerKey(ByHand):
    """A hash for each session with a field for each key; HSET of the fields that changed."""

    def read(self, sid: str) -> dict[str, Any]:
        stored: Any = self.redis.hgetall(f"session:{sid}")
        return {key.decode(): _loaded(value) for key, value in stored.items()}

    def open_session(self, app: Flask, request: Request) -> _Session:
        session = super().open_session(app, request)
        session.loaded = dict(session)
        return session

    def write(self, session: _Session) -> None:
        loaded = session.loaded
        changed: dict[Any, Any] = {
            key: pickle.dumps(value)
            for key, value in session.items()
            if key not in loaded or loaded[key] != value
        }
        removed = loaded.keys() - session.keys()
        name = f"session:{session.sid}"
        with self.redis.pipeline() as pipe:
            if changed:
                pipe.hset(name, mapping=changed)
            if removed:
                pipe.hdel(name, *removed)
            pipe.expire(name, LIFETIME)
            pipe.execute()

    def delete(self, sid: str) -> None:
        self.redis.delete(f"session:{sid}")


class CachedCopy(Plain):
    """The same with a copy in the process that spares the GET."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._copies: dict[str, dict[str, Any]] = {}

    def read(self, sid: str) -> dict[str, Any]:
        if sid not in self._copies:
            self._copies[sid] = super().read(sid)
        return self._copies[sid]

    def write(self, session: _Session) -> None:
        self._copies[session.sid] = dict(session)
        super().write(session)

    def delete(self, sid: str) -> None:
        self._copies.pop(sid, None)
        super().delete(sid)


class DeferredWrite(Plain):
    """The same with the SET left to a queue that a worker empties, as a Celery task would."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._queue: queue.Queue[tuple[str, bytes]] = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def store(self, sid: str, pickled: bytes) -> None:
        self._queue.put((sid, pickled))

    def drain(self) -> None:
        self._queue.join()

    def _work(self) -> None:
        while True:
            sid, pickled = self._queue.get()
            super().store(sid, pickled)
            self._queue.task_done()


def _read(stored: Any) -> dict[str, Any]:
    return _loaded(stored) or {}


def _loaded(stored: Any) -> Any:
    return pickle.loads(stored) if stored is not None else {}  # noqa: S301 - as the tutorials do
