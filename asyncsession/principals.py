"""The sessions of a principal: who joins them, how many there may be, listing and ending them.

The index of a principal lives in another Cluster slot than the sessions it lists, so the two are
never written in one step. Joining goes: list the session as pending, commit, confirm. If somebody
has revoked the principal's sessions in between, the confirmation is refused and the session ends.

A limit on the number of sessions rides on that. The reply to a confirmation says who was confirmed
by then. So of any two logins the later one sees the earlier, and it is the later one that acts,
after its own commit: it ends itself ("refuse"), or those that were seen longest ago
("end_oldest"). Any set of sessions that live together has a last one to be confirmed, and that one
saw all the others: there are never more than the limit, pending ones aside. Of pending ones nobody
takes notice, since they will look for themselves; but one that is still pending when no login
could be under way any more was left behind, and counts. A session that belongs to the principal
already keeps its place, whatever it commits and however often it is rotated.

Under "refuse" a login also looks before its commit, so that in nearly all cases it is refused
before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from asyncsession.commit import commit
from asyncsession.errors import (
    CommitOutcomeUnknown,
    InvalidSessionData,
    SessionError,
    SessionGone,
    SessionTooLarge,
    StoreUnavailable,
    TooManySessions,
)
from asyncsession.handles import HORIZON, LOOK, MAGIC, end, find, follow
from asyncsession.ids import session_handle
from asyncsession.machine import Budget, Reply, Settings, definite, give_up, send
from asyncsession.outcome import Commit, Rerun
from asyncsession.protocol import Code, Group, Machine, Together
from asyncsession.session import Session

__all__ = ["destroy_all", "joining", "sessions_of"]

T = TypeVar("T")

_AT_ONCE = 64  # sessions that are looked up together; each may take `max_bytes` of memory
_PENDING = "?"

# Refusals of a commit that must not pass for those of the login before it.
_SAYS_NOTHING_OF_BEFORE = (StoreUnavailable, SessionTooLarge, InvalidSessionData)


class _Entry(NamedTuple):
    """One line of an index.

    Attributes:
        raw, score: as it is stored.
        handle: of the session, now or before a rotation.
        is_joining: it is pending, and the login may still be under way.
    """

    raw: bytes
    score: bytes
    handle: str
    is_joining: bool


class _Member(NamedTuple):
    """A live session of the principal, and an entry that led to it."""

    entry: _Entry
    session: Session

    @property
    def identity(self) -> bytes:
        """The same for all entries of one session, whatever its handle was in between."""
        session = self.session
        return session.handle.encode() if session.is_unreadable else session.incarnation

    @property
    def seen(self) -> tuple[int, bytes]:
        """An order that all who look agree on; what cannot be read was seen longest ago."""
        log = self.session.log
        return (log.stamp if log else 0), self.identity


class _Failure(NamedTuple):
    """What kept a session from being ended."""

    error: SessionError


def sessions_of(
    settings: Settings, principal: str, current: Session | None = None
) -> Group[list[Session]]:
    """Return the live sessions of a principal, last seen first, and prune the index of others."""
    index = _Index(settings, Budget(settings.timeout), principal)
    listed = yield from index.call("list")
    members: dict[bytes, _Member] = {}
    for batch in _batches(index.entries(listed, listed.data)):
        found = yield Together(tuple(index.member(entry) for entry in batch))
        members.update((member.identity, member) for member in found if member is not None)
    for member in members.values():
        member.session.is_current = current is not None and member.identity == current.incarnation
    return [member.session for member in sorted(members.values(), key=_seen, reverse=True)]


def destroy_all(settings: Settings, principal: str, keep: Session | None = None) -> Group[int]:
    """End all sessions of a principal, also those that are joining right now; return how many.

    What cannot be ended keeps nobody else alive: it is told of when all others have been.

    Raises:
        CommitOutcomeUnknown: no answer came for at least one of them.
        What else kept the first of them.
    """
    index = _Index(settings, Budget(settings.timeout), principal)
    # Remembered for longer than logins take: what is migrated later comes after it, too.
    listed = yield from index.call("revoke", lasts=max(HORIZON, settings.absolute))
    entries = index.entries(listed, listed.data)
    ended: set[bytes] = set()
    failures: list[SessionError] = []
    done = 0
    for batch in _batches(entries):
        if failures and index.budget.pause() is None:
            break  # there is no time for another try
        outcomes = yield Together(tuple(_caught(_end_at(index, entry, keep)) for entry in batch))
        failures += (one.error for one in outcomes if isinstance(one, _Failure))
        ended.update(one for one in outcomes if isinstance(one, bytes))
        done += len(batch)
    if failures:
        worst = next(
            (one for one in failures if isinstance(one, CommitOutcomeUnknown)), failures[0]
        )
        count = len(failures) + len(entries) - done
        raise type(worst)(f"{count} of {len(entries)} listed were not ended: {worst}") from worst
    return len(ended)


def _caught(machine: Machine[T]) -> Machine[T | _Failure]:
    """Return the error of a machine in place of raising it, which would end the whole."""
    try:
        return (yield from machine)
    except SessionError as error:
        return _Failure(error)


def _end_at(index: _Index, entry: _Entry, keep: Session | None) -> Machine[bytes | None]:
    """End the session that an entry leads to, and return its identity; None for none."""
    member = yield from index.member(entry)
    if member is None or (keep is not None and member.identity == keep.incarnation):
        return None
    is_ended = yield from index.expel(member)
    return member.identity if is_ended else None


def joining(
    settings: Settings, session: Session, new_id: str | None, *, serial: bool
) -> Machine[Commit | Rerun]:
    """Return the machine that commits, and keeps the index of the session's principal in step.

    It raises:
        TooManySessions: the principal has as many sessions as they may.
        SessionGone: all sessions of the principal were ended meanwhile.
        What `commit` raises.
    """
    budget = Budget(settings.timeout)
    if new_id is None and session.has_joined and session.unanswered is None:
        return commit(settings, budget, session, serial=serial)
    return _joining(settings, budget, session, new_id, serial)


def _joining(
    settings: Settings, budget: Budget, session: Session, new_id: str | None, serial: bool
) -> Machine[Commit | Rerun]:
    principal, handle, was_new = session.held_principal, session.handle, session.is_new
    before, index = session.joining, None
    budget.unsure = session.unanswered is not None or _is_unconfirmed(session, before)
    has_begun = before is not None or session.unanswered is not None
    if principal is not None and (principal != session.stored_principal or new_id or before):
        index = _Index(settings, budget, principal)
        session.joining = yield from _announce(index, session, new_id, has_begun=has_begun)
    budget.unsure = False  # of this commit nothing was sent; one that was sent says so by itself
    try:
        outcome = yield from commit(settings, budget, session, new_id=new_id, serial=serial)
    except CommitOutcomeUnknown:
        raise
    except SessionError as error:
        session.joining = before
        if _is_unconfirmed(session, before) and isinstance(error, _SAYS_NOTHING_OF_BEFORE):
            budget.unsure = True
            raise give_up(budget, error) from error
        raise
    was_forwarded = session.is_stale and not was_new
    if not isinstance(outcome, Commit) or was_forwarded:
        session.joining = None
        return outcome
    budget.unsure = True  # it is committed; that it may stay is not yet known
    if index is not None:
        yield from _confirm(index, session, has_begun=has_begun)
    owner = session.stored_principal
    if session.handle != handle and owner is not None and owner != principal:
        theirs = _Index(settings, budget, owner)  # a login met a rotation
        yield from theirs.add("confirm", session, session.handle)
    session.joining = None
    return outcome


def _is_unconfirmed(session: Session, joining: tuple[str, bytes] | None) -> bool:
    """Tell whether a login was committed, since it is stored, and its confirmation not answered."""
    return joining is not None and joining[0] == session.stored_principal


def _announce(index: _Index, session: Session, new_id: str | None, *,
              has_begun: bool) -> Machine[tuple[str, bytes]]:  # fmt: skip
    """List a session as pending; return its principal and the epoch to confirm."""
    before = session.joining
    if before is not None and before[0] != index.principal:
        before = None
    if before is None:
        session.is_newcomer = session.stored_principal != index.principal
    # What has been sent may have been done; then only the confirmation can refuse.
    is_refusable = session.is_newcomer and not index.settings.ends_oldest and not has_begun
    handle = session.handle if new_id is None else session_handle(new_id)
    listed = yield from index.add("join", session, handle, is_counted=is_refusable)
    if len(listed.data) > 1:
        entries = index.entries(listed, listed.data[1:])
        others = yield from index.members(entries)
        others.pop(session.incarnation, None)
        if len(others) >= index.limit:
            pending = f"{_PENDING}{handle}".encode()
            for entry in entries:
                if entry.raw == pending:
                    yield from index.drop(entry)
            raise TooManySessions(index.limit)
    return before or (index.principal, listed.data[0])


def _confirm(index: _Index, session: Session, *, has_begun: bool) -> Machine[None]:
    """Confirm that a session has joined, and see to it that there are not too many now."""
    epoch = session.joining[1] if session.joining else b""
    listed = yield from index.add(
        "confirm", session, session.handle, epoch, is_counted=session.is_newcomer
    )
    if listed.code is Code.GONE:
        yield from _lose(index, session)
        raise SessionGone("all sessions of this principal were ended meanwhile")
    members = yield from index.members(index.entries(listed, listed.data[1:]))
    if session.incarnation not in members:
        if members or (index.limit and has_begun):
            yield from _require(index, session)  # another login may have ended it
        return
    surplus = len(members) - index.limit
    if surplus <= 0:
        return
    if not index.settings.ends_oldest:
        yield from _lose(index, session)
        raise TooManySessions(index.limit)
    del members[session.incarnation]
    for member in sorted(members.values(), key=_seen)[:surplus]:
        yield from index.expel(member)


def _require(index: _Index, session: Session) -> Machine[None]:
    """Raise `SessionGone` if a session has ended."""
    look = follow(index.settings, index.budget, "load", session.handle, *LOOK)
    with definite(index.budget):
        reply, _handle = yield from look
    if reply.code is not Code.OK:
        raise SessionGone("the session has ended while it joined its principal's")


def _lose(index: _Index, session: Session) -> Machine[None]:
    """End the session that was to join."""
    yield from end(index.settings, index.budget, session)
    session.end()


class _Index:
    """The index of one principal, within one operation."""

    def __init__(self, settings: Settings, budget: Budget, principal: str) -> None:
        self.settings = settings
        self.budget = budget
        self.limit = settings.max_sessions or 0
        self.principal = principal
        self._key = (settings.index(principal),)

    def call(self, verb: str, name: bytes | str = "", lasts: bytes | int = b"", epoch: bytes = b"",
             limit: int | str = "") -> Machine[Reply]:  # fmt: skip
        """Run the script."""
        return send(self.settings, self.budget, "index", self._key, verb, name, lasts, epoch, limit)

    def add(self, verb: str, session: Session, handle: str, epoch: bytes = b"", *,
            is_counted: bool = False) -> Machine[Reply]:  # fmt: skip
        """Put a session on the list, for as long as it may last at the most."""
        lasts, now = self.settings.absolute, self.settings.clock.now()
        if session.log is not None and now is not None:
            lasts = max(lasts, session.log.deadline - now)
        limit = self.limit if is_counted and self.limit else ""
        return self.call(verb, handle, lasts, epoch, limit)

    def entries(self, listed: Reply, flat: list[bytes]) -> list[_Entry]:
        """Return what was listed."""
        entries = []
        for raw, score in zip(flat[::2], flat[1::2], strict=True):
            name = raw.decode("ascii")
            added = float(score) - self.settings.absolute
            is_joining = name.startswith(_PENDING) and added >= listed.now - HORIZON
            entries.append(_Entry(raw, score, name.removeprefix(_PENDING), is_joining))
        return entries

    def member(self, entry: _Entry) -> Machine[_Member | None]:
        """Return the session that an entry leads to; drop the entry of one that is no more.

        What is not even a string is no session: somebody else's, who has overwritten one.
        """
        with _lent(self.budget) as budget:
            try:
                session = yield from find(self.settings, budget, entry.handle, self.principal)
            except StoreUnavailable as error:
                if not str(error.__cause__).startswith("WRONGTYPE"):
                    raise
                session = None
        if session is not None:
            return _Member(entry, session)
        if not entry.is_joining:
            yield from self.drop(entry)
        return None

    def members(self, entries: list[_Entry]) -> Machine[dict[bytes, _Member]]:
        """Return the sessions that have a place, by their identity."""
        members = {}
        for entry in entries:
            member = None if entry.is_joining else (yield from self.member(entry))
            if member is not None:
                members[member.identity] = member
        return members

    def expel(self, member: _Member) -> Machine[bool]:
        """End a session and take its entry off the list; return whether it was one.

        What does not have the mark of any version of ours is somebody else's, who has overwritten a
        session. There is nothing to end, and what is there is left as it is.
        """
        with _lent(self.budget) as budget:
            is_ours = yield from _ended(self.settings, budget, member.session)
        yield from self.drop(member.entry)
        return is_ours

    def drop(self, entry: _Entry) -> Machine[Any]:
        """Take an entry off the list, unless it was added again since it was listed."""
        return self.call("drop", entry.raw, entry.score)


def _ended(settings: Settings, budget: Budget, session: Session) -> Machine[bool]:
    """End a session; return False if what was listed as one is none."""
    if session.is_unreadable:
        key = (settings.key(session.handle),)
        try:
            reply = yield from send(settings, budget, "destroy", key, MAGIC, HORIZON)
        except InvalidSessionData:
            return False
        if reply.code is not Code.MOVED:
            return True
    yield from end(settings, budget, session)
    return True


@contextmanager
def _lent(budget: Budget) -> Iterator[Budget]:
    """Yield a budget for one session of many, which knows of nothing that is unaccounted for.

    Raises:
        CommitOutcomeUnknown: for an error that leaves open what was unaccounted for before.
    """
    own = budget.sibling()
    try:
        yield own
    except CommitOutcomeUnknown:
        raise
    except SessionError as error:
        if budget.unsure:
            raise give_up(budget, error) from error
        raise


def _batches(entries: list[_Entry]) -> Iterator[list[_Entry]]:
    for at in range(0, len(entries), _AT_ONCE):
        yield entries[at : at + _AT_ONCE]


def _seen(member: _Member) -> tuple[int, bytes]:
    return member.seen
