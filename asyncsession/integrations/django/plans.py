"""What the session engine does with the store: machines, made of the managers' verbs.

They know neither threads nor event loops. `asyncsession.integrations.django.store` has them carried
through by the blocking manager for `save()`, and by the other one for `asave()`.
"""

from __future__ import annotations

import logging
import time

from django.contrib.sessions.backends.base import CreateError, SessionBase, UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted

from asyncsession import verbs
from asyncsession.adoption import load_through
from asyncsession.errors import InvalidSessionData, SessionConflict, SessionError, SessionGone
from asyncsession.handles import LOOK
from asyncsession.ids import is_session_id, session_handle, sibling_id
from asyncsession.integrations.django import expiry
from asyncsession.integrations.django.config import current
from asyncsession.log import Log
from asyncsession.machine import Budget, Settings, send
from asyncsession.protocol import Code, Machine
from asyncsession.session import Session

__all__ = ["PlannedStore", "finding"]

_log = logging.getLogger("asyncsession")
_ROTATED = "the session has a new id; send the request again with that"


class PlannedStore(SessionBase):  # type: ignore[misc]  # Django has no types
    """The state of a `SessionStore`, and the machines that change it.

    Attributes:
        accessed: somebody has looked; the response varies on the cookie.
        failure: what kept the session from being loaded, if anything did.
        is_attended: `CommitMiddleware` looks after the cookie.
    """

    _session_key: str | None  # a property of Django's

    def __init__(self, session_key: str | None = None) -> None:
        super().__init__(session_key)
        self._sent_key = session_key
        self._next_key: str | None = None  # what `cycle_key` has promised, and the commit will do
        self._declared: bool | None = None  # nobody has said; what has changed is what counts
        self._loaded: Session | None = None
        self._clears = False
        self._is_concluded = False
        self._loaded_at = 0.0
        self.failure: SessionError | None = None
        self.is_attended = False

    @property
    def modified(self) -> bool:
        """Whether there is something to save; may be assigned, as with any engine."""
        if self._declared is not None:
            return self._declared
        session = self._loaded
        return session is not None and session.modified

    @modified.setter
    def modified(self, declared: bool) -> None:
        self._declared = declared

    @property
    def is_stale(self) -> bool:
        """Whether its id was rotated away, so that the browser's cookie is not ours to change."""
        session = self._loaded
        return session is not None and session.is_stale

    @property
    def is_settled(self) -> bool:
        """Whether `CommitMiddleware` has committed, and nothing has changed since."""
        session = self._loaded
        is_open = not self._is_concluded or self._next_key is not None
        return not is_open and session is not None and not session.modified

    def is_empty(self) -> bool:
        """Tell whether there is no session, so that a cookie of it may be cleared."""
        if self.is_stale and not self.is_attended:
            return False
        empty: bool = super().is_empty()
        return empty

    @property
    def age(self) -> float:
        """Seconds since the session was loaded."""
        return time.monotonic() - self._loaded_at

    def abandon(self) -> None:
        """Forget what has not been saved: the request has failed.

        A key that it has got before is told to the browser nevertheless: the old one leads nowhere.
        """
        session = self._loaded
        if session is not None:
            log, fresh = session.log, Session()
            fresh.is_stale = session.is_stale
            self._loaded = fresh if log is None else session.restarted(log)
            self._session_key = None if log is None else session.id
        self._next_key = None
        is_moved = self._session_key not in (None, self._sent_key)
        self._clears, self._declared = False, is_moved or None
        self._is_concluded = True

    def forget(self) -> None:
        """Be without a session from now on."""
        self._loaded = Session()
        self._session_key = self._next_key = None
        self._clears, self._declared = False, None

    @property
    def is_unreadable(self) -> bool:
        """Whether what is stored of the session, or a part of it, cannot be read."""
        if isinstance(self.failure, InvalidSessionData):
            return True
        log = self._loaded.log if self._loaded is not None else None
        if log is None:
            return False
        try:
            for key in log.keys():  # noqa: SIM118  a log is no mapping
                log.value(key)
        except InvalidSessionData:
            return True
        return False

    @property
    def _session_cache(self) -> Session:
        """The session under Django's own name, by which others look whether it is loaded."""
        if self._loaded is None:
            raise AttributeError("the session is not loaded")
        return self._loaded

    @_session_cache.deleter
    def _session_cache(self) -> None:
        self._loaded = None

    def _keep(self, session: Session) -> Session:
        """Take what was loaded, unless another task of this request was faster."""
        kept = self._loaded
        if kept is None:
            kept = self._loaded = session
            if self._clears:
                kept.clear()
                self._clears = False
        return kept

    def _own(self, settings: Settings, *, no_load: bool = False) -> Machine[Session]:
        """Return the session; load it if nobody has looked yet."""
        session = self._loaded
        if session is None:
            is_new = no_load or self.session_key is None
            session = self._keep(Session() if is_new else (yield from self._loading(settings)))
        return session

    def _loading(self, settings: Settings) -> Machine[Session]:
        key, source = self.session_key, current().source
        try:
            if source is not None and not is_session_id(key):
                session = yield from load_through(settings, source, key)
                if not session.is_new:
                    self.modified = True  # the browser does not know its id yet
            else:
                session = yield from verbs.load(settings, key)
            if not session.is_new and expiry.has_ended(session, settings):
                yield from verbs.destroy(settings, session)
                session = Session()
        except SessionError as error:
            self.failure = error
            raise
        self.failure = None
        self._loaded_at = time.monotonic()
        self._session_key = None if session.is_new else session.id
        return session

    def _existing(self, settings: Settings, session_key: str | None) -> Machine[bool]:
        yield from self._cycled(settings)
        return (yield from finding(settings, session_key))

    def _creating(self, settings: Settings) -> Machine[None]:
        yield from self._cycled(settings)
        session, before = Session(), self._loaded
        if before is not None:
            session.update(before)
        self._loaded = session
        yield from self._commit(settings, session)
        self.modified = True

    def _saving(self, settings: Settings, must_create: bool) -> Machine[None]:
        if must_create and (yield from finding(settings, self.session_key)):
            raise CreateError
        is_unseen = self._loaded is None and self.session_key is not None
        session = yield from self._own(settings, no_load=must_create)
        if is_unseen and session.is_new and not session.is_stale and not must_create:
            raise UpdateError
        if session.is_new and session.is_stale:
            if self.is_attended:
                raise SessionConflict(_ROTATED)
            raise UpdateError(_ROTATED)
        try:
            yield from self._commit(settings, session)
        except SessionGone as gone:
            self.forget()
            raise UpdateError from gone
        if session.is_stale and not self.is_attended:
            raise UpdateError("another request has given the session a new key")

    def _deleting(self, settings: Settings, session_key: str | None) -> Machine[None]:
        yield from self._cycled(settings)
        own, session = self.session_key, self._loaded
        if session_key is None:
            session_key = own
        if session is not None and not session.is_new and session_key == own:
            yield from verbs.destroy(settings, session)  # also if its id was rotated away since
        elif session_key is not None:
            ended: Session | str = session_key
            if (source := current().source) is not None and not is_session_id(session_key):
                # What is not taken over yet is, so that its mark keeps it from being read again.
                ended = yield from load_through(settings, source, session_key)
            yield from verbs.destroy(settings, ended)

    def _flushing(self, settings: Settings) -> Machine[None]:
        self.accessed = True
        session = yield from self._own(settings)
        if session.is_stale and session.is_new:
            raise SessionConflict(_ROTATED)
        yield from verbs.destroy(settings, session)
        self.forget()
        self.modified = True

    def _cycling(self, settings: Settings) -> Machine[None]:
        self.accessed = self.modified = True
        session = yield from self._own(settings)
        if session.is_new and not session.was_sent:
            session.assign(sibling_id(session.id))
            session.is_stale = False  # this begins a session of its own, which deserves its cookie
            self._session_key = session.id
            return
        self._next_key = sibling_id(session.id)
        if self.is_attended:  # then a commit follows, and can have the login with it in one step
            self._session_key = self._next_key
        else:
            yield from self._cycled(settings)

    def _cycled(self, settings: Settings) -> Machine[None]:
        """Do at once what `cycle_key` has promised, if it has."""
        if self._next_key is None:
            return
        try:
            yield from self._commit(settings, (yield from self._own(settings)))
        except SessionGone as gone:
            self.forget()
            raise SessionInterrupted(
                "The request's session was deleted before the request completed."
            ) from gone

    def _concluding(self, settings: Settings, is_safe: bool) -> Machine[bool]:
        session = yield from self._own(settings)
        if session.is_new and session.is_stale:
            if session.modified and not is_safe:
                raise SessionConflict(_ROTATED)
            if session.modified:
                _log.warning(
                    "what a request put into its session was not saved: its id was rotated away"
                )
            self.abandon()
        elif not self.is_empty():
            try:
                yield from self._commit(settings, session)
            except SessionGone:
                if self._next_key is not None:
                    raise  # a login, and not one that the page may report as done
                self.forget()
                return False
        self._is_concluded = True
        return True

    def _commit(self, settings: Settings, session: Session) -> Machine[None]:
        self._prepare(settings, session)
        kept, is_sought = expiry.kept_for(session, settings), not session.is_new
        if session.is_new and not session.was_sent and not session.modified:
            # An empty session is not written, but a move to another id is; it ends at the key that
            # `cycle_key` has told. The browser gets that, as from `create()`.
            promised = session.id
            session.assign(sibling_id(promised))
            yield from verbs.save(kept, session, promised)
            self.modified = True
        else:
            is_ours = not session.is_stale  # else the key is another's to change
            commit = yield from verbs.save(kept, session, self._next_key if is_ours else None)
            self._next_key = None
            is_sought = is_sought and not commit.attempts
            if commit.attempts:
                self.modified = True  # it still was, and the cookie is renewed for that
        lasting = expiry.kept_for(session, settings)  # another request may have asked for longer
        if is_sought or lasting.idle_timeout > kept.idle_timeout:
            yield from verbs.touch(lasting, session)
        self._session_key = session.id

    def _prepare(self, settings: Settings, session: Session) -> None:
        """Put down what is derived from the content: when it ends, and whose it is."""
        expiry.renew(session, settings)
        principal_of = current().principal
        if principal_of is not None:
            principal = principal_of(session)
            if principal != session.held_principal:
                session.principal = principal


def finding(settings: Settings, session_key: str | None) -> Machine[bool]:
    """Tell whether there is a live session with this key, and do not put off its timeout."""
    if session_key is None or not is_session_id(session_key):
        return False
    key = (settings.key(session_handle(session_key)),)
    reply = yield from send(settings, Budget(settings.timeout), "load", key, *LOOK)
    if reply.code is not Code.OK:
        return False
    return not expiry.has_ended(Session(session_key, Log.parse(reply.data)), settings)
