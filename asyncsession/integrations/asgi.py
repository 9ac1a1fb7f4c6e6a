"""Sessions for any ASGI application: Starlette, FastAPI, Litestar, or none of them.

When what happens to a request:

- It comes in: its session is loaded and put into `scope["session"]`. Without a cookie of ours that
  touches no Redis. With `lazy` it is loaded when the application calls `load_session`.
- The application begins its response: the session is saved if it was modified, and only then does
  the response leave, with the cookie if that has changed. A redirect never arrives before the
  session it relies on, and a save that fails can still replace the response.
- The response is under way (a stream, a background task): nothing is saved by itself any more;
  `await manager.save(session)` is the application's to call.

Which responses are saved for: those that the application sends through this middleware, whatever
their status. A page of an exception handler (in Starlette, those of `HTTPException` and of the
application's own exception classes) is the application's word, and failed logins must be countable.
An exception that nobody in the application turned into a response passes through here, nothing is
saved unless `keep_on_exception` says so, and the 500 that a server or Starlette's
`ServerErrorMiddleware` makes of it is made outside. (Put around a whole Starlette application,
instead of into it by `add_middleware`, this module cannot tell that page from the application's.)
A request that is cancelled saves nothing from then on; a save that is under way takes effect as a
whole, or not at all.

A WebSocket finds its session in the scope too. It never sets a cookie and saves nothing by itself.
It is closed when its session ends.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias, Unpack

from asyncsession.errors import ConfigurationError, SessionGone
from asyncsession.integrations.answers import answer_to, note
from asyncsession.integrations.cookies import CookieOptions
from asyncsession.integrations.exchange import Exchange, Outage, ReadThrough, Terms
from asyncsession.integrations.headers import Header, carrier_of
from asyncsession.integrations.messages import (
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
    dressed,
    responding,
)
from asyncsession.integrations.watch import check_interval
from asyncsession.integrations.websocket import Line, SessionEnded
from asyncsession.manager import SessionManager
from asyncsession.session import Session

__all__ = ["OnError", "SessionMiddleware", "load_session"]

OnError: TypeAlias = Callable[[Scope, Exception], ASGIApp | Awaitable[ASGIApp | None] | None]
"""Answers an error in an application's own way: see `SessionMiddleware`."""

_EXCHANGES = "asyncsession"  # in the scope: those of the middleware around, the innermost last
_TRY_AGAIN_LATER = 1013  # of IANA's WebSocket close codes


class _Connection(Protocol):
    @property
    def scope(self) -> Scope: ...


async def load_session(connection: _Connection | Scope) -> Session:
    """Return the session of a request or WebSocket; load it if that has not been done yet.

    With a middleware that is not lazy, this is `scope["session"]`; with one that is, that is there
    from the first call on.

    Args:
        connection: Starlette's, or the scope of any ASGI application.

    Raises:
        ConfigurationError: there is no `SessionMiddleware` around.
        StoreUnavailable: Redis could not be reached. Let it pass: the middleware answers it.
        InvalidSessionData: what is stored cannot be read; likewise.
    """
    scope = connection.scope if hasattr(connection, "scope") else connection
    exchanges: tuple[Exchange, ...] = scope.get(_EXCHANGES, ())
    if not exchanges:
        raise ConfigurationError(
            "there is no session in the request: switch on the middleware with "
            "app.add_middleware(SessionMiddleware, manager=manager)"
        )
    exchange = exchanges[-1]
    exchange.is_asked = True
    session = exchange.session
    if session is None:
        scope["session"] = session = await exchange.load()
    return session


class SessionMiddleware:
    """Loads the session of each request, saves it before the response starts, keeps the cookie.

    Switched on by `app.add_middleware(SessionMiddleware, manager=manager)`, or by wrapping an
    application. The manager stays the application's: to open, to share, to close.

    The client gets 503 with `Retry-After` while the store is not available, 409 where the session
    was changed by another request in a way that its merge policies refuse, and 403 where a login
    would be one session too many. That holds also where the application itself called the manager
    and let the exception pass. A session that cannot be read is answered with 500, and the cookie
    is cleared, so that the client is not refused for ever (spring-session#1939); what is stored is
    left as it is.

    A session that ended meanwhile is no error when it is saved for the response: that goes out,
    and clears the cookie if the request was a short one. After a long one the browser may have
    another session's cookie; if not, the next request finds nothing, and clears it. Where the
    application saves it itself and lets `SessionGone` pass, the client gets 409.

    A request with an id that was rotated away a moment ago (`session.is_stale`) is anonymous: its
    cookie is neither replaced nor cleared, since the browser has a newer one, and what it puts
    into its session is not saved, since nobody could ever load it. If it logs in (sets
    `session.principal`) it gets a session of its own.

    `manager.rotate` and `manager.destroy` take effect at once. Call them last: if an exception
    passes afterwards, there is no response of the application's to tell the browser with.

    Around and inside one another: of the same manager and carrier, they share one session, and
    the outermost one's options count; of others, each has its own, and `scope["session"]` is the
    innermost one's.

    Args:
        app: the application.
        manager: loads and saves.
        header: the id comes in a header instead of a cookie, for clients that are no browsers.
        lazy: load nothing until the application calls `load_session` (in FastAPI, until a
            `CurrentSession` is asked for). A request that never does so touches no Redis.
        outage: what becomes of a request whose session cannot be loaded since the store is down:
            `"error"` answers 503; `"anonymous"` goes on with an empty session, which is not saved,
            and leaves the client's id alone. A new session of a client without one is not saved
            either then. Logging in and out are answered with 503 all the same.
        keep_on_exception: save a stored session also if an exception passes.
        on_error: called as `on_error(scope, error)` with each error that is answered here, which
            are `SessionConflict`, `SessionGone`, `TooManySessions`, `StoreUnavailable`,
            `CommitOutcomeUnknown`, `InvalidSessionData`; returns an ASGI application, such as a
            response of Starlette's, or None for the answer that is the default; may be a coroutine
            function. Its response gets the cookie's headers; nothing is saved for it.
        read_through: another library's store, whose sessions are taken over; see
            `asyncsession.migration`.
        watch: seconds between two looks whether the session of an open WebSocket still lives;
            None to look never. Looking does not put off the idle timeout.
        cookie: `cookie_name`, `secure`, `same_site`, `path`, `domain`, `max_age`, `partitioned`:
            see `asyncsession.integrations.cookies.Cookie`. `secure=False` lets the cookie pass
            over plain HTTP, for development.

    Raises:
        ConfigurationError: what cannot work, such as a cookie that browsers would refuse. Starlette
            builds its middleware with the first call, which is that of the server's start.
    """

    def __init__(
        self,
        app: ASGIApp,
        manager: SessionManager,
        *,
        header: Header | None = None,
        lazy: bool = False,
        outage: Outage = "error",
        keep_on_exception: bool = False,
        on_error: OnError | None = None,
        read_through: ReadThrough | None = None,
        watch: float | None = 30.0,
        **cookie: Unpack[CookieOptions],
    ) -> None:
        carrier = carrier_of(header, cookie)
        self._terms = Terms(manager, carrier, outage, keep_on_exception, read_through)
        self._terms.check()
        check_interval(watch)
        if on_error is not None and not callable(on_error):
            raise ConfigurationError("on_error: a function, called as on_error(scope, error)")
        self._app = app
        self._lazy = lazy
        self._on_error = on_error
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection.

        Raises:
            What the application raises, and what `load` and `save` of the manager raise other
            than the errors that are answered here; no response has been started then.
        """
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        for exchange in scope.get(_EXCHANGES, ()):
            if exchange.terms[:2] == self._terms[:2]:
                await self._inside(exchange, scope, receive, send)
                return
        exchange = Exchange(self._terms, scope.get("headers", ()), scope.get("method", "GET"))
        if kind == "http":
            await self._respond(exchange, scope, receive, send)
        else:
            await self._converse(exchange, scope, receive, send)

    async def _inside(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application with the session of `exchange` in its scope."""
        around, before = scope.get(_EXCHANGES, ()), scope.get("session")
        scope[_EXCHANGES] = (*around, exchange)
        try:
            session = exchange.session
            if session is None and not self._lazy:
                session = await exchange.load()
            if session is not None:
                scope["session"] = session
            elif around:
                scope.pop("session", None)
            await self._app(scope, receive, send)
        finally:
            scope[_EXCHANGES] = around
            if before is not None and around:
                scope["session"] = before
            elif around and around[-1] is not exchange:
                scope.pop("session", None)  # the one around is lazy, and nobody has asked yet

    async def _respond(
        self, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> None:
        response = _Response(exchange, scope, send, self._on_error)
        try:
            await self._inside(exchange, scope, receive, response.send)
            if response.failure is not None:
                raise response.failure  # the application has swallowed it
        except Exception as error:
            if response.is_started:
                raise
            exchange.note(response.failure or error)
            app = response.override or await self._answer(scope, response.failure or error)
            if app is None:
                if response.failure is not None:  # frameworks wrap what they did not expect
                    raise response.failure from None
                await exchange.fail()
                raise
            await app(scope, receive, response.reply)

    async def _converse(
        self, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> None:
        line = Line(receive, send)
        try:
            async with line.watched(exchange, self._watch):
                await self._inside(exchange, scope, line.receive, line.send)
        except SessionEnded:
            return
        except Exception as error:
            if line.is_answered and isinstance(error, SessionGone):
                await line.cut()
                return
            app = None if line.is_answered else await self._answer(scope, error)
            if app is None:
                raise
            if not line.is_asked:
                await receive()  # its connect; only that may be answered
            if "websocket.http.response" in (scope.get("extensions") or {}):
                await app(scope, receive, _Response(exchange, scope, send, None).reply)
            else:
                await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER})

    async def _answer(self, scope: Scope, error: Exception) -> ASGIApp | None:
        """Return what answers an error; None if that is not ours to do."""
        answer = answer_to(error)
        if answer is None:
            return None
        note(error)
        return await _overridden(self._on_error, scope, error) or responding(answer)


class _Response:
    """The response of one request, on its way from the application to the server.

    Attributes:
        is_started: it has begun to leave.
        failure: what the commit raised; nothing of the application's response leaves after that.
        override: what is sent instead, if that is known already.
    """

    __slots__ = ("_exchange", "_on_error", "_scope", "_send", "failure", "is_started", "override")

    def __init__(
        self, exchange: Exchange, scope: Scope, send: Send, on_error: OnError | None
    ) -> None:
        self.is_started = False
        self.failure: Exception | None = None
        self.override: ASGIApp | None = None
        self._exchange = exchange
        self._scope = scope
        self._send = send
        self._on_error = on_error

    async def send(self, message: Message) -> None:
        """Pass on a message of the application; before the first of a response, commit.

        Raises:
            What the commit raised, now and for every later message: the application stops, as it
            does for a client that has left, and its background tasks do not run.
        """
        if self.failure is not None:
            raise self.failure
        if not self.is_started and message["type"] == "http.response.start":
            try:
                gone = await self._exchange.commit()
                if gone is not None:
                    self.override = await _overridden(self._on_error, self._scope, gone)
                    if self.override is not None:
                        raise gone
            except Exception as error:
                self.failure = error
                raise
            message = dressed(message, self._exchange.closing())
            self.is_started = True
        await self._send(message)

    async def reply(self, message: Message) -> None:
        """Pass on a message of an answer to an error. It takes along what is new of the cookie."""
        if message["type"].endswith("http.response.start"):
            message = dressed(message, self._exchange.closing())
            self.is_started = True
        await self._send(message)


async def _overridden(on_error: OnError | None, scope: Scope, error: Exception) -> ASGIApp | None:
    """Return how the application answers an error itself; None if it does not."""
    if on_error is None:
        return None
    answer = on_error(scope, error)
    app = await answer if inspect.isawaitable(answer) else answer
    if app is not None and not callable(app):
        raise ConfigurationError(f"on_error: returns a response, or None, not {type(app).__name__}")
    return app
