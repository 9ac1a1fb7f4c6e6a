"""Sessions for Flask, behind its own session interface.

    app.session_interface = SessionInterface(SyncSessionManager("redis://localhost:6379/0"))

`flask.session` is a `Session` of ours then, with the attributes that Flask's sessions have.

When what happens to a request:

- Something looks at `flask.session`: it is loaded. A request in which nothing does touches no
  Redis, whatever cookie it brings.
- The application has made its response, and `after_request` functions have seen it: the session is
  saved if it was modified, and only then does the response leave, with the cookie if that has
  changed. If saving fails, the answer to that takes the response's place.
- The response is under way (a stream): nothing is saved by itself any more;
  `manager.save(current_session())` is the application's to call.

Who answers errors follows from what Flask does with them. One that a view raises, such as when the
session cannot be loaded, goes to the error handlers, where ours is registered unless the
application has its own. One that comes with the save is beyond them: Flask saves when they have had
their turn. There the content of the response is replaced; headers that do not speak of the content,
such as those of CORS, stay. An exception that has no handler of its class discards the changes
until then, unless `keep_on_exception` says otherwise; those of a handler for status 500 are saved.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import flask
from flask.sessions import SessionInterface as FlaskSessionInterface
from flask.sessions import SessionMixin

from asyncsession.errors import ConfigurationError
from asyncsession.integrations.answers import answer_to, note
from asyncsession.integrations.blocking import BlockingExchange
from asyncsession.integrations.pallets import (
    Declared,
    dress,
    headers_for,
)
from asyncsession.integrations.web_session import Visit, WebSession, flask_login_user
from asyncsession.session import Session
from asyncsession.sync import SyncSessionManager

__all__ = ["SessionInterface", "current_session", "flask_login_user"]


def current_session() -> Session:
    """Return the session of the request: what `flask.session` stands for, by its own type.

    Raises:
        ConfigurationError: the application has another session interface.
        RuntimeError: there is no request.
    """
    visit = _current_visit()
    if visit is None:
        raise ConfigurationError(
            "the application has no sessions of ours: app.session_interface = "
            "asyncsession.integrations.flask.SessionInterface(manager)"
        )
    return visit.session


_Visit: TypeAlias = Visit[BlockingExchange]


class SessionInterface(Declared[SyncSessionManager], FlaskSessionInterface):
    """Loads the session of a request when it is first used, and saves it before the response.

    Switched on by `app.session_interface = SessionInterface(manager)`, before the first request.
    Several applications may share one. The cookie is the one that Flask's configuration describes.
    The options are described at `asyncsession.integrations.pallets.Declared`.
    """

    kind = SyncSessionManager
    framework = FlaskSessionInterface

    def open_session(self, app: flask.Flask, request: flask.Request) -> WebSession:
        """Return the session of a request; nothing is loaded yet.

        Raises:
            ConfigurationError: the application's options cannot be meant.
        """
        terms = self.terms_of(app)
        sent = request.environ.get("HTTP_COOKIE", "").encode("latin-1", "replace")
        exchange = BlockingExchange(terms, ((b"cookie", sent),), request.method)
        refreshes = app.config["SESSION_REFRESH_EACH_REQUEST"]
        return Visit(exchange, exchange.load, self.principal, refreshes).session

    def save_session(
        self, app: flask.Flask, session: SessionMixin, response: flask.Response
    ) -> None:
        """Save what has changed, and put the headers on the response; or make it the answer.

        Raises:
            InvalidSessionValue, SessionTooLarge: what cannot be kept.
        """
        if not isinstance(session, WebSession) or session.is_ghost:
            return  # it could not be opened, or nobody has used it
        visit: _Visit = session.visit
        answer = None
        if visit.failure is None:
            answer = self._commit(app, visit)
        if visit.is_to_be_answered:
            answer = self._made(app, visit)
        if answer is not None:
            _replace(response, answer)
        dress(response, visit.closing(app))

    def answer(self, error: Exception) -> flask.Response:
        """Answer an error that a view raises. It is registered as an error handler."""
        visit = _current_visit()
        if visit is None:
            raise error
        visit.fail(error)
        return self._made(flask.current_app, visit)

    def listen(self, app: flask.Flask) -> None:
        """Have an application tell of exceptions that end a request."""
        flask.got_request_exception.connect(self._note_exception, app)

    def _note_exception(self, _app: flask.Flask, exception: Exception, **_more: Any) -> None:
        visit = _current_visit()
        if visit is None:
            return
        visit.has_passed = True
        if answer_to(exception) is None:
            visit.exchange.perform(visit.passing(exception))
        elif exception is not visit.failure:
            visit.fail(exception)

    def _commit(self, app: flask.Flask, visit: _Visit) -> flask.Response | None:
        """Save, and return what takes the place of the response; None if it may leave."""
        try:
            gone = visit.exchange.perform(visit.committing())
        except Exception as error:
            visit.fail(error)
            if answer_to(error) is None:
                raise
            return self._made(app, visit)
        return None if gone is None else self._overridden(app, gone)

    def _made(self, app: flask.Flask, visit: _Visit) -> flask.Response:
        """Return the answer to the error of a request."""
        error = visit.failure
        assert error is not None
        visit.is_answered = True
        note(error)
        answer = answer_to(error)
        assert answer is not None
        made = self._overridden(app, error)
        return made or app.make_response((answer.text, answer.status, answer.headers()))

    def _overridden(self, app: flask.Flask, error: Exception) -> flask.Response | None:
        if self.on_error is None:
            return None
        result = app.ensure_sync(self.on_error)(flask.request, error)
        return None if result is None else app.make_response(result)


def _current_visit() -> _Visit | None:
    """Return the request's, None if its session is another's or could not be opened."""
    try:
        session = flask.session._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
    except AssertionError:  # of Flask: "the session has not yet been opened"
        return None
    return session.visit if isinstance(session, WebSession) else None


def _replace(response: flask.Response, answer: flask.Response) -> None:
    """Make a response another one, as far as it speaks of its content."""
    close = getattr(response.response, "close", None)
    if close is not None:
        close()  # a stream that nobody will read
    response.status = answer.status
    response.headers = headers_for(answer.headers, response.headers)
    response.response = answer.response
    response.direct_passthrough = answer.direct_passthrough
