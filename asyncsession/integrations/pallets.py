"""What Flask and Quart have in common: what a session interface is told, and how a cookie looks."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

from werkzeug.datastructures import Headers
from werkzeug.sansio.response import Response

from asyncsession.errors import (
    CommitOutcomeUnknown,
    ConfigurationError,
    InvalidSessionData,
    SessionConflict,
    SessionError,
    SessionGone,
    StoreUnavailable,
    TooManySessions,
)
from asyncsession.integrations.cookies import Cookie
from asyncsession.integrations.exchange import UNSHARED, Closing, Terms
from asyncsession.integrations.terms import AnyManager, Outage, ReadThrough
from asyncsession.integrations.web_session import Principal, flask_login_user

__all__ = ["ANSWERED", "Declared", "dress", "headers_for"]

M = TypeVar("M", bound=AnyManager)

ANSWERED: tuple[type[SessionError], ...] = (
    CommitOutcomeUnknown,
    InvalidSessionData,
    SessionConflict,
    SessionGone,
    StoreUnavailable,
    TooManySessions,
)
"""The errors that are answered in place of the application; see `answer_to`."""

_EXTENSION = "asyncsession"  # under this name in `app.extensions`

# What the methods of Flask's and Quart's session interfaces read of the configuration to describe
# the cookie. To compare these values takes an eighth of the time of asking the methods.
_CONFIGURED = itemgetter(
    "APPLICATION_ROOT", "SESSION_COOKIE_DOMAIN", "SESSION_COOKIE_HTTPONLY", "SESSION_COOKIE_NAME",
    "SESSION_COOKIE_PARTITIONED", "SESSION_COOKIE_PATH", "SESSION_COOKIE_SAMESITE",
    "SESSION_COOKIE_SECURE",
)  # fmt: skip
_METHODS = tuple(
    f"get_cookie_{what}"
    for what in ("name", "secure", "samesite", "path", "domain", "partitioned", "httponly")
)
_beginning = threading.Lock()  # for first requests that come at once

# What speaks of the content that is replaced, or of what the request would have done. All others,
# such as those of CORS and of security policies, hold for the answer as well.
_OF_THE_CONTENT = frozenset(
    ("accept-ranges", "cache-control", "content-disposition", "content-encoding",
     "content-language", "content-length", "content-location", "content-range", "content-type",
     "etag", "expires", "last-modified", "link", "location", "refresh", "retry-after",
     "set-cookie", "www-authenticate")
)  # fmt: skip


class Declared(ABC, Generic[M]):
    """What an application declares when it makes its session interface.

    Args:
        manager: loads and saves; the application's to open, to share, to close.
        outage: what becomes of a request whose session cannot be loaded since the store is down:
            `"error"` (503), or `"anonymous"`: it goes on with an empty session, which is not saved.
        keep_on_exception: save the changes of a stored session also if an exception passes that has
            no error handler of its class; one for status 500 is not.
        on_error: called as `on_error(request, error)` with each error that is answered in place of
            the application; returns what a view may return, or None for the answer that is the
            default. Nothing is saved for its response.
        principal: says who is logged in, given the session; None for nobody. When that changes in a
            request, it becomes `session.principal`, and the session gets a new id as it is saved
            (ASVS 5.0 7.2.4). The default goes by what Flask-Login keeps. None to switch that off.
        read_through: the sessions that the application had before; see `asyncsession.migration`
            and `asyncsession.integrations.signed_cookies`.

    Raises:
        ConfigurationError: an option that cannot be meant.
    """

    kind: type[M]
    """Of manager."""
    framework: type[Any]
    """The framework's own session interface."""

    def __init__(
        self,
        manager: M,
        *,
        outage: Outage = "error",
        keep_on_exception: bool = False,
        on_error: Callable[[Any, Exception], Any] | None = None,
        principal: Principal | None = flask_login_user,
        read_through: ReadThrough | None = None,
    ) -> None:
        self._terms = Terms(manager, Cookie(), outage, keep_on_exception, read_through)
        self._terms.check(self.kind)
        if on_error is not None and not callable(on_error):
            raise ConfigurationError("on_error: a function, called as on_error(request, error)")
        if principal is not None and not callable(principal):
            raise ConfigurationError("principal: a function of the session, or None")
        self.principal = principal
        self.on_error = on_error

    def terms_of(self, app: Any) -> Terms[M]:
        """Return the terms for an application, whose configuration describes the cookie.

        Raises:
            ConfigurationError: browsers would refuse that cookie; or the interface was given to an
                application that has served requests already.
        """
        known: _Known | None = app.extensions.get(_EXTENSION)
        if known is None:
            with _beginning:
                if _EXTENSION not in app.extensions:
                    self._begin(app)
                    app.extensions[_EXTENSION] = self._known(app)
            known = app.extensions[_EXTENSION]
        if known.interface is not self:
            raise ConfigurationError(
                "app.session_interface: it stays the same once it has been used"
            )
        if known.configured != _CONFIGURED(app.config) or (
            known.described is not None and known.described != self._described(app)
        ):
            known = app.extensions[_EXTENSION] = self._known(app)
        return known.terms

    def _known(self, app: Any) -> _Known:
        """Return what has to be known of an application, as it is configured now."""
        configured, described = _CONFIGURED(app.config), self._described(app)
        terms = self._terms._replace(carrier=_cookie(*described))
        is_own = any(
            getattr(getattr(self, name), "__func__", None) is not getattr(self.framework, name)
            for name in _METHODS
        )
        return _Known(self, configured, described if is_own else None, terms)

    def _described(self, app: Any) -> tuple[Any, ...]:
        return tuple(getattr(self, name)(app) for name in _METHODS)

    @abstractmethod
    def answer(self, error: Exception) -> Any:
        """Answer an error that a view raises. It is registered as an error handler."""

    @abstractmethod
    def listen(self, app: Any) -> None:
        """Have an application tell of exceptions that end a request."""

    def _begin(self, app: Any) -> None:
        """Have an application tell of errors."""
        handlers = app.error_handler_spec[None][None]
        try:
            for error in ANSWERED:
                if not any(base in handlers for base in error.__mro__[: -len(Exception.__mro__)]):
                    app.register_error_handler(error, self.answer)
        except AssertionError as late:
            raise ConfigurationError(
                "app.session_interface: set it before the application serves its first request"
            ) from late
        self.listen(app)


class _Known(NamedTuple):
    """What is known of an application.

    Attributes:
        interface: the one that it had with the last request.
        configured: what its configuration holds of the cookie.
        described: what the interface says of the cookie; None unless it has methods of its own for
            that, which may go by anything.
        terms: for its requests.
    """

    interface: Declared[Any]
    configured: tuple[Any, ...]
    described: tuple[Any, ...] | None
    terms: Terms[Any]


def dress(response: Response, closing: Closing) -> None:
    """Put on the headers of a response what has to be said about the session."""
    if closing.carried is not None:
        name, value = closing.carried
        response.headers.add(name, value)
        response.headers.setdefault("Cache-Control", UNSHARED)
    if closing.vary is None:
        return
    if not response.headers.getlist("Vary"):
        response.headers.add("Vary", closing.vary)
    elif "*" not in response.vary:
        response.vary.add(closing.vary)


def headers_for(answer: Headers, replaced: Headers) -> Headers:
    """Return the headers of an answer that takes the place of an application's response."""
    kept = [(name, value) for name, value in replaced if name.lower() not in _OF_THE_CONTENT]
    headers = Headers(kept)
    headers.update(answer)
    return headers


def _cookie(
    name: str,
    secure: bool,
    same_site: str | None,
    path: str,
    domain: str | None,
    partitioned: bool,
    http_only: bool,
) -> Cookie:
    """Return the cookie that an application's configuration describes."""
    try:
        return Cookie(
            name=name,
            secure=bool(secure),
            same_site=same_site.lower() if isinstance(same_site, str) else "lax",  # type: ignore[arg-type]  # checked there
            path=path,
            domain=domain or None,
            partitioned=bool(partitioned),
            http_only=bool(http_only),
        )
    except ConfigurationError as error:
        raise ConfigurationError(
            f"the SESSION_COOKIE_ options of the application: {error}"
        ) from None
