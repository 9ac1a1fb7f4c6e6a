"""The commit machine: what to send to get one session's changes into its log, exactly once.

It does no I/O. It yields calls and is sent replies (`asyncsession.protocol`), so the same rules
serve an event loop and a blocking client.

Why it is exactly once. A commit keeps its random id through all retries, and the script does
nothing for an id that is in the log. Ids leave the log only by being folded into a snapshot, and
are then remembered for `RETRY_HORIZON`. A copy of the request that the server sees later than
`COMMIT_WINDOW` after it was first sent is refused, so it cannot outlive the memory of its id.

Why a refused commit is definite although a lost copy of it may still be under way: a conflict on
guarded keys stays one for that base for ever, and a session that is gone stays gone. Where the
refusal could pass (too large, not available) the outcome is unknown and said to be.
"""

from __future__ import annotations

from typing import Final

from asyncsession.draft import Draft
from asyncsession.errors import CommitOutcomeUnknown, SessionConflict
from asyncsession.handles import LOOK
from asyncsession.log import Log
from asyncsession.machine import Budget, Reply, Settings, definite, send
from asyncsession.outcome import Commit, Rerun
from asyncsession.protocol import Code, Machine, Queue
from asyncsession.session import Session

__all__ = ["commit"]

_OK: Final = Code.OK  # as a name of the module: enumerations are slow to look up in
_MAX_ATTEMPTS: Final = 100  # conflicts in a row; by then the deadline is held open for nothing


def commit(settings: Settings, budget: Budget, session: Session, *, new_id: str | None = None,
           serial: bool = False) -> Machine[Commit | Rerun]:  # fmt: skip
    """Commit what has changed in a session.

    A commit that was sent and never answered is finished first, under its own id: saving again
    after `CommitOutcomeUnknown`, or after a save was cancelled, does nothing twice. A rotation that
    is finished so is the one that is asked for.

    Args:
        settings: the manager's.
        budget: the time for it.
        session: settled on the merged state afterwards; unchanged where this raises.
        new_id: the id to move the session to, for a rotation.
        serial: guard every key that was read or written, and return `Rerun` on a conflict.

    Raises:
        SessionConflict, SessionGone, SessionTooLarge, StoreUnavailable, InvalidSessionValue,
        InvalidSessionData: definite; nothing was written.
        CommitOutcomeUnknown: no answer came.
    """
    first, unanswered = None, session.unanswered
    if isinstance(unanswered, Draft):
        budget.unsure = True
        first = yield from _complete(settings, budget, unanswered)
        budget.unsure = False
        if unanswered.new_id is not None:
            new_id = None
    draft = Draft(settings, session, new_id, serial)
    if first is not None and not draft.is_needed:
        return first
    if settings.clock.now() is None:
        yield from _peek(settings, budget, draft.handle)
    if draft.is_guarded and not (serial or session.is_new):
        yield from _queue(settings, budget, draft)
    draft.stamp()
    draft.catch_up()
    draft.fast_forward()
    last = yield from _complete(settings, budget, draft)
    if isinstance(first, Commit) and isinstance(last, Commit):
        return first.followed_by(last)
    return last


def _complete(settings: Settings, budget: Budget, draft: Draft) -> Machine[Commit | Rerun]:
    """Carry a draft through, and have the session remember it for as long as it is unanswered."""
    session = draft.session
    try:
        outcome = yield from _attempt(settings, budget, draft)
    except (CommitOutcomeUnknown, GeneratorExit):
        session.unanswered = draft if draft.attempts else None
        raise
    except BaseException:
        session.unanswered = None
        raise
    session.unanswered = None
    return outcome


def _attempt(settings: Settings, budget: Budget, draft: Draft) -> Machine[Commit | Rerun]:
    while draft.is_needed:
        if draft.stale and draft.is_privileged and not draft.has_landed:
            yield from _yield_privilege(settings, budget, draft)
            continue
        draft.attempts += 1
        draft.session.was_sent = True
        with definite(budget):
            arguments = draft.arguments()
        reply = yield from send(settings, budget, "commit", draft.keys(), *arguments)
        if reply.code is _OK:
            return draft.finish(reply)
        match reply.code:
            case Code.APPLIED:
                return draft.finish(reply)
            case Code.CONFLICT:
                budget.unsure = False  # whatever copy is still under way meets the same conflict
                if draft.serial and draft.stale:
                    raise SessionConflict("the session was rotated meanwhile")
                theirs = draft.theirs(reply)
                if draft.serial and not _is_as_read(draft, theirs):
                    return Rerun(theirs)
                draft.rebase(theirs)
                pause = budget.pause() if draft.attempts < _MAX_ATTEMPTS else None
                if pause is None:
                    raise SessionConflict("others kept changing the session", draft.guarded())
                yield pause
            case Code.MOVED:
                with definite(budget):
                    draft.move(reply)
            case Code.TOO_LARGE if not draft.reloaded:
                draft.reloaded = True
                found = yield from _peek(settings, budget, draft.handle)
                # else the next attempt says what has become of it
                if found.code is Code.OK and not draft.is_in(found.data):
                    with definite(budget):
                        draft.reload(Log.parse(found.data))
            case Code.LATE if not budget.unsure and draft.attempts < _MAX_ATTEMPTS:
                pause = budget.pause()
                if pause is None:
                    raise draft.failure(reply, budget)
                # The server's clock has moved; this copy was not done, so begin anew: by the clock
                # of this reply, since after the pause another node of a cluster may have answered.
                draft.stamp()
                yield pause
            case _:
                raise draft.failure(reply, budget)
    return draft.finish(None)


def _is_as_read(draft: Draft, theirs: Log) -> bool:
    """Tell whether what a serial commit depends on is what it was: others may have just looked."""
    log, keys = draft.base_log(), draft.session.guards()
    if keys is None:
        keys = frozenset((*log.keys(), *theirs.keys()))
    return all(log.packed(key) == theirs.packed(key) for key in keys)


def _queue(settings: Settings, budget: Budget, draft: Draft) -> Machine[None]:
    """Let commits of this process that this one could collide with pass, and start from there."""
    has_waited = yield Queue(draft.handle, budget.call_timeout())
    if has_waited:
        found = yield from _peek(settings, budget, draft.handle)
        if found.code is Code.OK:  # else the commit says what has become of it
            draft.rebase(Log.parse(found.data))


def _yield_privilege(settings: Settings, budget: Budget, draft: Draft) -> Machine[None]:
    """Make a plain commit of one that finds its session rotated by another request.

    The successor's id belongs to whoever rotated it, and that need not be the client of this
    request (session fixation). So a second rotation is none, and a change of principal is refused
    unless the successor has the very same one. A commit that was done already stays what it was.
    """
    while (reply := (yield from _peek(settings, budget, draft.handle))).code is Code.MOVED:
        with definite(budget):
            draft.move(reply)
    if reply.code is not Code.OK:
        raise draft.failure(reply, budget)
    if draft.is_in(reply.data):
        draft.land()
        return
    with definite(budget):
        draft.yield_privilege(Log.parse(reply.data))


def _peek(settings: Settings, budget: Budget, handle: str) -> Machine[Reply]:
    with definite(budget):  # it is the commit's own session that is looked at
        return (yield from send(settings, budget, "load", (settings.key(handle),), *LOOK))
