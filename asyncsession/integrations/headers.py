"""The session id in headers, for clients that are no browsers and keep no cookies.

Pure: no framework, no session, no store.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from asyncsession.errors import ConfigurationError
from asyncsession.ids import is_session_id
from asyncsession.integrations.cookies import CookieOptions, cookie_of
from asyncsession.integrations.exchange import Carrier, RawHeaders

__all__ = ["Header", "carrier_of"]

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,255}", re.ASCII)
_TAKEN = {"cache-control", "content-length", "content-type", "cookie", "set-cookie", "vary"}
_AUTHORIZATION = b"authorization"


@dataclass(frozen=True, slots=True)
class Header:
    """Where the session id stands in the headers of requests and responses.

    The client gets its id with the response that begins or rotates its session, and sends it from
    then on with each request. An empty id says that the session has ended (Spring Session's header
    resolver says so too).

    Attributes:
        request: the header that a client sends. `Authorization` means `Authorization: Bearer ID`
            (RFC 6750 2.1), so that other credentials in that header are left alone; a header of
            any other name has the bare id.
        response: the header that tells a client its id.

    Raises:
        ConfigurationError: not the name of a header, or of one that has another meaning.
    """

    request: str = "Authorization"
    response: str = "Session-Id"

    def __post_init__(self) -> None:
        for side, name in (("request", self.request), ("response", self.response)):
            if not _NAME.fullmatch(name) or name.lower() in _TAKEN:
                raise ConfigurationError(f"header: {name!r} cannot be the {side} header of an id")

    @property
    def header(self) -> str:
        """The response header that brings an id, in lower case."""
        return self.response.lower()

    @property
    def varies(self) -> str:
        """The request header that the response depends on."""
        return self.request

    def read(self, raw_headers: RawHeaders) -> str | None:
        """Return the session id that a client sent; None for anything that could not be one.

        Two headers of the name count as none, whatever they hold.

        Args:
            raw_headers: of the request, as pairs.
        """
        wanted = self.request.lower().encode("ascii")
        values = [value for name, value in raw_headers if name.lower() == wanted]
        if len(values) != 1:
            return None
        value = values[0]
        if wanted == _AUTHORIZATION:
            scheme, _, credentials = value.partition(b" ")
            if scheme.lower() != b"bearer":
                return None
            value = credentials.lstrip(b" ")
        session_id = value.decode("latin-1")
        return session_id if is_session_id(session_id) else None

    def issue(self, session_id: str) -> str:
        """Return the value of `header` that gives a client its id."""
        return session_id

    def clear(self) -> str:
        """Return the value of `header` that makes a client forget its id."""
        return ""


def carrier_of(header: Header | None, options: CookieOptions) -> Carrier:
    """Return what an integration's keywords describe: a header if one is given, else a cookie.

    Raises:
        TypeError: a keyword that is none of `CookieOptions`.
        ConfigurationError: both are described, or a cookie that browsers would refuse.
    """
    if header is None:
        return cookie_of(options)
    if not isinstance(header, Header):
        raise ConfigurationError('header: a Header, such as Header("X-Session-Id"), or None')
    if options:
        raise ConfigurationError(
            f"header: the id comes in {header.request}, and not in the cookie that is described by "
            f"{', '.join(sorted(options))}"
        )
    return header
