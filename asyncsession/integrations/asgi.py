"""Sessions for any ASGI application: Starlette, FastAPI, Litestar, or none of them.

When what happens to a request:

- It comes in: its session is loaded and put into `scope["session"]`. Without a cookie of ours that
  touches no Redis.
- The application begins its response: the session is saved if it was modified, and only then does
  the response leave, with the cookie if that has changed. A redirect never arrives before the
  session it relies on, and a save that fails can still replace the response.
- The response is under way (a stream, a background task): nothing is saved by itself any more;
  `await manager.save(session)` is the application's to call.

Which responses are saved for: those that the application sends through this middleware, whatever
their status. A page of an exception handler (in Starlette, those of `HTTPException` and of the
application's own exception classes) is the application's word, and failed logins must be countable.
An exception that nobody in the application turned into a response passes through here, nothing is
saved, and the 500 that a server or Starlette's `ServerErrorMiddleware` makes of it is made outside.

A WebSocket finds its session in the scope too. It never sets a cookie and saves nothing by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, NamedTuple, TypeAlias

from asyncsession.errors import (
    CommitOutcomeUnknown,
    SessionConflict,
    SessionGone,
    StoreUnavailable,
)
from asyncsession.integrations.cookies import Cookie, SameSite
from asyncsession.manager import SessionManager
from asyncsession.session import Session

__all__ = ["SessionMiddleware"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_Headers: TypeAlias = list[tuple[bytes, bytes]]


class SessionMiddleware:
    """Loads the session of each request, saves it before the response starts, keeps the cookie.

    Switched on by `app.add_middleware(SessionMiddleware, manager=manager)`, or by wrapping an
    application. The manager stays the application's: to open, to share, to close.

    The client gets 503 with `Retry-After` while the store is not available, and 409 where the
    session was changed by another request in a way that its merge policies refuse. That holds
    also where the application itself called the manager and let the exception pass. A session that
    ended meanwhile is no error: the response goes out and the cookie is cleared.

    A request with an id that was rotated away a moment ago (`session.is_stale`) is anonymous: its
    cookie is neither replaced nor cleared, since the browser has a newer one, and what it puts
    into its session is not saved, since nobody could ever load it.

    `manager.rotate` and `manager.destroy` take effect at once. Call them last: if an exception
    passes afterwards, there is no response of the application's to tell the browser with.

    Args:
        app: the application.
        manager: loads and saves.
        secure: False lets the cookie pass over plain HTTP, for development.
        cookie_name, same_site, path, domain, max_age: see
            `asyncsession.integrations.cookies.Cookie`.

    Raises:
        ConfigurationError: a cookie that browsers would refuse.
    """

    def __init__(
        self,
        app: ASGIApp,
        manager: SessionManager,
        *,
        secure: bool = True,
        cookie_name: str = "",
        same_site: SameSite = "lax",
        path: str = "/",
        domain: str | None = None,
        max_age: int | None = None,
    ) -> None:
        self._app = app
        self._manager = manager
        self._cookie = Cookie(cookie_name, secure, same_site, path, domain, max_age)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection.

        Raises:
            What the application raises, and what `load` and `save` of the manager raise other
            than the errors that are answered here; no response has been started then.
        """
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        sent_id = self._cookie.read(scope.get("headers", ()))
        try:
            session = await self._manager.load(sent_id)
        except StoreUnavailable:
            await _refuse(scope, receive, send)
            return
        scope["session"] = session
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(self._manager, self._cookie, sent_id, session, send)
        try:
            await self._app(scope, receive, exchange.send)
            exchange.check()
        except Exception as error:
            answer = _answer_to(exchange.failure or error)
            if answer is None or exchange.is_started:
                raise
            await exchange.reply(answer)


class _Exchange:
    """One request's session on its way into the response.

    Attributes:
        is_started: the response has begun to leave.
        failure: what the commit raised; nothing of the application's response leaves after that.
    """

    def __init__(
        self,
        manager: SessionManager,
        cookie: Cookie,
        sent_id: str | None,
        session: Session,
        send: Send,
    ) -> None:
        self.is_started = False
        self.failure: Exception | None = None
        self._manager = manager
        self._cookie = cookie
        self._sent_id = sent_id
        self._session = session
        self._send = send

    async def send(self, message: Message) -> None:
        """Pass on a message of the application; before the first of a response, commit.

        Raises:
            What the commit raised, now and for every later message: the application stops, as it
            does for a client that has left, and its background tasks do not run.
        """
        self.check()
        if message["type"] == "http.response.start" and not self.is_started:
            try:
                await self._commit()
            except Exception as error:
                self.failure = error
                raise
            message = self._dressed(message)
            self.is_started = True
        await self._send(message)

    def check(self) -> None:
        """Raise what the commit raised, in case the application has swallowed it."""
        if self.failure is not None:
            raise self.failure

    async def reply(self, answer: _Answer) -> None:
        """Send a response of our own. It takes along what the application did to the cookie."""
        start, body = answer.messages()
        self.is_started = True
        await self._send(self._dressed(start))
        await self._send(body)

    async def _commit(self) -> None:
        session = self._session
        is_unreachable = session.is_stale and session.is_new
        if is_unreachable or not session.modified:
            return
        with contextlib.suppress(SessionGone):  # `session.is_destroyed` says so from then on
            await self._manager.save(session)

    def _dressed(self, start: Message) -> Message:
        """Return the message that starts a response, with the headers that are ours to add."""
        headers: _Headers = list(start.get("headers", ()))
        set_cookie = self._set_cookie()
        is_touched = self._session.guards() != frozenset()
        if set_cookie is not None or self._sent_id is not None or is_touched:
            headers = _varying(headers)
        if set_cookie is not None:
            headers.append((b"set-cookie", set_cookie.encode("ascii")))
            if not any(name.lower() == b"cache-control" for name, _ in headers):
                # A shared cache that hands out one client's cookie logs others in (CVE-2023-30861).
                headers.append((b"cache-control", b"private, no-cache"))
        return {**start, "headers": headers}

    def _set_cookie(self) -> str | None:
        session = self._session
        if session.is_stale:
            return None
        if session.is_new or session.is_destroyed:
            return None if self._sent_id is None else self._cookie.clear()
        return None if session.id == self._sent_id else self._cookie.issue(session.id)


class _Answer(NamedTuple):
    """A response of our own."""

    status: int
    text: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def messages(self, prefix: str = "") -> tuple[Message, Message]:
        """Return the start and the body of the response."""
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(self.text)),
            (b"cache-control", b"no-store"),
            *self.headers,
        ]
        start = {"type": f"{prefix}http.response.start", "status": self.status, "headers": headers}
        return start, {"type": f"{prefix}http.response.body", "body": self.text}


_CONFLICT = _Answer(409, b"Another request changed the session at the same time. Try again.\n")
_UNAVAILABLE = _Answer(
    503, b"The session store is not available. Try again.\n", ((b"retry-after", b"1"),)
)
_TRY_AGAIN_LATER = 1013  # of IANA's WebSocket close codes


def _answer_to(error: Exception) -> _Answer | None:
    match error:
        case SessionConflict():
            return _CONFLICT
        case StoreUnavailable() | CommitOutcomeUnknown():
            return _UNAVAILABLE
    return None


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Tell a client that its session cannot be loaded."""
    prefix = ""
    if scope["type"] == "websocket":
        await receive()  # its connect; only that may be answered
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER})
            return
        prefix = "websocket."
    for message in _UNAVAILABLE.messages(prefix):
        await send(message)


def _varying(headers: Iterable[tuple[bytes, bytes]]) -> _Headers:
    """Return headers that say that the response depends on the Cookie header."""
    others, fields = [], []
    for name, value in headers:
        if name.lower() == b"vary":
            fields += [field.strip() for field in value.split(b",") if field.strip()]
        else:
            others.append((name, value))
    if not {b"cookie", b"*"} & {field.lower() for field in fields}:
        fields.append(b"Cookie")
    return [*others, (b"vary", b", ".join(fields))]
