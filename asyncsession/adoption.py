"""Taking over what another session library has stored, once, so that switching logs nobody out.

A browser that still has the other library's cookie comes with an id of that library's. What is
stored there (the *original*) is read, written as a session of ours under an id of ours, and never
read again; the original itself is left as it is and expires by itself. The other library's id is
not adopted, and no key of ours tells it.

Parallel first requests converge. The mark that says "taken over" holds a random salt, and the new
session's id is an HMAC of the original's key under that salt. One script writes session and mark in
one step, unless there is a mark already; then it says what that holds. So whoever comes second,
also with a copy of the same request that the network held back, computes the id that the first one
chose, and loads that session. Redis cannot: a mark is named by a digest of the original's key. Nor
can anybody who knows the other library's ids from a dump or a log, without reading our Redis.

Gone stays gone. What is under the mark's id decides, and never again the original: a live session
is used; destroyed, expired or rotated away, the request is anonymous. The mark outlives both the
session and the original. It has no expiry where the original has none.

Step by step, what a crash, a cancellation or an answer that never comes leaves behind:

- before the script: nothing, and the next request begins anew;
- after it: session and mark, and the next request loads the session;
- before the principal is set: the session is at its first version, which nobody has been handed.
  Whoever loads it so sets the principal first. So a sign-out everywhere finds every session that
  has been handed out, if the source names the principal.

A sign-out everywhere also covers originals of that principal that are not taken over yet: the
join requires that no such sign-out is remembered (the epoch of the index is the first one), which
it is for the absolute timeout at least. Else the session ends before anybody has been handed it.

Two limits of the time: the script does nothing later than `COMMIT_WINDOW` after it was first sent,
so a delayed copy cannot outlive the mark. And of the original only its remaining time is known, not
when it was created: the absolute timeout of the session begins when it is taken over.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import secrets
import string
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from asyncsession import verbs
from asyncsession.blob import FORMAT, HEADER_BYTES, MAX_KEYS, Kind, encode_frame, head
from asyncsession.errors import (
    CommitOutcomeUnknown,
    InvalidSessionData,
    InvalidSessionValue,
    SessionConflict,
    SessionGone,
    SessionTooLarge,
    StoreUnavailable,
    TooManySessions,
)
from asyncsession.ids import session_handle
from asyncsession.machine import Budget, Clock, Settings, give_up, send
from asyncsession.protocol import BlockingTransport, Call, Code, Machine, Transport
from asyncsession.session import PRINCIPAL, Session

__all__ = ["BlockingTwoStores", "Source", "TwoStores", "load_through"]

_log = logging.getLogger("asyncsession.migration")

_MARK = FORMAT + b"A"
_SALT_BYTES = 32
_SECRET_BYTES = 24  # of an id; see `asyncsession.ids`
_SLOT_LETTERS = string.ascii_letters + string.digits
_MARGIN = 86_400_000  # ms that a mark stays longer, for servers whose clocks are set meanwhile
_FIRST_EPOCH = b"0"  # of a principal's index: none of its revocations is remembered

_ROOM = 8
"""How many times `max_bytes` an original may take. JSON writes six characters for one ("\\u00e9"),
where a session needs two bytes; the session itself is held to `max_bytes`."""


class Source(Protocol):
    """What another library has stored. See `asyncsession.migration` for those that there are."""

    @property
    def name(self) -> str:
        """The library's name; it is part of what digests are made of, so it never changes."""

    @property
    def transport(self) -> Transport:
        """The way to its server."""

    @property
    def blocking_transport(self) -> BlockingTransport:
        """The same for a `SyncSessionManager`."""

    def is_id(self, peer_id: object) -> bool:
        """Tell whether this has the form of an id of that library's."""

    def key(self, peer_id: str) -> str:
        """Return the Redis key under which that library keeps the session with this id."""

    def decode(self, stored: bytes, limit: int) -> Mapping[str, Any]:
        """Return what the application had put into a session; nothing for an empty one.

        Args:
            stored: what is under the key.
            limit: bytes that it may take once it is decompressed.

        Raises:
            InvalidSessionData: it cannot be read; the message says why, and tells no value.
        """

    def principal_of(self, data: Mapping[str, Any]) -> str | None:
        """Return whom a session with this content belongs to, None for nobody."""


class TwoStores:
    """One transport for two stores: the other library's for what is read there, else ours."""

    def __init__(self, ours: Transport, theirs: Transport) -> None:
        self._ours = ours
        self._theirs = theirs

    async def call(self, call: Call) -> Any:
        """Run a script on the server that it is for."""
        return await (self._theirs if call.script == "original" else self._ours).call(call)

    async def aclose(self) -> None:
        """Leave both open: they belong to the manager and to the source."""


class BlockingTwoStores:
    """The same on blocking transports."""

    def __init__(self, ours: BlockingTransport, theirs: BlockingTransport) -> None:
        self._ours = ours
        self._theirs = theirs

    def call(self, call: Call) -> Any:
        """Run a script on the server that it is for."""
        return (self._theirs if call.script == "original" else self._ours).call(call)

    def close(self) -> None:
        """Leave both open: they belong to the manager and to the source."""


class _Original(NamedTuple):
    """What is stored, as a first commit, and for how many ms it will be (-1: for ever)."""

    frame: bytes
    lasts: int


def load_through(settings: Settings, source: Source, peer_id: str | None) -> Machine[Session]:
    """Load what became of another library's session, and take it over before if nobody has yet.

    What cannot be read is left as it is, and the request is anonymous: nobody can repair it, and a
    browser would meet the error again with every request. A warning is logged. Nothing is lost by
    it, since the original is neither written nor marked; once its reader is mended it is read.

    Raises:
        StoreUnavailable: one of the two servers cannot be reached.
        InvalidSessionData: what our own store holds cannot be read.
        What `source.principal_of` raises.
    """
    if not isinstance(peer_id, str) or not source.is_id(peer_id):
        return Session()
    ends, budget = time.monotonic() + settings.timeout, Budget(settings.timeout)
    place = _Place(settings, source, peer_id)
    looked = yield from send(settings, budget, "adopt", (place.mark,), _MARK)
    mark: bytes | None = looked.data
    if looked.code is Code.GONE:
        original = yield from _read(settings, budget, source, place)
        mark = (yield from _adopt(settings, budget, place, original)) if original else None
    if mark is None:
        return Session()
    session_id = place.session_id(mark)
    session = yield from verbs.load(_until(ends, settings), session_id)
    if session.version != 1 or session.log is None:
        return session
    principal = source.principal_of(dict(session))
    if principal is None:
        return session.restarted(session.log)  # as nobody has read it
    yield from _join(_until(ends, settings), session, principal)
    return (yield from verbs.load(_until(ends, settings), session_id))


class _Place:
    """Where the session that came from one original is: its mark, and from that its id."""

    def __init__(self, settings: Settings, source: Source, peer_id: str) -> None:
        self.original = source.key(peer_id)
        self._secret = f"{source.name}\0{self.original}".encode()
        digest = hashlib.sha256(self._secret).digest()
        slot, base = int.from_bytes(digest[:8], "big"), len(_SLOT_LETTERS)
        self._slot = "".join(_SLOT_LETTERS[slot // base**n % base] for n in range(3))
        self.digest = _text(digest)
        self.mark = settings.key(f"{{{self._slot}}}:was:{self.digest}")

    def session_id(self, mark: bytes) -> str:
        """Return the id of the session that was made of the original."""
        salt = mark[len(_MARK) :]
        secret = hmac.digest(salt, b"session id\0" + self._secret, "sha256")
        return f"{self._slot}.{_text(secret[:_SECRET_BYTES])}"


def _read(
    settings: Settings, budget: Budget, source: Source, place: _Place
) -> Machine[_Original | None]:
    """Return the original; None if there is none, or it is empty, or cannot be read."""
    theirs = replace(settings, clock=Clock())  # that server's clock is not ours
    limit = _ROOM * settings.max_bytes
    try:
        reply = yield from send(theirs, budget, "original", (place.original,), limit)
        if reply.code is Code.TOO_LARGE:
            raise InvalidSessionData(f"it takes more than {limit} bytes")
        if reply.code is not Code.OK:
            return None
        stored, lasts = reply.data
        data = source.decode(stored, limit) if stored else {}
        return _Original(_frame(settings, source, data), lasts) if data else None
    except (InvalidSessionData, InvalidSessionValue, SessionTooLarge) as error:
        _log.warning(
            "a session of %s (%.8s) is not taken over: %s", source.name, place.digest, error
        )
        return None


def _frame(settings: Settings, source: Source, data: Mapping[str, Any]) -> bytes:
    """Return the frame that sets an original's content, for which the session has room."""
    session = Session()
    session.update(data)
    session.principal = source.principal_of(data)  # set by a commit of its own, but counted here
    deltas = {key: change.delta for key, change in session.changes(settings.policies).items()}
    if len(deltas) > MAX_KEYS:
        raise InvalidSessionData(f"it has more than {MAX_KEYS:,} keys")
    size = HEADER_BYTES + len(encode_frame(deltas, is_first=True))
    if size > settings.max_bytes:
        deltas.pop(PRINCIPAL, None)
        largest = sorted(deltas, key=lambda key: -len(deltas[key]))[:5]
        raise SessionTooLarge(
            size, settings.max_bytes, [(key, len(deltas[key])) for key in largest]
        )
    deltas.pop(PRINCIPAL, None)
    return encode_frame(deltas, is_first=True)


def _adopt(
    settings: Settings, budget: Budget, place: _Place, original: _Original
) -> Machine[bytes]:
    """Write the session and its mark; return that, or the mark of whoever was faster."""
    mark = _MARK + secrets.token_bytes(_SALT_BYTES)
    lasts = 0 if original.lasts < 0 else max(original.lasts, settings.absolute) + _MARGIN
    keys = (place.mark, settings.key(session_handle(place.session_id(mark))))
    live = head(Kind.LIVE, secrets.token_bytes(8))
    written = (mark, lasts, live, original.frame, secrets.token_bytes(16))
    timeouts = settings.idle, settings.absolute
    while True:
        issued = settings.clock.now() or 0
        reply = yield from send(settings, budget, "adopt", keys, *written, *timeouts, issued)
        if reply.code is not Code.LATE:
            standing: bytes = reply.data
            return standing
        pause = budget.pause()  # the server's clock has moved
        if pause is None:
            raise give_up(budget)
        yield pause


def _join(settings: Settings, session: Session, principal: str) -> Machine[None]:
    """Set the principal, unless somebody else has committed to the session meanwhile.

    If there was a sign-out everywhere before, or the principal may not have another session, that
    ends it.
    """
    session.principal = principal
    session.joining = principal, _FIRST_EPOCH
    try:
        yield from verbs.save_serial(settings, session)
    except (SessionGone, TooManySessions, SessionConflict):
        return  # ended, or rotated by somebody else; whoever loads it next is told
    except CommitOutcomeUnknown as error:  # the next request finds out, and goes on from there
        raise StoreUnavailable("a migrated session's principal could not be confirmed") from error


def _until(ends: float, settings: Settings) -> Settings:
    """Return the settings for what is left of an operation's time."""
    return replace(settings, timeout=max(ends - time.monotonic(), 0.001))


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
