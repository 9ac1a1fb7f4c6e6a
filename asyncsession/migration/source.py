"""What all sources have in common: a server, a cookie, keys, ids of a certain form."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar

from asyncsession.errors import ConfigurationError, InvalidSessionData
from asyncsession.protocol import BlockingTransport, Transport
from asyncsession.transport import connect, connect_blocking, is_blocking

__all__ = ["HEX_ID", "Principal", "Source", "mapping", "read_json"]

Principal = Callable[[Mapping[str, Any]], str | None]
"""Says whom a session belongs to, given what it holds: such as `"user:42"`, or None for nobody."""

HEX_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)

_CONNECTIONS = 32  # to the other library's server, for threads; each session goes there once

_COOKIE_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,255}", re.ASCII)


class Source(ABC):
    """Sessions that another library has stored in Redis. They are read, and never written.

    Args:
        url: the server, as for the manager: a URL; or for a `SessionManager` a `redis.asyncio`
            client, for a `SyncSessionManager` a `redis.Redis` client. It need not be the server of
            the manager.
        prefix: what stands before the id in that library's keys.
        cookie_name: of that library's cookie.
        principal: called with what a session holds; whom it belongs to, so that a sign-out
            everywhere ends it.

    Attributes:
        cookie_name: as given.

    Raises:
        ConfigurationError: an argument that cannot work.
    """

    name: ClassVar[str]
    """Of the library. It is part of what ids are derived from, so it never changes."""

    id_form: ClassVar[re.Pattern[str]] = HEX_ID
    """What that library's ids look like; anything else never reaches Redis."""

    def __init__(
        self, url: Any, *, prefix: str, cookie_name: str, principal: Principal | None = None
    ) -> None:
        if not isinstance(prefix, str):
            raise ConfigurationError("prefix: a string, which may be empty")
        if not isinstance(cookie_name, str) or not _COOKIE_NAME.fullmatch(cookie_name):
            raise ConfigurationError("cookie_name: a token of RFC 6265, at most 255 characters")
        if principal is not None and not callable(principal):
            raise ConfigurationError("principal: a function of what a session holds, or None")
        self.cookie_name = cookie_name
        self._url = url
        if is_blocking(url):
            self.blocking_transport = connect_blocking(url, _CONNECTIONS)
        else:
            self.transport = connect(url)
        self._prefix = prefix
        self._principal = principal

    @cached_property
    def transport(self) -> Transport:
        """The way to the server, for a `SessionManager`."""
        return connect(self._url)

    @cached_property
    def blocking_transport(self) -> BlockingTransport:
        """The way to the server, for a `SyncSessionManager`."""
        return connect_blocking(self._url, _CONNECTIONS)

    def peer_id(self, cookie_value: bytes) -> str | None:
        """Return the id in that library's cookie; None for what cannot be one.

        Args:
            cookie_value: as the client sent it, not decoded.
        """
        candidate = self._unwrap(cookie_value)
        return candidate if self.is_id(candidate) else None

    def is_id(self, peer_id: object) -> bool:
        """Tell whether this has the form of an id of that library's."""
        return isinstance(peer_id, str) and self.id_form.fullmatch(peer_id) is not None

    def key(self, peer_id: str) -> str:
        """Return the Redis key under which that library keeps the session with this id."""
        return self._prefix + peer_id

    @abstractmethod
    def decode(self, stored: bytes, limit: int) -> Mapping[str, Any]:
        """Return what the application had put into a session, without what the library added.

        Args:
            stored: what is under the key.
            limit: bytes that it may take once it is decompressed.

        Raises:
            InvalidSessionData: it cannot be read; the message says why, and tells no value.
        """

    def principal_of(self, data: Mapping[str, Any]) -> str | None:
        """Return whom a session with this content belongs to, None for nobody.

        Raises:
            ConfigurationError: `principal` returned something else than a text or None.
            What `principal` raises.
        """
        principal = self._principal(data) if self._principal is not None else None
        if principal is not None and not (isinstance(principal, str) and principal):
            raise ConfigurationError("principal: it returns a text that is not empty, or None")
        return principal

    async def aclose(self) -> None:
        """Close the connection of this event loop; using the source again opens a new one."""
        await self.transport.aclose()

    def close(self) -> None:
        """Close what a `SyncSessionManager` has used; using the source again opens a new one."""
        self.blocking_transport.close()

    def __repr__(self) -> str:
        transport = vars(self).get("transport") or self.blocking_transport
        return f"<{type(self).__name__} on {transport!r}>"

    def _unwrap(self, cookie_value: bytes) -> str | None:
        """Return what a cookie holds, without its signature."""
        return cookie_value.decode("latin-1")


def read_json(stored: bytes) -> dict[Any, Any]:
    """Return a JSON object.

    Raises:
        InvalidSessionData: these bytes are something else.
    """
    try:
        data = json.loads(stored.decode("utf-8"))
    except (ValueError, RecursionError):  # their words may quote the value
        raise InvalidSessionData("it is not JSON") from None
    return mapping(data)


def mapping(data: Any) -> dict[Any, Any]:
    """Return `data`, which has to be a mapping.

    Raises:
        InvalidSessionData: it is something else.
    """
    if not isinstance(data, dict):
        raise InvalidSessionData("it is not a mapping of keys to values")
    return data
