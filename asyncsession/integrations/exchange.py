"""One request and its session, from the id that came in to the headers that go out.

Framework-neutral: an integration makes an `Exchange` of each request, gives the application its
session, calls `commit` before the first byte of the response leaves, and puts on it what `closing`
says. The rules that are the same everywhere stand here and nowhere else.

The rules that call verbs of the manager are generators: they yield what the call returned. An
`Exchange` awaits that, since its `SessionManager` returns coroutines, and sends what came of it; a
`BlockingExchange` (in `asyncsession.integrations.blocking`), with a `SyncSessionManager`, sends it
back as it is. What every request does, also one that has no use for its session, is done without.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import suppress
from enum import Enum, auto
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from asyncsession.errors import (
    InvalidSessionData,
    SessionConflict,
    SessionGone,
    StoreUnavailable,
)
from asyncsession.integrations.cookies import Cookie, sent_values
from asyncsession.integrations.terms import (
    AnyManager,
    Carrier,
    Outage,
    RawHeaders,
    ReadThrough,
    Terms,
)
from asyncsession.manager import SessionManager
from asyncsession.session import Session

__all__ = [
    "PROMPT",
    "SAFE",
    "UNSHARED",
    "Asking",
    "Carrier",
    "Closing",
    "Exchange",
    "Outage",
    "RawHeaders",
    "ReadThrough",
    "Rules",
    "Terms",
]

M = TypeVar("M", bound=AnyManager)
T = TypeVar("T")


Asking: TypeAlias = Generator[Any, Any, T]
"""Calls verbs and yields what they return, is sent what came of it, and returns a T."""

UNSHARED = "private, no-cache"
"""The Cache-Control of a response that gives or takes an id, where the application sends none."""

PROMPT = 2.0
"""Seconds after its load in which a request that finds its session gone still makes the client
forget the id. A user who has logged out and in again meanwhile would lose the new one; nobody does
both in so short a time. After a slower request the next load that finds nothing sees to it."""

SAFE = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))
"""The methods of requests that only look (RFC 9110 9.2.1)."""

_log = logging.getLogger("asyncsession")


class Closing(NamedTuple):
    """What has to be said in the headers of a response.

    Attributes:
        carried: a header (name, value) that gives or takes the client's id. A response with it may
            not be kept by a shared cache (CVE-2023-30861): where the application sends no
            Cache-Control, the integration adds `UNSHARED`.
        vary: a field for the Vary header.
    """

    carried: tuple[str, str] | None
    vary: str | None


_NOTHING = Closing(None, None)


class _Sent(Enum):
    """What is known of the id that a client sent."""

    NONE = auto()  # it sent none, or it has not been looked up yet
    LIVE = auto()  # it loaded the session
    DEAD = auto()  # it loads nothing, now or ever
    ROTATED = auto()  # the client has a newer one by now
    UNKNOWN = auto()  # the store is down
    UNREADABLE = auto()  # it leads to what cannot be read


class Rules(Generic[M]):
    """The session of one request, whoever calls the verbs.

    Args:
        terms: as declared by the application.
        raw_headers: of the request.
        method: of the request, in capitals.

    Attributes:
        terms: as declared by the application.
        session: what was loaded; None until then.
        is_asked: the application has asked for the session by name, so its response depends on
            it whether or not a key was looked at. For integrations to set.
    """

    __slots__ = (
        "_is_safe",
        "_loaded_at",
        "_peer_id",
        "_sent",
        "_sent_id",
        "is_asked",
        "session",
        "terms",
    )

    def __init__(self, terms: Terms[M], raw_headers: RawHeaders, method: str) -> None:
        self.terms = terms
        self._is_safe = method in SAFE
        self.session: Session | None = None
        self.is_asked = False
        self._sent = _Sent.NONE
        self._peer_id: str | None = None
        self._loaded_at = 0.0
        if terms.read_through is None:
            self._sent_id = terms.carrier.read(raw_headers)
        else:
            pairs = list(raw_headers)
            self._sent_id = terms.carrier.read(pairs)
            values = sent_values(pairs, terms.read_through.cookie_name)
            if self._sent_id is None and len(values) == 1 and not self._is_doubtful(pairs):
                self._peer_id = terms.read_through.peer_id(values[0])

    def fetch(self) -> Any:
        """Call the verb that loads the session, and return what it returns."""
        manager = self.terms.manager
        if self._peer_id is None:
            return manager.load(self._sent_id)
        assert self.terms.read_through is not None
        return manager.load_through(self.terms.read_through, self._peer_id)

    def begin(self, loaded: Session) -> None:
        """Give the request the session that was loaded for it."""
        if loaded.is_stale:
            self._begin(loaded, _Sent.ROTATED)
        elif not loaded.is_new:
            self._begin(loaded, _Sent.LIVE)
        else:
            self._begin(loaded, _Sent.NONE if self._sent_id is None else _Sent.DEAD)

    def begin_without(self, error: StoreUnavailable | InvalidSessionData) -> None:
        """Give the request an empty session in the place of one that could not be loaded.

        Raises:
            StoreUnavailable: the store is down, and `outage` is `"error"`.
            InvalidSessionData: what is stored cannot be read.
        """
        session = Session()
        if isinstance(error, StoreUnavailable):
            if self.terms.outage == "error":
                raise error
            _log.warning("the request goes on without its session: %s", error)
            session.is_stale = True  # not saved by us
            self._begin(session, _Sent.UNKNOWN)
        elif self._peer_id is None:
            self._sent = _Sent.UNREADABLE
            raise error
        else:  # there is no cookie of ours to clear, and theirs would bring the error for ever
            taken_over = "a session that was taken over cannot be read, and is left as it is"
            _log.error(taken_over, exc_info=error)
            self._begin(session, _Sent.NONE)

    def committing(
        self, *, rotate: bool = False, is_known: bool = False
    ) -> Asking[SessionGone | None]:
        """Save what the application has changed.

        A session that was ended elsewhere is no failure: there is nothing left to save, and the
        response may go out.

        Args:
            rotate: also give the session a new id, in the same step.
            is_known: there are changes; to find that out takes time.

        Returns:
            The error that says so, for the application to hear of.

        Raises:
            SessionConflict: the id was rotated away a moment ago, so that nothing can be saved, and
                the request is not one that only looks (RFC 9110 9.2.1).
            What `SessionManager.save` raises but for `SessionGone`.
        """
        session, manager = self.session, self.terms.manager
        if session is None:
            return None
        if session.is_destroyed:
            if self._sent is _Sent.UNKNOWN:  # a logout, and not of the session that was meant
                yield from self._destroy_sent()
            if self._sent is _Sent.ROTATED and session.is_new and not session.was_sent:
                self._drop()  # neither this
            if not session.is_new:
                return None  # it was found gone, with what it held
            session = self.session = self._begun_anew(session)
        if not (rotate or is_known or session.modified):
            return None
        is_lost = session.is_stale and session.is_new  # saved as it is, nobody could ever load it
        if is_lost and session.held_principal is None:
            self._drop()
            return None
        try:
            # Whoever logs in, also with an id that was just rotated away, gets one of their own.
            if is_lost or rotate:
                yield manager.rotate(session)
            else:
                yield manager.save(session)
        except SessionGone as gone:
            return gone
        except InvalidSessionData:
            self._sent = _Sent.UNREADABLE
            raise
        except StoreUnavailable as error:
            is_login = session.held_principal is not None
            if self.terms.outage == "error" or not session.is_new or is_login:
                raise
            _log.warning("the request goes on without a session: %s", error)
        return None

    def failing(self) -> Asking[None]:
        """Take note that an exception of the application's ends the request.

        With `keep_on_exception`, changes of a stored session are saved. A new session is not
        created: no response of ours will give the client its id. That exception is what the caller
        goes on with; one of the save is logged.
        """
        session = self.session
        if not self.terms.keep_on_exception or session is None or session.is_new:
            return
        if session.held_principal != session.stored_principal:
            return  # a login that was not completed
        try:
            yield from self.committing()
        except Exception:
            _log.exception("the changes of a request that failed could not be kept")

    def note(self, error: Exception) -> None:
        """Take note of an error that is answered in place of the application.

        Values are unpacked when they are asked for, so a session that loads may still hold what
        cannot be read. A client that keeps its id would meet that with every request.
        """
        if isinstance(error, InvalidSessionData):
            with suppress(InvalidSessionData):  # else another's, which was only listed
                self.read_all()

    def read_all(self) -> None:
        """See whether all that the session holds can be read.

        Raises:
            InvalidSessionData: some of it cannot; the client is made to forget the id.
        """
        log = self.session.log if self.session is not None else None
        if log is None:
            return
        try:
            for key in log.keys():  # noqa: SIM118  a log is no mapping
                log.value(key)
        except InvalidSessionData:
            self._sent = _Sent.UNREADABLE
            raise

    def closing(self) -> Closing:
        """Return what the headers of the response have to say."""
        carrier, session = self.terms.carrier, self.session
        value = self._carried()
        if value is not None:
            return Closing((carrier.header, value), carrier.varies)
        is_touched = self.is_asked or (
            session is not None and (session.is_destroyed or session.guards() != frozenset())
        )
        return Closing(None, carrier.varies) if is_touched else _NOTHING

    def _is_doubtful(self, pairs: RawHeaders) -> bool:
        """Tell whether there are several cookies of our name, one of which was planted."""
        carrier = self.terms.carrier
        return isinstance(carrier, Cookie) and len(sent_values(pairs, carrier.name)) > 1

    def _begin(self, session: Session, sent: _Sent) -> None:
        if self.session is None:  # else another task of the same request was faster
            self.session, self._sent = session, sent
            self._loaded_at = time.monotonic()

    def _begun_anew(self, ended: Session) -> Session:
        """Return a session of its own for what was put into one after it was ended."""
        session = Session()
        session.update(ended)
        if ended.held_principal is not None:
            session.principal = ended.held_principal
        return session if session.modified else ended

    def _drop(self) -> None:
        """Tell whoever has to know that changes go nowhere: the session was never theirs to change.

        Raises:
            SessionConflict: the request was meant to change something, and can be sent again.
        """
        if self._sent is not _Sent.ROTATED:
            return  # the store is down; that was said when the session was looked for
        if not self._is_safe:
            raise SessionConflict("the session has a new id; send the request again with that")
        _log.warning("what a request put into its session was not saved: its id was rotated away")

    def _destroy_sent(self) -> Asking[None]:
        """End the session that could not be loaded, so that its user is logged out indeed."""
        session: Session = yield self.fetch()
        yield self.terms.manager.destroy(session)
        if session.is_stale:  # what was meant has another id by now
            self._sent = _Sent.ROTATED
            self._drop()
        else:
            self._sent = _Sent.DEAD

    def _carried(self) -> str | None:
        carrier, session = self.terms.carrier, self.session
        if self._sent is _Sent.UNREADABLE:
            return carrier.clear()  # or the client would be refused for ever
        if session is None:
            return None
        if session.is_new or session.is_destroyed:
            is_known = self._sent is _Sent.LIVE or self._sent is _Sent.DEAD
            if not session.is_new:  # it was found gone, and not ended here
                is_prompt = time.monotonic() - self._loaded_at < PROMPT
                is_known = is_known and is_prompt and not session.is_stale
            return carrier.clear() if is_known else None
        is_unconfirmed = session.joining is not None and session.is_newcomer
        if session.is_stale or is_unconfirmed or session.id == self._sent_id:
            return None
        return carrier.issue(session.id)


class Exchange(Rules[SessionManager]):
    """The session of one request, of a manager whose verbs are awaited."""

    __slots__ = ()

    async def load(self) -> Session:
        """Return the session, loaded with the first call; `begin_without` says what it raises."""
        if self.session is None:
            try:
                self.begin(await self.fetch())
            except (StoreUnavailable, InvalidSessionData) as error:
                self.begin_without(error)
            assert self.session is not None
        return self.session

    async def commit(self) -> SessionGone | None:
        """Save what the application has changed; see `Rules.committing`."""
        session = self.session
        if session is None:
            return None
        is_modified = not session.is_destroyed and session.modified
        if not (is_modified or session.is_destroyed):
            return None  # as for most requests
        return await self.perform(self.committing(is_known=is_modified))

    async def fail(self) -> None:
        """Take note that an exception of the application's ends the request."""
        await self.perform(self.failing())

    async def perform(self, asking: Asking[T]) -> T:
        """Await the verbs that are called, and return what comes of it."""
        try:
            called = next(asking)
            while True:
                try:
                    result = await called
                except Exception as error:
                    called = asking.throw(error)
                else:
                    called = asking.send(result)
        except StopIteration as stop:
            returned: T = stop.value
            return returned
        finally:
            asking.close()
