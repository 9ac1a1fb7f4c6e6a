"""The sessions that Flask and Quart keep by themselves: in a cookie, signed with the SECRET_KEY.

    source = SignedCookies(app)
    app.session_interface = SessionInterface(manager, read_through=source)

Each valid cookie becomes a session of ours, once; `asyncsession.adoption` says how. What another
library has in Redis is here in the cookie itself, so that is the id, and the script that reads an
original is answered from it, without a server.

A signed cookie is a copy, not a reference. Flask signs anew with each change, and every older copy
stays valid for `PERMANENT_SESSION_LIFETIME`; no logout ends it. Here each copy is a session of its
own: ending the one that came from the browser's last copy does not end those of older ones, if
somebody has kept them. A sign-out everywhere does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

from flask.sessions import SecureCookieSessionInterface
from itsdangerous import BadData

from asyncsession.errors import ConfigurationError, InvalidSessionData
from asyncsession.migration import Source
from asyncsession.migration.flask_session import flask_login_user
from asyncsession.migration.source import Principal, mapping
from asyncsession.protocol import BlockingTransport, Call, Code, Transport

__all__ = ["SignedCookies"]


class SignedCookies(Source):
    """Sessions in cookies that Flask or Quart has signed.

    Args:
        app: whose `SECRET_KEY`, `SECRET_KEY_FALLBACKS` and `PERMANENT_SESSION_LIFETIME` these
            cookies go by.
        cookie_name: if it was another one than the application's `SESSION_COOKIE_NAME` is now.
        principal: says whom a session belongs to, given what it holds; None for nobody. The default
            goes by what Flask-Login keeps.
    """

    name = "Flask"

    def __init__(
        self, app: Any, *, cookie_name: str = "", principal: Principal | None = flask_login_user
    ) -> None:
        # Not the base's, which is for stores in Redis.
        self.cookie_name = cookie_name or app.config["SESSION_COOKIE_NAME"]
        self._app = app
        self._principal = principal

    @cached_property
    def transport(self) -> Transport:
        """Reads what a cookie holds, for a `SessionManager`."""
        return _InCookies(self)

    @cached_property
    def blocking_transport(self) -> BlockingTransport:
        """The same for a `SyncSessionManager`."""
        return _BlockingInCookies(self)

    def is_id(self, peer_id: object) -> bool:
        """Tell whether this is a cookie that was signed here, and is not too old.

        Raises:
            ConfigurationError: the application has no `SECRET_KEY`.
        """
        return isinstance(peer_id, str) and self.opened(peer_id) is not None

    def key(self, peer_id: str) -> str:
        """Return what stands for the original: the cookie itself."""
        return peer_id

    def decode(self, stored: bytes, limit: int) -> Mapping[str, Any]:  # noqa: ARG002
        """Return a session's content, with the flag for a permanent one."""
        opened = self.opened(stored.decode("ascii"))
        if opened is None:
            raise InvalidSessionData("the cookie has expired")
        return mapping(opened.content)

    def opened(self, cookie: str) -> _Opened | None:
        """Return what a cookie holds; None if it was not signed here, or too long ago.

        Raises:
            ConfigurationError: the application has no `SECRET_KEY`.
        """
        serializer = SecureCookieSessionInterface().get_signing_serializer(self._app)
        if serializer is None:
            raise ConfigurationError("SECRET_KEY: the one that the cookies were signed with")
        lifetime = int(self._app.permanent_session_lifetime.total_seconds())
        try:
            content, signed_at = serializer.loads(cookie, max_age=lifetime, return_timestamp=True)
        except BadData:
            return None
        age = time.time() - signed_at.timestamp()
        return _Opened(content, round(1000 * max(lifetime - age, 0)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._app.name!r}>"


class _Opened(NamedTuple):
    """What is in a cookie.

    Attributes:
        content: of the session.
        lasts: ms for which the cookie is valid.
    """

    content: Any
    lasts: int


def _reply(source: SignedCookies, call: Call) -> list[Any]:
    """Answer the script that reads an original."""
    (cookie,) = call.keys
    opened = source.opened(cookie)
    if opened is None:
        return [Code.GONE, 0, b""]
    return [Code.OK, 0, [cookie.encode("ascii"), opened.lasts]]


class _InCookies:
    def __init__(self, source: SignedCookies) -> None:
        self._source = source

    async def call(self, call: Call) -> list[Any]:
        return _reply(self._source, call)

    async def aclose(self) -> None:
        """Close nothing: there is no server."""


class _BlockingInCookies:
    def __init__(self, source: SignedCookies) -> None:
        self._source = source

    def call(self, call: Call) -> list[Any]:
        return _reply(self._source, call)

    def close(self) -> None:
        """Close nothing: there is no server."""
