"""The session object of Flask and Quart, and the request that it belongs to.

Here stands what these two frameworks mean by a session beyond the rules that are the same
everywhere: `permanent` sessions, `session.clear()` as the end of a session, and a login that shows
by what it puts into the session.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeAlias, TypeVar

from flask.sessions import SessionMixin

from asyncsession.errors import (
    ConfigurationError,
    InvalidSessionData,
    SessionGone,
    StoreUnavailable,
)
from asyncsession.integrations.cookies import Cookie
from asyncsession.integrations.exchange import Asking, Closing, Rules
from asyncsession.log import Log
from asyncsession.migration.flask_session import flask_login_user
from asyncsession.operations import MISSING
from asyncsession.session import PRINCIPAL, Session

__all__ = ["Principal", "Visit", "WebSession", "flask_login_user"]

R = TypeVar("R", bound=Rules[Any])

Principal: TypeAlias = Callable[[Session], str | None]

_STATE = frozenset(Session.__slots__) - {"__weakref__"}

_FRESH = "_fresh"  # of Flask-Login: False if nothing but a cookie says who the user is

_log = logging.getLogger("asyncsession")


class WebSession(Session, SessionMixin):
    """Our session, with the attributes that Flask's sessions have.

    Until it is used it is a `_Ghost`.

    Attributes:
        visit: the request's.
        is_cleared: `clear` was called.
    """

    def __init__(self, visit: Visit[Any]) -> None:
        self.visit = visit  # and no `super().__init__`: what that sets comes with the first use
        self.is_cleared = False

    @property
    def is_ghost(self) -> bool:
        """Whether it has not been used yet."""
        return not self.visit.is_filled

    @property
    def new(self) -> bool:  # type: ignore[override]  # a plain attribute there
        """Whether the session is not in the store yet; `is_new` by Flask's name."""
        return self.is_new

    @property
    def modified(self) -> bool:
        """Whether there is anything to save, nested changes included.

        Setting it to True is not needed, and does nothing.
        """
        return not self.is_ghost and super().modified

    @modified.setter
    def modified(self, value: bool) -> None:
        if not value:
            raise ConfigurationError(
                "session.modified = False: what has changed is found by comparing, and cannot be "
                "declared unchanged; do not change it, or undo the change"
            )

    def clear(self) -> None:
        """End the session when the response leaves, or begin it anew with what is put in later.

        As in Flask, whose cookie is deleted for an empty session. Nobody is its principal any more.
        """
        super().clear()
        self.principal = None
        self.is_cleared = True

    def undo(self) -> None:
        """Show what was last loaded or saved, and none of the changes since."""
        self._held, self._bases, self.is_cleared = {}, {}, False

    def take(self, loaded: Session) -> None:
        """Become what was loaded."""
        # Written out, as this is a part of every request: a loop costs ten times as much.
        self.id, self.handle, self.incarnation = loaded.id, loaded.handle, loaded.incarnation
        self.is_stale, self.is_destroyed = loaded.is_stale, loaded.is_destroyed
        self.is_current, self.is_unreadable = loaded.is_current, loaded.is_unreadable
        self.is_saving, self.was_sent = loaded.is_saving, loaded.was_sent
        self.unanswered = loaded.unanswered
        self.joining, self.is_newcomer = loaded.joining, loaded.is_newcomer
        self._log, self._policies = loaded.log, loaded._policies  # noqa: SLF001  our base class
        self._held, self._bases = loaded._held, loaded._bases  # noqa: SLF001
        self._read, self._read_all = loaded._read, loaded._read_all  # noqa: SLF001
        self._seen = loaded._seen  # noqa: SLF001
        self.__class__ = WebSession  # and last, as other threads may look at it meanwhile

    def __repr__(self) -> str:
        return "<Session, not loaded yet>" if self.is_ghost else super().__repr__()


class _Ghost(WebSession):
    """A session that holds nothing yet, and fills itself when one of its attributes is asked for.

    So a request that never looks at its session costs nothing. It stops being a ghost then: where
    a class has `__getattr__`, each look at any attribute of its objects takes twice as long.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _STATE:
            raise AttributeError(f"a session has no attribute {name!r}")
        self.visit.fill()
        return getattr(self, name)


class Visit(Generic[R]):
    """One request to an application with sessions.

    Args:
        exchange: the rules for its session.
        load: returns the session, or raises why it cannot be loaded.
        principal: says who is logged in; see `asyncsession.integrations.pallets.Declared`.
        refreshes: whether the cookie of a permanent session is sent with each response.

    Attributes:
        exchange: the rules for its session.
        session: as the application has it.
        failure: the error that is, or will be, answered in place of the application.
        is_filled: the session has been loaded, or could not be.
        is_answered: the response is that answer.
        has_passed: an exception has ended the request.
    """

    __slots__ = (
        "_filling",
        "_found",
        "_found_id",
        "_is_refreshed",
        "_load",
        "_principal",
        "_refreshes",
        "exchange",
        "failure",
        "has_passed",
        "is_answered",
        "is_filled",
        "session",
    )

    def __init__(
        self,
        exchange: R,
        load: Callable[[], Session],
        principal: Principal | None,
        refreshes: bool,
    ) -> None:
        self.exchange = exchange
        self.session: WebSession = _Ghost(self)
        self.failure: Exception | None = None
        self.is_filled = self.is_answered = self.has_passed = False
        self._load = load
        self._principal = principal
        self._refreshes = refreshes
        self._filling = threading.Lock()  # for copies of the request's context in other threads
        self._is_refreshed = False
        self._found: Log | None = None  # what was loaded, whatever the application saves meanwhile
        self._found_id = ""

    def fill(self) -> None:
        """Load the session, which is being used for the first time.

        Raises:
            StoreUnavailable, InvalidSessionData: once. Afterwards there is an empty session, for
                what other functions do while the error is answered; nothing is ever saved of it.
        """
        with self._filling:
            if self.is_filled:
                return
            self.exchange.is_asked = True
            try:
                self.begin(self._load())
            except (StoreUnavailable, InvalidSessionData) as error:
                self.fail(error)
                raise

    def begin(self, loaded: Session) -> None:
        """Give the application its session."""
        self.session.take(loaded)
        if loaded.log is not None:
            self._found, self._found_id = loaded.log, loaded.id
        self.exchange.session = self.session
        self.is_filled = True

    def fail(self, error: Exception) -> None:
        """Take note of an error that is answered in place of the application."""
        self.exchange.note(error)
        self.failure = error
        if not self.is_filled or isinstance(error, InvalidSessionData):
            empty = Session()
            empty.is_stale = True
            self.session.take(empty)
            self.is_filled = True

    @property
    def is_to_be_answered(self) -> bool:
        """Whether the application's response has to make way for the answer to an error."""
        if self.failure is None or self.is_answered:
            return False
        session = self.session
        is_used = session.modified or session.is_cleared or session.is_destroyed
        return self.has_passed or is_used  # what was done goes nowhere

    def committing(self) -> Asking[SessionGone | None]:
        """Save what is to be saved before the response leaves; see `Rules.committing`."""
        session, rotate, gone = self.session, False, None
        is_stored = not (session.is_new or session.is_destroyed)
        is_modified = not session.is_destroyed and session.modified
        if session.is_cleared and not session.is_destroyed:
            if not session and session.held_principal is None:
                yield self.exchange.terms.manager.destroy(session)
                is_modified = False
            elif is_stored:
                yield from self._begin_anew()
        version = 0 if self._found is None else self._found.version
        is_changed = is_modified or session.is_destroyed or session.version != version
        if is_changed:
            rotate = self._note_login()
        if is_changed or session.is_cleared:
            gone = yield from self.exchange.committing(rotate=rotate, is_known=is_modified)
        if gone is None and is_stored and self._is_to_be_refreshed():
            self._is_refreshed = is_modified or (yield from self._confirm())
        return gone

    def passing(self, error: Exception) -> Asking[None]:
        """Take note that an exception of the application's has passed; see `Rules.failing`.

        What it left behind is discarded, kept or not. What is put in from now on is saved again: it
        is of functions that make or see the response, such as a handler for status 500.
        """
        if error is self.failure:  # of the save, and not to be answered by us
            self.failure = None
        else:
            yield from self._failing()
        if self.is_filled:
            self.session.undo()
            self.exchange.session = self.session

    def _failing(self) -> Asking[None]:
        """Keep what is to be kept; and no login, which would be one under the id from before."""
        if not self.exchange.terms.keep_on_exception or not self.is_filled:
            return
        try:
            if self._note_login():
                return
        except Exception:
            _log.exception("the changes of a request that failed could not be kept")
            return
        yield from self.exchange.failing()

    def closing(self, app: Any) -> Closing:
        """Return what the headers of the response have to say; see `Rules.closing`.

        Args:
            app: its configuration says how long the browser keeps the cookie of a permanent
                session.
        """
        closing, session = self.exchange.closing(), self.exchange.session
        cookie = self.exchange.terms.carrier
        assert isinstance(cookie, Cookie)
        if session is None or session.is_new or session.is_destroyed or session.is_stale:
            return closing
        if closing.carried is None:
            is_issued = self._is_refreshed
        else:
            is_issued = closing.carried[1] == cookie.issue(session.id)
        if not is_issued:
            return closing
        if session.get("_permanent"):
            lifetime = app.permanent_session_lifetime.total_seconds()
            cookie = replace(cookie, max_age=int(lifetime))
        return Closing((cookie.header, cookie.issue(session.id)), cookie.varies)

    def _begin_anew(self) -> Asking[None]:
        """Put what came after `clear` into a session of its own; the one before ends for good.

        That is rotated first. Ended as it was, its id would lead nowhere, and requests that still
        come with it would make the browser forget the cookie that this response brings.
        """
        session, manager = self.session, self.exchange.terms.manager
        assert session.log is not None
        before, fresh = session.restarted(session.log), Session()
        fresh.update(session)
        if session.held_principal is not None:
            fresh.principal = session.held_principal
        try:
            yield manager.rotate(before)
            yield manager.destroy(before)
        except SessionGone:
            pass  # somebody else was faster
        session.take(fresh)

    def _note_login(self) -> bool:
        """Take over a change of who is logged in as one of the session's principal.

        Also of one that the application has saved by itself.

        Returns:
            Whether the session has to get a new id, since it still has the browser's.
        """
        principal, session = self._principal, self.session
        held, stored = session.held_principal, self._before(PRINCIPAL) or None
        if principal is not None and held == stored:
            now = principal(session)
            if now != held and now != principal(self._as_loaded()):
                session.principal = now  # else the application has its own way
        is_known = not session.is_new and session.id == self._found_id
        return is_known and (session.held_principal != stored or self._is_confirmed())

    def _is_confirmed(self) -> bool:
        """Tell whether a user who was merely remembered has logged in again.

        Flask-Login says so by `_fresh`. Whoever had the id was not trusted with everything before,
        and is from now on; so it has to be a new one (ASVS 5.0 7.2.4: also on re-authentication).
        """
        is_asked = self._principal is not None
        return is_asked and self._before(_FRESH) is False and self.session.get(_FRESH) is True

    def _before(self, key: str) -> Any:
        """Return a value as it was loaded; None for none, or if the session has ended since."""
        if self._found is None or self.session.log is None:
            return None
        value = self._found.value(key)
        return None if value is MISSING else value

    def _as_loaded(self) -> Session:
        """Return the session as it was loaded; an empty one if that has ended since."""
        session = self.session
        if self._found is None or session.log is None:
            return Session(session.id)
        return session.restarted(self._found)

    def _is_to_be_refreshed(self) -> bool:
        session, exchange = self.session, self.exchange
        return (
            self._refreshes
            and exchange.session is session
            and not (session.is_new or session.is_destroyed or session.is_stale)
            and session.joining is None
            and (exchange.is_asked or exchange.closing().vary is not None)  # it was used
            and bool(session.get("_permanent"))
        )

    def _confirm(self) -> Asking[bool]:
        """See whether the browser's id is still the session's.

        Else the response of a slow request would bring back the id from before a login, and log the
        user out.
        """
        try:
            yield self.exchange.terms.manager.touch(
                self.session
            )  # which sets `is_stale` if it is not
        except SessionGone:
            return False
        except StoreUnavailable as error:
            _log.warning("the cookie of a permanent session is not sent again: %s", error)
            return False
        return True
