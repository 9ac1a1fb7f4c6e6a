"""Django's own engines as what sessions are taken over from.

They are read through Django's own database and cache layers, and never written. The content of the
engine `db` is signed JSON, and nothing else is read. A cache hands out what its backend makes of
the stored bytes, exactly as it does to the engine `cache` today; nothing is unpickled here.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core import signing
from django.core.cache import caches

from asyncsession.adoption import Source
from asyncsession.errors import ConfigurationError, InvalidSessionData
from asyncsession.protocol import BlockingTransport, Call, Code, Refused, Transport

__all__ = ["ENGINES", "CacheSource", "DatabaseSource", "source_of"]

_KEY_FORM = re.compile(r"[0-9a-z]{32}", re.ASCII)
_SALT = "django.contrib.sessions.SessionStore"  # of the engines `db` and `cached_db`
_CACHE_PREFIX = "django.contrib.sessions.cache"
_EXPIRY = "_session_expiry"

_Principal = Callable[[Mapping[str, Any]], str | None]
_Found = tuple[Any, int]  # what is stored, and the ms that it may still be used


class _Reading:
    """A transport that answers the one call that is made of another library's store.

    Args:
        find: returns what there is under a key, None for nothing.
    """

    def __init__(self, find: Callable[[str], _Found | None]) -> None:
        self._find = find

    def call(self, call: Call) -> list[Any]:
        """Return what is stored under the key of the call.

        Raises:
            Refused: the store is not available.
        """
        limit = call.args[0]
        assert isinstance(limit, int)
        now = round(time.time() * 1000)
        try:
            found = self._find(call.keys[0])
        except Exception as error:  # of any database or cache; none of them has written anything
            raise Refused(f"{type(error).__name__} of Django's own", passing=False) from error
        if found is None:
            return [Code.GONE, now, b""]
        if isinstance(found[0], str) and len(found[0]) > limit:
            return [Code.TOO_LARGE, now, b""]
        return [Code.OK, now, list(found)]

    def close(self) -> None:
        """Leave Django's connections to Django."""


class _AwaitedReading:
    """The same for an event loop, in a thread: Django's database and cache layers block."""

    def __init__(self, reading: _Reading) -> None:
        self._call = sync_to_async(reading.call)

    async def call(self, call: Call) -> list[Any]:
        """Return what is stored under the key of the call."""
        reply: list[Any] = await self._call(call)
        return reply

    async def aclose(self) -> None:
        """Leave Django's connections to Django."""


class _DjangoSource(ABC):
    """What the two sources have in common.

    Args:
        principal: says whom a session belongs to.
    """

    name: ClassVar[str]

    def __init__(self, principal: _Principal | None) -> None:
        self._principal = principal
        reading = _Reading(self.find)
        self.blocking_transport: BlockingTransport = reading
        self.transport: Transport = _AwaitedReading(reading)

    def is_id(self, peer_id: object) -> bool:
        """Tell whether this has the form of a session key of Django's."""
        return isinstance(peer_id, str) and _KEY_FORM.fullmatch(peer_id) is not None

    def key(self, peer_id: str) -> str:
        """Return where the session with this id is."""
        return peer_id

    @abstractmethod
    def decode(self, stored: Any, limit: int) -> Mapping[str, Any]:
        """Return what the application had put into a session; see `asyncsession.adoption`."""

    def principal_of(self, data: Mapping[str, Any]) -> str | None:
        """Return whom a session with this content belongs to."""
        return None if self._principal is None else self._principal(data)

    @abstractmethod
    def find(self, key: str) -> _Found | None:
        """Return what is stored of a session, and for how long it may be used; None for nothing."""


class DatabaseSource(_DjangoSource):
    """Sessions of the engine `db`; and of `cached_db`, which has all of them in the database."""

    name = "django-db"

    def find(self, key: str) -> _Found | None:
        """Return the signed text of a session."""
        from django.contrib.sessions.models import Session  # needs the applications to be loaded
        from django.utils import timezone

        row = Session.objects.filter(session_key=key, expire_date__gt=timezone.now()).first()
        if row is None:
            return None
        return row.session_data, _milliseconds(row.expire_date.timestamp() - time.time())

    def decode(self, stored: Any, limit: int) -> Mapping[str, Any]:  # noqa: ARG002
        """Return a session's content.

        Raises:
            InvalidSessionData: it was not signed with `SECRET_KEY`, or is not JSON.
        """
        try:
            data = signing.loads(stored, salt=_SALT)
        except signing.BadSignature:
            raise InvalidSessionData("its signature is not of this SECRET_KEY") from None
        except Exception:  # its words may quote the value
            raise InvalidSessionData("it is not JSON") from None
        return _mapping(data)


class CacheSource(_DjangoSource):
    """Sessions of the engine `cache`, on whatever backend the cache is, django-redis included."""

    name = "django-cache"

    def find(self, key: str) -> _Found | None:
        """Return the content of a session."""
        data = caches[settings.SESSION_CACHE_ALIAS].get(_CACHE_PREFIX + key)
        return None if data is None else (data, _milliseconds(_at_most(data)))

    def decode(self, stored: Any, limit: int) -> Mapping[str, Any]:  # noqa: ARG002
        """Return a session's content.

        Raises:
            InvalidSessionData: it is no mapping.
        """
        return _mapping(stored)


ENGINES: dict[str, type[_DjangoSource]] = {
    "django.contrib.sessions.backends.db": DatabaseSource,
    "django.contrib.sessions.backends.cached_db": DatabaseSource,
    "django.contrib.sessions.backends.cache": CacheSource,
}
"""The values of `SESSION_ENGINE` whose sessions can be taken over."""


def source_of(declared: Any, principal: _Principal | None) -> Source | None:
    """Return the source that `READ_THROUGH` means.

    Args:
        declared: None, one of `ENGINES`, or a source of `asyncsession.migration`.
        principal: says whom a session of Django's belongs to.

    Raises:
        ConfigurationError: it is none of these.
    """
    if declared is None:
        return None
    if isinstance(declared, str) and declared in ENGINES:
        return ENGINES[declared](principal)
    verbs = [getattr(declared, name, None) for name in ("is_id", "decode")]
    if not isinstance(declared, type) and all(map(callable, verbs)):
        source: Source = declared
        return source
    raise ConfigurationError(
        "ASYNCSESSION: READ_THROUGH: the SESSION_ENGINE that there was, one of "
        f"{', '.join(ENGINES)}; or a source of asyncsession.migration"
    )


def _mapping(data: Any) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise InvalidSessionData("it is not a mapping of keys to values")
    return data


def _at_most(data: Any) -> float:
    """Return for how many seconds the engine `cache` may keep a session that it keeps now."""
    expiry = data.get(_EXPIRY) if isinstance(data, Mapping) else None
    if isinstance(expiry, str):
        expiry = datetime.fromisoformat(expiry)
    if isinstance(expiry, datetime):
        return expiry.timestamp() - time.time()
    return float(expiry or settings.SESSION_COOKIE_AGE)


def _milliseconds(seconds: float) -> int:
    return max(round(seconds * 1000), 1)
