"""Sessions for aiohttp's web server.

    setup(app, manager)

    async def page(request: web.Request) -> web.Response:
        session = await get_session(request)
        session["views"] = session.get("views", 0) + 1
        return web.Response(text=str(session["views"]))

When what happens to a request:

- A handler asks for the session: it is loaded. A request that nobody asks about touches no Redis,
  whatever cookie it brings.
- The handler returns a response, or raises one such as `web.HTTPFound`: the session is saved if it
  was modified, and only then does the response leave, with the cookie if that has changed.
- The handler prepares a response itself (a stream, a WebSocket): the session is saved then, before
  the headers leave. Afterwards nothing is saved by itself; `await manager.save(session)` is the
  application's to call.
- Any other exception discards the changes.

Who commits follows from what aiohttp does with errors. For a response that a handler returns, the
signal `on_response_prepare` is sent after all middlewares, and an exception of its costs the
connection: the middleware commits, and can still replace the response. For one that the handler
prepares, the signal is the last moment before the headers leave, and its exception is one of the
handler's: the signal commits. It also puts the headers on the pages that outer middlewares and the
server make instead of the application's response.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, Unpack

from aiohttp import web
from aiohttp.http import StreamWriter
from aiohttp.typedefs import Handler

from asyncsession.errors import ConfigurationError, SessionGone
from asyncsession.integrations.aiohttp_visit import Visit, cut, dress, is_up, response_of
from asyncsession.integrations.answers import answer_to, note
from asyncsession.integrations.cookies import CookieOptions
from asyncsession.integrations.exchange import Exchange, Outage, ReadThrough, Terms
from asyncsession.integrations.headers import Header, carrier_of
from asyncsession.integrations.watch import check_interval
from asyncsession.manager import SessionManager
from asyncsession.session import Session

__all__ = ["OnError", "get_session", "setup"]

OnError: TypeAlias = Callable[
    [web.Request, Exception], Awaitable[web.StreamResponse | None] | web.StreamResponse | None
]
"""Answers an error in an application's own way: see `setup`."""


def setup(
    app: web.Application,
    manager: SessionManager,
    *,
    header: Header | None = None,
    outage: Outage = "error",
    keep_on_exception: bool = False,
    on_error: OnError | None = None,
    read_through: ReadThrough | None = None,
    watch: float | None = 30.0,
    **cookie: Unpack[CookieOptions],
) -> None:
    """Give the handlers of an application sessions; they get theirs by `get_session`.

    Call it before middlewares that use sessions are added, and before the application is started
    or added to another one. The handlers of sub-applications have the session as well. One that is
    set up itself, too, shares the session if manager and cookie are the same; else it has sessions
    of its own beside. The manager stays the application's: to open, to share, to close.

    What the client gets where the session stands in the way is told in
    `asyncsession.integrations.asgi.SessionMiddleware`, and is the same here.

    Args:
        app: the application.
        manager: loads and saves.
        header: takes the id from a header of an API client's instead of a cookie.
        outage: what becomes of a request whose session cannot be loaded since the store is down:
            `"error"` (503), or `"anonymous"`: it goes on with an empty session, which is not saved.
        keep_on_exception: save the changes of a stored session also if the handler raises what is
            no response.
        on_error: called as `on_error(request, error)` with each error that is answered here;
            returns a response, or None for the answer that is the default; may be a coroutine
            function. Nothing is saved for its response.
        read_through: another library's store, whose sessions are taken over; see
            `asyncsession.migration`.
        watch: seconds between two looks whether the session behind an open WebSocket has been
            ended elsewhere; the WebSocket is closed with code 1008 then. None to look never.
        cookie: `secure=False` lets it pass over plain HTTP, for development; the others are
            described at `asyncsession.integrations.cookies.Cookie`.

    Raises:
        ConfigurationError: a second call for one application, or one too late; options that cannot
            be meant, such as a cookie that browsers would refuse.
    """
    if _SETUP in app:
        raise ConfigurationError("setup() was called twice for one application")
    if app.pre_frozen:
        raise ConfigurationError(
            "setup() comes too late: call it before the application is started or added to another"
        )
    terms = Terms(manager, carrier_of(header, cookie), outage, keep_on_exception, read_through)
    terms.check()
    check_interval(watch)
    if on_error is not None and not callable(on_error):
        raise ConfigurationError("on_error: a function, called as on_error(request, error)")
    sessions = app[_SETUP] = _Sessions(terms, on_error, watch)
    app.middlewares.append(sessions.serve)
    app.on_response_prepare.append(sessions.prepare)


async def get_session(request: web.Request) -> Session:
    """Return the session of a request; it is loaded when it is first asked for.

    Raises:
        ConfigurationError: the application of the handler is not set up.
        StoreUnavailable: the store is down. Let it pass: the client gets 503.
        InvalidSessionData: what is stored cannot be read. Let it pass: the client gets 500 once,
            and is anonymous afterwards.
    """
    visit: Visit | None = request.get(_CURRENT)
    if visit is None:
        raise ConfigurationError(
            "there is no session in the request: call "
            "asyncsession.integrations.aiohttp.setup(app, manager), and add middlewares that ask "
            "for the session after it"
        )
    return await visit.load()


def _request_key(name: str) -> Any:
    # Versions before 3.14 know strings only, and later ones warn of them.
    return web.RequestKey(name, object) if hasattr(web, "RequestKey") else f"asyncsession-{name}"


_CURRENT = _request_key("current")
"""In the request: the `Visit` to the innermost application."""
_VISITS = _request_key("visits")
"""In the request: all of them, by their `_Sessions`."""


class _Sessions:
    """The sessions of one application, at its two places: around its handlers, before its headers.

    Args:
        terms: what the application has declared.
        on_error: see `setup`.
        every: see `setup`, where it is called `watch`.
    """

    def __init__(
        self, terms: Terms[SessionManager], on_error: OnError | None, every: float | None
    ) -> None:
        self._terms = terms
        self._on_error = on_error
        self._every = every

    @web.middleware
    async def serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Serve a request, and commit its session before the response is handed on."""
        outer: Visit | None = request.get(_CURRENT)
        if outer is not None and (shared := outer.visit_on(self._terms)) is not None:
            request[_CURRENT] = shared
            try:
                return await handler(request)
            finally:
                request[_CURRENT] = outer
        visit = Visit(
            Exchange(self._terms, request.raw_headers, request.method), outer, self._every
        )
        if outer is None:
            request[_VISITS] = {}
        request[_VISITS][self] = request[_CURRENT] = visit
        try:
            return await self._serve(request, visit, handler)
        finally:
            visit.is_open = False
            if outer is not None:
                request[_CURRENT] = outer
            await visit.stop()

    async def prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Commit before the headers of a response that a handler prepares; put on all what is due.

        Raises:
            What the commit raised: the handler ends, as for a client that has left.
        """
        visit: Visit | None = request.get(_VISITS, {}).get(self)
        if visit is None:
            return
        if visit.is_open and not visit.is_started:
            try:
                await self._commit(request, visit)
            except Exception:
                visit.refused = response
                _reset(request)
                raise
            visit.is_started = True
            if isinstance(response, web.WebSocketResponse):
                visit.attend(response)
        dress(response.headers, visit.exchange.closing())

    async def _serve(
        self, request: web.Request, visit: Visit, handler: Handler
    ) -> web.StreamResponse:
        raised: web.HTTPException | None = None
        try:
            try:
                response = await handler(request)
            except web.HTTPException as exception:
                response = raised = exception
            if visit.failure is not None and visit.refused is response:
                raise visit.failure  # the handler has swallowed it
            if not visit.is_started:
                await self._commit(request, visit)
        except Exception as error:
            answer = await self._answer(request, visit, error)
            if answer is None:
                raise
            response, raised = answer, None
        if isinstance(response, web.StreamResponse) and not response.prepared:
            # The signal comes with another request where a middleware outside has cloned it.
            dress(response.headers, visit.exchange.closing())
        if raised is not None:
            raise raised
        return response

    async def _commit(self, request: web.Request, visit: Visit) -> None:
        try:
            gone = await visit.exchange.commit()
            if gone is not None:
                visit.override = await self._overridden(request, gone)
                if visit.override is not None:
                    raise gone
        except Exception as error:
            visit.failure = error
            raise

    async def _answer(
        self, request: web.Request, visit: Visit, error: Exception
    ) -> web.StreamResponse | None:
        """Return what answers an error; None if that is not ours to do."""
        if visit.override is not None:
            return visit.override
        visit.exchange.note(error)
        answer = answer_to(error)
        if answer is None:
            if error is not visit.failure:
                await visit.exchange.fail()
            return None
        websocket = visit.websocket
        if websocket is not None and is_up(websocket) and isinstance(error, SessionGone):
            await cut(websocket)
            return websocket
        if visit.is_started or request.writer.output_size:
            return None
        note(error)
        return await self._overridden(request, error) or response_of(answer)

    async def _overridden(
        self, request: web.Request, error: Exception
    ) -> web.StreamResponse | None:
        if self._on_error is None:
            return None
        result = self._on_error(request, error)
        response = await result if inspect.isawaitable(result) else result
        if response is not None and not isinstance(response, web.StreamResponse):
            kind = type(response).__name__
            raise ConfigurationError(f"on_error: returns a response, or None, not {kind}")
        return response


_SETUP = web.AppKey("asyncsession", _Sessions)


def _reset(request: web.Request) -> None:
    """Make the writer of a request forget the response that it was set up for.

    aiohttp does so itself only where the next response says otherwise; the page that reports the
    error would be sent in chunks, and compressed, without a header that says so.
    """
    writer = request.writer
    assert isinstance(writer, StreamWriter)
    writer.chunked = False
    writer._compress = None  # noqa: SLF001
