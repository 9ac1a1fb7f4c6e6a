"""The verbs of a manager on one session, as machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from asyncsession.blob import Kind, head
from asyncsession.errors import (
    CommitOutcomeUnknown,
    InvalidSessionData,
    SessionConflict,
    SessionError,
    SessionGone,
)
from asyncsession.handles import HORIZON, LOOK, MAGIC, end, follow
from asyncsession.ids import is_session_id, session_handle, sibling_id
from asyncsession.log import Log
from asyncsession.machine import Budget, Settings, send
from asyncsession.outcome import Commit, Rerun
from asyncsession.principals import joining
from asyncsession.protocol import Apply, Code, Group, Machine, Queue
from asyncsession.session import Session

__all__ = ["destroy", "load", "refresh", "rotate", "save", "save_serial", "touch", "update"]

T = TypeVar("T")

_NOTHING = Log(b"", 0, 0, 0)
"""What is known of a session that this process has not seen."""


def load(settings: Settings, session_id: object) -> Machine[Session]:
    """Load a session, or return a new one with a fresh id; an id we did not issue is never adopted.

    Raises:
        InvalidSessionData: what is stored cannot be read.
        StoreUnavailable: Redis cannot be reached.
    """
    if not is_session_id(session_id):
        return Session()
    assert isinstance(session_id, str)
    handle = session_handle(session_id)
    budget = Budget(settings.timeout)
    key = (settings.key(handle),)
    known = settings.cache.get(handle) or _NOTHING
    terms = settings.terms[:6] + settings.clock.recent().to_bytes(6, "big") + known.base
    reply = yield from send(settings, budget, "load", key, terms, base=known)
    if reply.code is Code.OK:
        latest = settings.cache.get(handle)
        log = Log.fetched(reply.data, reply.base, latest)
        if log is not known and log is not latest:
            settings.cache.put(handle, log)
        return Session(session_id, log, handle)
    settings.cache.drop(handle)
    session = Session()
    session.is_stale = reply.code is Code.MOVED
    return session


def save(settings: Settings, session: Session, new_id: str | None = None) -> Machine[Commit]:
    """Commit what has changed in `session`, and move it to `new_id` in the same step if given."""
    machine = joining(settings, session, new_id, serial=False)
    return _alone(session, cast("Machine[Commit]", machine))  # only a serial commit is run again


def save_serial(settings: Settings, session: Session) -> Machine[Commit | Rerun]:
    """Commit `session` only if nothing that was read or written in it has changed meanwhile."""
    return _alone(session, joining(settings, session, None, serial=True))


def update(
    settings: Settings, session_id: object, change: Callable[[Session], Any]
) -> Group[Session]:
    """Have `change` applied to a session until nobody else has touched what it read or wrote.

    The first collision brings a turn, which is kept to the end.
    """
    budget = Budget(settings.timeout)
    session = yield from load(settings, session_id)
    has_turn = False
    while True:
        yield Apply(change, session)
        outcome = yield from save_serial(settings, session)
        if not isinstance(outcome, Rerun):
            return session
        pause = budget.pause()
        if pause is None:
            raise SessionConflict("others kept changing what the update reads")
        session = session.restarted(outcome.log)
        if has_turn:
            yield pause
            continue
        has_turn = True
        if (yield Queue(session.handle, budget.call_timeout())):
            latest = yield from load(settings, session.id)
            session = session if latest.is_new else latest


def rotate(settings: Settings, session: Session) -> Machine[Commit]:
    """Give `session` a new id, and commit its unsaved changes in the same step."""
    if session.is_new and not session.was_sent and not session.is_destroyed:
        session.assign(sibling_id(session.id))
        session.is_stale = False  # this begins a session of its own, which deserves its cookie
        return (yield from save(settings, session))
    if session.is_stale or not session.id:
        return (yield from save(settings, session))  # the id is another's to change
    return (yield from save(settings, session, sibling_id(session.id)))


def refresh(settings: Settings, session: Session) -> Machine[None]:
    """Bring `session` up to date with what others have committed, and write nothing.

    A session that was rotated away is shown nothing of its successor; it learns whether that lives.
    """
    yield from _alone(session, _refresh(settings, session))


def touch(settings: Settings, session: Session) -> Machine[None]:
    """Put off the idle timeout of a session that is in use and has nothing to save."""
    _check(session)
    if session.is_new:
        return
    live, budget = head(Kind.LIVE, session.incarnation), Budget(settings.timeout)
    reply, handle = yield from follow(
        settings, budget, "touch", session.handle, live, settings.idle
    )
    if reply.code is not Code.OK:
        session.is_destroyed = True
        raise _gone()
    _note(session, handle)
    if not reply.data:
        return
    session.note_seen(reply.now, reply.data)
    latest = settings.cache.get(handle)
    if latest is not None and (touched := latest.touched(reply.data, reply.now)) is not latest:
        settings.cache.put(handle, touched)


def destroy(settings: Settings, target: Session | str) -> Machine[None]:
    """End a session for good; no request still under way can bring it back."""
    budget = Budget(settings.timeout)
    if isinstance(target, str):
        if is_session_id(target):
            handle = session_handle(target)
            key = (settings.key(handle),)
            yield from send(settings, budget, "destroy", key, MAGIC, HORIZON)
            settings.cache.drop(handle)
        return
    if target.was_sent:
        yield from end(settings, budget, target)
    target.end()


def _refresh(settings: Settings, session: Session) -> Machine[None]:
    if session.unanswered is not None:
        raise CommitOutcomeUnknown(
            "a commit of this session was never answered; saving it again finishes that,"
            " and shows what others did"
        )
    if session.is_new:
        return
    budget = Budget(settings.timeout)
    reply, handle = yield from follow(settings, budget, "load", session.handle, *LOOK)
    if reply.code is not Code.OK:
        raise _gone()
    _note(session, handle)
    if not session.is_stale:
        log = Log.parse(reply.data)
        if log.incarnation != session.incarnation:
            raise _gone()
        session.refresh(log, settings.policies)


def _alone(session: Session, machine: Machine[T]) -> Machine[T]:
    """Keep other tasks from saving a session meanwhile, and note if it turns out to be gone."""
    _check(session)
    if session.is_saving:
        raise SessionError(
            "this Session is being saved or refreshed by another task; load one for each"
        )
    session.is_saving = True
    try:
        return (yield from machine)
    except SessionGone:
        session.is_destroyed = True
        raise
    finally:
        session.is_saving = False


def _check(session: Session) -> None:
    if session.is_destroyed:
        raise _gone()
    if session.is_unreadable:
        raise InvalidSessionData(
            "what is stored of this session cannot be read; it can only be destroyed"
        )


def _note(session: Session, handle: str) -> None:
    """Take note that a session was found under another handle: somebody has rotated it away."""
    if session.handle != handle:
        session.handle, session.is_stale = handle, True


def _gone() -> SessionGone:
    return SessionGone("the session was destroyed or has expired; nothing was written")
