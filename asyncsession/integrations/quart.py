"""Sessions for Quart, behind its own session interface: the twin of the one for Flask.

    app.session_interface = SessionInterface(SessionManager("redis://localhost:6379/0"))

What is said at `asyncsession.integrations.flask` holds here, with two differences. `quart.session`
is read without `await`, so a session is loaded as its request comes in, if that brings an id; if
that fails, the first look at the session says so. And there are WebSockets: their session is loaded
when the client connects, and saved by nobody but the application. They are closed when their
session ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import quart
from quart.sessions import SessionInterface as QuartSessionInterface
from quart.typing import ResponseTypes
from quart.wrappers import BaseRequestWebsocket, Websocket

from asyncsession.errors import (
    ConfigurationError,
    InvalidSessionData,
    SessionGone,
    StoreUnavailable,
)
from asyncsession.integrations.answers import answer_to, note
from asyncsession.integrations.exchange import Exchange
from asyncsession.integrations.pallets import Declared, dress, headers_for
from asyncsession.integrations.terms import Outage, ReadThrough
from asyncsession.integrations.watch import SESSION_ENDED, check_interval, watch
from asyncsession.integrations.web_session import (
    Principal,
    Visit,
    WebSession,
    flask_login_user,
)
from asyncsession.manager import SessionManager
from asyncsession.session import Session

__all__ = ["SessionInterface", "current_session", "flask_login_user"]

_Visit: TypeAlias = Visit[Exchange]

_log = logging.getLogger("asyncsession")


def current_session() -> Session:
    """Return the session of the request or WebSocket: what `quart.session` stands for.

    Raises:
        ConfigurationError: the application has another session interface.
        RuntimeError: there is no request.
    """
    visit = _current_visit()
    if visit is None:
        raise ConfigurationError(
            "the application has no sessions of ours: app.session_interface = "
            "asyncsession.integrations.quart.SessionInterface(manager)"
        )
    return visit.session


class SessionInterface(Declared[SessionManager], QuartSessionInterface):
    """Loads the session of each request, and saves it before the response leaves.

    Switched on by `app.session_interface = SessionInterface(manager)`, before the first request.
    The cookie is the one that Quart's configuration describes. The options are described at
    `asyncsession.integrations.pallets.Declared`, but for this one:

    Args:
        watch: seconds between two looks whether the session behind an open WebSocket has been
            ended elsewhere; the WebSocket is closed with code 1008 then. None to look never.
    """

    kind = SessionManager
    framework = QuartSessionInterface

    def __init__(
        self,
        manager: SessionManager,
        *,
        outage: Outage = "error",
        keep_on_exception: bool = False,
        on_error: Callable[[Any, Exception], Any] | None = None,
        principal: Principal | None = flask_login_user,
        read_through: ReadThrough | None = None,
        watch: float | None = 30.0,
    ) -> None:
        super().__init__(
            manager,
            outage=outage,
            keep_on_exception=keep_on_exception,
            on_error=on_error,
            principal=principal,
            read_through=read_through,
        )
        check_interval(watch)
        self._watch = watch

    async def open_session(self, app: quart.Quart, request: BaseRequestWebsocket) -> WebSession:
        """Return the session of a request; an error of loading it is raised when it is used.

        Raises:
            ConfigurationError: the application's options cannot be meant.
        """
        exchange = Exchange(self.terms_of(app), request.scope["headers"], request.method)
        failure: Exception | None = None
        try:
            loaded = await exchange.load()
        except (StoreUnavailable, InvalidSessionData) as error:
            failure = error
        refreshes = app.config["SESSION_REFRESH_EACH_REQUEST"]
        visit = Visit(exchange, partial(_raise, failure), self.principal, refreshes)
        if failure is None:
            visit.begin(loaded)
            if isinstance(request, Websocket) and self._watch is not None:
                _attend(request, visit, self._watch)
        return visit.session

    async def save_session(
        self, app: quart.Quart, session: Any, response: ResponseTypes | None
    ) -> None:
        """Save what has changed, and put the headers on the response; or make it the answer.

        Nothing is saved for a WebSocket.

        Raises:
            InvalidSessionValue, SessionTooLarge: what cannot be kept.
        """
        is_ours = isinstance(session, WebSession) and not session.is_ghost
        if not is_ours or response is None or quart.has_websocket_context():
            return
        visit: _Visit = session.visit
        answer = None
        if visit.failure is None:
            answer = await self._commit(app, visit)
        if visit.is_to_be_answered:
            answer = await self._made(app, visit)
        if answer is not None:
            await _replace(response, answer)
        dress(response, visit.closing(app))

    async def answer(self, error: Exception) -> ResponseTypes | None:
        """Answer an error that a view raises. It is registered as an error handler."""
        visit = _current_visit()
        if visit is None:
            raise error
        visit.fail(error)
        if quart.has_websocket_context() and isinstance(error, SessionGone):
            await _cut(quart.websocket._get_current_object())  # type: ignore[attr-defined]  # noqa: SLF001
            return None
        return await self._made(quart.current_app, visit)

    def listen(self, app: quart.Quart) -> None:
        """Have an application tell of exceptions that end a request."""
        quart.got_request_exception.connect(self._note_exception, app)

    async def _note_exception(self, _app: quart.Quart, exception: Exception, **_more: Any) -> None:
        visit = _current_visit()
        if visit is None:
            return
        visit.has_passed = True
        if answer_to(exception) is None:
            await visit.exchange.perform(visit.passing(exception))
        elif exception is not visit.failure:
            visit.fail(exception)

    async def _commit(self, app: quart.Quart, visit: _Visit) -> ResponseTypes | None:
        """Save, and return what takes the place of the response; None if it may leave."""
        try:
            gone = await visit.exchange.perform(visit.committing())
        except Exception as error:
            visit.fail(error)
            if answer_to(error) is None:
                raise
            return await self._made(app, visit)
        return None if gone is None else await self._overridden(app, gone)

    async def _made(self, app: quart.Quart, visit: _Visit) -> ResponseTypes:
        """Return the answer to the error of a request."""
        error = visit.failure
        assert error is not None
        visit.is_answered = True
        note(error)
        answer = answer_to(error)
        assert answer is not None
        made = await self._overridden(app, error)
        if made is None:
            made = await app.make_response((answer.text, answer.status, answer.headers()))
        return made

    async def _overridden(self, app: quart.Quart, error: Exception) -> ResponseTypes | None:
        if self.on_error is None:
            return None
        connection = quart.websocket if quart.has_websocket_context() else quart.request
        result = self.on_error(connection, error)
        result = await result if inspect.isawaitable(result) else result
        return None if result is None else await app.make_response(result)


def _raise(failure: Exception | None) -> Session:
    assert failure is not None
    raise failure


def _current_visit() -> _Visit | None:
    """Return the request's, None if its session is another's or could not be opened."""
    session = quart.session._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
    return session.visit if isinstance(session, WebSession) else None


async def _replace(response: Any, answer: Any) -> None:
    """Make a response another one, as far as it speaks of its content."""
    data = answer.get_data(
        as_text=False
    )  # awaited for a response of Quart's, and not of Werkzeug's
    data = await data if inspect.isawaitable(data) else data
    response.status = answer.status
    response.headers = headers_for(answer.headers, response.headers)
    response.set_data(data)


def _attend(websocket: Websocket, visit: _Visit, every: float) -> None:
    """Watch over the session of a WebSocket, until the task that serves it has ended."""
    serving = asyncio.current_task()
    assert serving is not None
    watcher = asyncio.create_task(_watch(websocket, visit, every))
    serving.add_done_callback(lambda _serving: watcher.cancel())
    watcher.add_done_callback(_tell)


async def _watch(websocket: Websocket, visit: _Visit, every: float) -> None:
    await watch(visit.exchange.terms.manager, visit.session, every)
    await _cut(websocket)


async def _cut(websocket: Websocket) -> None:
    """Close a WebSocket for the reason that its session has ended, unless it is closed."""
    with contextlib.suppress(RuntimeError):  # of Quart: the application was faster
        await websocket.close(SESSION_ENDED, "the session has ended")


def _tell(watcher: asyncio.Task[None]) -> None:
    if not watcher.cancelled() and (error := watcher.exception()):
        _log.error("the watch over a WebSocket's session failed", exc_info=error)
