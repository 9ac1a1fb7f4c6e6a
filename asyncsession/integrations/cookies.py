"""The session cookie: read from raw headers, issued and cleared as RFC 6265 and its successor say.

Pure: no framework, no session, no store.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from http.cookies import CookieError, Morsel
from typing import Any, ClassVar, Literal, TypeAlias, TypedDict

from asyncsession.errors import ConfigurationError
from asyncsession.ids import is_session_id

__all__ = ["Cookie", "CookieOptions", "SameSite", "cookie_of", "sent_values"]

SameSite: TypeAlias = Literal["lax", "strict", "none"]

# An id has 36 bytes: with such a name, all fits the 4,096 that browsers keep (ASVS 5.0 3.3.5).
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,255}", re.ASCII)
_PATH = re.compile(r"/[!-:<-~]*", re.ASCII)
_DOMAIN = re.compile(r"\.?[a-z0-9]([a-z0-9.-]*[a-z0-9])?", re.ASCII | re.IGNORECASE)
_LONG_AGO = "Thu, 01 Jan 1970 00:00:00 GMT"


@dataclass(frozen=True, slots=True)
class Cookie:
    """How the cookie with the session id looks.

    Attributes:
        name: empty for the default: `__Host-session` where the browser would accept that (secure,
            path "/", no domain; ASVS 5.0 3.3.3), else `session`.
        secure: sent over HTTPS only. False is for development without it.
        same_site: "none", for embedded pages, needs `secure`.
        path: the part of the site that gets the cookie.
        domain: the cookie goes to its subdomains as well; None for this host alone.
        max_age: seconds that the browser keeps it, counted from when it was issued, which is not
            repeated while the session keeps its id; None until the browser is closed.
        partitioned: kept apart for each site that embeds ours (CHIPS); needs `secure`.
        http_only: scripts cannot read it (ASVS 5.0 3.3.4). False only where a framework's own
            configuration says so; `CookieOptions` do not have it.

    Raises:
        ConfigurationError: browsers would refuse it, or it could not be written in a header.
    """

    header: ClassVar[str] = "set-cookie"
    varies: ClassVar[str] = "Cookie"

    name: str = ""
    secure: bool = True
    same_site: SameSite = "lax"
    path: str = "/"
    domain: str | None = None
    max_age: int | None = None
    partitioned: bool = False
    http_only: bool = True

    def __post_init__(self) -> None:
        kinds = {"name": str, "secure": bool, "path": str, "partitioned": bool, "http_only": bool}
        for attribute, kind in kinds.items():
            if not isinstance(getattr(self, attribute), kind):
                raise ConfigurationError(f"{attribute} of the cookie: a {kind.__name__}")
        if not self.name:
            host_only = self.secure and self.path == "/" and self.domain is None
            object.__setattr__(self, "name", "__Host-session" if host_only else "session")
        _check_name(self)
        if self.same_site not in ("lax", "strict", "none"):
            raise ConfigurationError('same_site: "lax", "strict" or "none"')
        if self.same_site == "none" and not self.secure:
            raise ConfigurationError('same_site: browsers refuse "none" without secure')
        if self.partitioned and not self.secure:
            raise ConfigurationError("partitioned: browsers refuse it without secure")
        if not _PATH.fullmatch(self.path):
            raise ConfigurationError('path: begins with "/"; ASCII without blanks and semicolons')
        if self.domain is not None and not _DOMAIN.fullmatch(self.domain):
            raise ConfigurationError("domain: a host name, without a port, or None")
        age = self.max_age
        if age is not None and (not isinstance(age, int) or isinstance(age, bool) or age < 1):
            raise ConfigurationError("max_age: whole seconds, at least 1, or None")
        try:
            self.clear()
        except CookieError as error:
            raise ConfigurationError(f"the cookie cannot be written: {error}") from None

    def read(self, raw_headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Return the session id that a client sent; None for anything that could not be one.

        Names are compared as bytes, so that no lookalike passes for a prefixed cookie. Two cookies
        of the name count as none: one was planted, and nobody can tell which. A value that is not
        of the form of our ids counts as none as well, however long it is.

        Args:
            raw_headers: of the request, as pairs. Several Cookie headers are one (RFC 9113 8.2.3).
        """
        values = sent_values(raw_headers, self.name)
        if len(values) != 1:
            return None
        session_id = values[0].decode("latin-1")
        return session_id if is_session_id(session_id) else None

    def issue(self, session_id: str) -> str:
        """Return the value of the Set-Cookie header that gives a client its id."""
        morsel = self._morsel(session_id)
        if self.max_age is not None:
            morsel["max-age"] = self.max_age
        return self._written(morsel)

    def clear(self) -> str:
        """Return the value of the Set-Cookie header that makes a client forget its id."""
        morsel = self._morsel("")
        morsel["max-age"] = 0
        morsel["expires"] = _LONG_AGO
        return self._written(morsel)

    def _morsel(self, value: str) -> Morsel[str]:
        morsel: Morsel[str] = Morsel()
        morsel.set(self.name, value, value)
        # Browsers tell cookies apart by name, domain and path, and refuse to clear a prefixed one
        # with fewer attributes than it was issued with.
        morsel["path"] = self.path
        morsel["domain"] = self.domain or ""
        morsel["secure"] = self.secure
        morsel["httponly"] = self.http_only
        morsel["samesite"] = self.same_site.capitalize()
        return morsel

    def _written(self, morsel: Morsel[str]) -> str:
        # The standard library knows the attribute from Python 3.14 on.
        return morsel.OutputString() + ("; Partitioned" if self.partitioned else "")


class CookieOptions(TypedDict, total=False):
    """What integrations take as keywords: the attributes of `Cookie`."""

    cookie_name: str
    secure: bool
    same_site: SameSite
    path: str
    domain: str | None
    max_age: int | None
    partitioned: bool


def cookie_of(options: CookieOptions) -> Cookie:
    """Return the cookie that an integration's keywords describe.

    Raises:
        TypeError: a keyword that is none of `CookieOptions`.
        ConfigurationError: browsers would refuse it.
    """
    known = CookieOptions.__annotations__
    if unknown := sorted(options.keys() - known.keys()):
        raise TypeError(
            f"unknown options: {', '.join(unknown)}; the cookie's are {', '.join(known)}"
        )
    attributes: dict[str, Any] = {**options}
    return Cookie(name=attributes.pop("cookie_name", ""), **attributes)


def sent_values(raw_headers: Iterable[tuple[bytes, bytes]], name: str) -> list[bytes]:
    """Return the values of all cookies of a name that a client sent, as raw bytes.

    Names are compared as bytes, so that no lookalike passes for a prefixed cookie.

    Args:
        raw_headers: of the request, as pairs. Several Cookie headers are one (RFC 9113 8.2.3).
        name: ASCII.
    """
    wanted = name.encode("ascii") + b"="
    values = []
    for header, line in raw_headers:
        if len(header) == 6 and header.lower() == b"cookie":
            for pair in line.split(b";"):
                sent = pair.strip(b" \t")
                if sent.startswith(wanted):
                    values.append(sent[len(wanted) :])
    return values


def _check_name(cookie: Cookie) -> None:
    if not _NAME.fullmatch(cookie.name):
        raise ConfigurationError("cookie name: a token of RFC 6265, at most 255 characters")
    name = cookie.name.lower()  # browsers see the prefixes in any case
    if name.startswith(("__host-", "__secure-", "__http-")) and not cookie.secure:
        raise ConfigurationError(
            f"cookie name: browsers refuse {cookie.name!r} without secure; over plain HTTP, in "
            "development, leave the name out"
        )
    if name.startswith("__host-") and (cookie.path != "/" or cookie.domain is not None):
        raise ConfigurationError(
            f'cookie name: browsers refuse {cookie.name!r} with a domain, or a path other than "/"'
        )
