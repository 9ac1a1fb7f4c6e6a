"""The verbs of a manager, as machines: load, save, rotate, touch, destroy, and those by principal.

The index of a principal lives in another Cluster slot than the sessions it lists, so the two are
never written in one step. Joining therefore goes: list the session, commit, confirm that nobody
has revoked the principal's sessions in between, and end the session if somebody has.
"""

from __future__ import annotations

from asyncsession.blob import FORMAT, Kind, Log, head
from asyncsession.commit import commit
from asyncsession.draft import Commit, Rerun
from asyncsession.errors import CommitOutcomeUnknown, InvalidSessionData, SessionError, SessionGone
from asyncsession.ids import is_session_id, session_handle, sibling_id
from asyncsession.machine import RETRY_HORIZON, Budget, Reply, Settings, send
from asyncsession.protocol import Code, Machine
from asyncsession.session import Session

__all__ = [
    "destroy",
    "destroy_all",
    "load",
    "rotate",
    "save",
    "save_serial",
    "sessions_of",
    "touch",
]

_TOUCHES = 10  # the idle timeout is put off once in a tenth of it, and at least once a minute
_LONGEST_TOUCH = 60_000  # ms
_HORIZON = round(RETRY_HORIZON * 1000)
_MAGIC = FORMAT[:2]


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
    interval = min(settings.idle // _TOUCHES, _LONGEST_TOUCH)
    budget = Budget(settings.timeout)
    key = (settings.key(handle),)
    reply = yield from send(settings, budget, "load", key, FORMAT, settings.idle, interval)
    if reply.code is Code.OK:
        return Session(session_id, Log.parse(reply.data), handle)
    session = Session()
    session.is_stale = reply.code is Code.MOVED
    return session


def save(settings: Settings, session: Session, new_id: str | None = None) -> Machine[Commit]:
    """Commit what has changed in `session`, and move it to `new_id` in the same step if given."""
    outcome = yield from _exclusively(settings, session, new_id, serial=False)
    assert isinstance(outcome, Commit)
    return outcome


def save_serial(settings: Settings, session: Session) -> Machine[Commit | Rerun]:
    """Commit `session` only if nothing that was read or written in it has changed meanwhile."""
    return _exclusively(settings, session, None, serial=True)


def rotate(settings: Settings, session: Session) -> Machine[Commit]:
    """Give `session` a new id, and commit its unsaved changes in the same step."""
    if session.is_new and not session.was_sent and not session.is_destroyed:
        session.assign(sibling_id(session.id))
        session.is_stale = False  # this begins a session of its own, which deserves its cookie
        return (yield from save(settings, session))
    if session.is_stale or not session.id:
        return (yield from save(settings, session))  # the id is another's to change
    return (yield from save(settings, session, sibling_id(session.id)))


def touch(settings: Settings, session: Session) -> Machine[None]:
    """Put off the idle timeout of a session that is in use and has nothing to save."""
    if session.is_new:
        return
    live = head(Kind.LIVE, session.incarnation)
    handle, budget = session.handle, Budget(settings.timeout)
    while True:
        reply = yield from send(
            settings, budget, "touch", (settings.key(handle),), live, settings.idle
        )
        if reply.code is not Code.MOVED:
            break
        handle = _successor(reply)
    if reply.code is not Code.OK:
        session.is_destroyed = True
        raise _gone()


def destroy(settings: Settings, target: Session | str) -> Machine[None]:
    """End a session for good; no request still under way can bring it back."""
    budget = Budget(settings.timeout)
    if isinstance(target, str):
        if is_session_id(target):
            key = (settings.key(session_handle(target)),)
            yield from send(settings, budget, "destroy", key, _MAGIC, _HORIZON)
        return
    if target.was_sent:
        yield from _end(settings, budget, target.handle, target.incarnation)
    target.end()


def sessions_of(settings: Settings, principal: str) -> Machine[list[Session]]:
    """Return the live sessions of a principal, and prune the index of those that are no more."""
    budget = Budget(settings.timeout)
    index = (settings.index(principal),)
    listed = yield from send(settings, budget, "index", index, "list", "", "", "")
    sessions: dict[bytes, Session] = {}  # by incarnation: a rotated one may be listed twice
    for entry, score in zip(listed.data[::2], listed.data[1::2], strict=True):
        session = yield from _find(settings, budget, entry.decode("ascii"))
        if session is not None and session.stored_principal == principal:
            sessions[session.incarnation] = session
        elif float(score) - settings.absolute < listed.now - _HORIZON:  # else it may be joining
            yield from send(settings, budget, "index", index, "drop", entry, score, "")
    return list(sessions.values())


def destroy_all(settings: Settings, principal: str, keep: Session | None = None) -> Machine[int]:
    """End all sessions of a principal, also those that are joining right now; return how many."""
    budget = Budget(settings.timeout)
    index = (settings.index(principal),)
    listed = yield from send(settings, budget, "index", index, "revoke", "", _HORIZON, "")
    ended = set()
    for entry, score in zip(listed.data[::2], listed.data[1::2], strict=True):
        handle = entry.decode("ascii")
        try:
            session = yield from _find(settings, budget, handle)
            owner = None if session is None else session.stored_principal
        except InvalidSessionData:  # of a newer version, or corrupt: it is listed, so it ends
            yield from send(settings, budget, "destroy", (settings.key(handle),), _MAGIC, _HORIZON)
            ended.add(entry)
            continue
        if session is not None and owner == principal:
            if keep is not None and session.incarnation == keep.incarnation:
                continue
            yield from _end(settings, budget, session.handle, session.incarnation)
            ended.add(session.incarnation)
        elif float(score) - settings.absolute >= listed.now - _HORIZON:
            continue  # it may be joining, and then it has to stay on the list
        yield from send(settings, budget, "index", index, "drop", entry, score, "")
    return len(ended)


def _exclusively(
    settings: Settings, session: Session, new_id: str | None, *, serial: bool
) -> Machine[Commit | Rerun]:
    if session.is_destroyed:
        raise _gone()
    if session.is_saving:
        raise SessionError("this Session is being saved by another task; load one for each")
    session.is_saving = True
    try:
        return (yield from _joining(settings, session, new_id, serial=serial))
    except SessionGone:
        session.is_destroyed = True
        raise
    finally:
        session.is_saving = False


def _joining(
    settings: Settings, session: Session, new_id: str | None, *, serial: bool
) -> Machine[Commit | Rerun]:
    """Commit, and keep the index of the session's principal in step."""
    budget = Budget(settings.timeout)
    budget.unsure = session.unanswered is not None
    principal, handle, was_new = session.held_principal, session.handle, session.is_new
    before, epoch = session.joining, None
    if principal is not None and (principal != session.stored_principal or new_id or before):
        joined = handle if new_id is None else session_handle(new_id)
        listed = yield from _list(settings, budget, session, principal, joined)
        epoch = before[1] if before and before[0] == principal else listed.data[0]
        session.joining = principal, epoch
    try:
        outcome = yield from commit(settings, budget, session, new_id=new_id, serial=serial)
    except CommitOutcomeUnknown:
        raise
    except SessionError:
        session.joining = before
        raise
    was_forwarded = session.is_stale and not was_new
    if not isinstance(outcome, Commit) or was_forwarded:
        session.joining = None
        return outcome
    budget.unsure = True  # it is committed; that it may stay is not yet known
    if principal is not None and epoch is not None:
        confirmed = yield from _list(settings, budget, session, principal, session.handle, epoch)
        if confirmed.code is Code.GONE:
            yield from _end(settings, budget, session.handle, session.incarnation)
            session.end()
            raise SessionGone("all sessions of this principal were ended meanwhile")
    owner = session.stored_principal
    if session.handle != handle and owner is not None and owner != principal:
        yield from _list(settings, budget, session, owner, session.handle)  # a login met a rotation
    session.joining = None
    return outcome


def _list(settings: Settings, budget: Budget, session: Session, principal: str, handle: str,
          epoch: bytes = b"") -> Machine[Reply]:  # fmt: skip
    """Put a session on the list of a principal's, for as long as it may last at the most."""
    lasts, now = settings.absolute, settings.clock.now()
    if session.log is not None and now is not None:
        lasts = max(lasts, session.log.deadline - now)
    index = (settings.index(principal),)
    return (yield from send(settings, budget, "index", index, "add", handle, lasts, epoch))


def _find(settings: Settings, budget: Budget, handle: str) -> Machine[Session | None]:
    """Return the live session at a handle or where it has moved, without touching it."""
    while True:
        reply = yield from send(settings, budget, "load", (settings.key(handle),), FORMAT, 0, 0)
        if reply.code is not Code.MOVED:
            break
        handle = _successor(reply)
    if reply.code is not Code.OK:
        return None
    return Session("", Log.parse(reply.data), handle)


def _end(settings: Settings, budget: Budget, handle: str, incarnation: bytes) -> Machine[None]:
    """Leave a tombstone, following rotations: whoever logs out means the session, not the id."""
    tombstone = head(Kind.DESTROYED, incarnation)
    while True:
        reply = yield from send(
            settings, budget, "destroy", (settings.key(handle),), tombstone, _HORIZON
        )
        if reply.code is not Code.MOVED:
            return
        handle = _successor(reply)


def _successor(reply: Reply) -> str:
    handle: str = reply.data.decode("ascii", "replace")
    return handle


def _gone() -> SessionGone:
    return SessionGone("the session was destroyed or has expired; nothing was written")
