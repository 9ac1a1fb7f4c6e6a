"""One commit in the making: its frame, how it meets what others did, and what is there after it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Final

from asyncsession.blob import HEADER_BYTES, Kind, before, encode_frame, head, key_tag
from asyncsession.delta import SET_BYTE, Op, Review, encode, review
from asyncsession.errors import InvalidSessionData, SessionConflict, SessionGone
from asyncsession.ids import checked_handle, session_handle
from asyncsession.log import Log
from asyncsession.machine import Budget, Reply, Settings, give_up
from asyncsession.merge import Refused
from asyncsession.operations import MISSING, same
from asyncsession.outcome import Commit
from asyncsession.protocol import Code
from asyncsession.session import PRINCIPAL, Change, Session
from asyncsession.size import HEADROOM, public_name, room_for, too_large
from asyncsession.values import pack, pack_value, unpack

__all__ = ["Draft"]

ROTATION_GRACE: Final = 120.0
"""Seconds for which commits of requests that loaded before a rotation find the successor: longer
than web servers and proxies let a request run by default (nginx 60, gunicorn 30). The commit script
repeats this number; a test compares."""

_ADD: Final = int(Op.ADD)
_MAX_HOPS: Final = 16  # rotations one commit follows


class Draft:
    """One commit in the making: its changes, and the log they are based on."""

    __slots__ = ("_deltas", "_fates", "_folded", "_frame", "_guarded_principal", "_id", "_issued",
                 "_log", "_room", "_snapshot", "attempts", "changes", "handle", "has_landed",
                 "hops", "is_guarded", "new_id", "reloaded", "sent", "serial", "session",
                 "settings", "stale")  # fmt: skip

    def __init__(
        self, settings: Settings, session: Session, new_id: str | None, serial: bool
    ) -> None:
        self.settings = settings
        self.session = session
        self.new_id = new_id
        self.serial = serial
        self.sent = session.changes(settings.policies)
        self.changes = dict(self.sent)
        self.is_guarded = any(it.policy.resolve for it in self.sent.values())
        self.handle = session.handle
        self.stale = session.is_stale and not session.is_new
        self.attempts = self.hops = 0
        self.reloaded = self.has_landed = False
        self._log = session.log
        self._deltas: dict[str, bytes] = {}
        self._frame = self._snapshot = b""
        self._folded: Log | None = None  # the log after its compaction, if it is compacted
        self._room = settings.max_bytes
        self._fates: dict[str, Review] = {}
        self._guarded_principal = False

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.changes) or self.new_id is not None or self.has_landed

    def stamp(self) -> None:
        """Give the commit an id and a time, both of which it keeps through all its retries."""
        self._id = os.urandom(16)
        self._issued = self.settings.clock.now() or 0

    def base_log(self) -> Log:
        """Return the log that the changes are based on."""
        assert self._log is not None  # only asked after a conflict, and a new session has none
        return self._log

    def keys(self) -> tuple[str, ...]:
        """Return the Redis keys of the commit."""
        handles = [self.handle]
        if self.new_id is not None:
            handles.append(session_handle(self.new_id))
        return tuple(map(self.settings.key, handles))

    def arguments(self) -> tuple[bytes | str | int, ...]:
        """Return the script's arguments.

        Raises:
            SessionTooLarge: the session would be, and this commit does not make it smaller.
        """
        log, settings = self._log, self.settings
        self._deltas = {key: change.delta for key, change in self.changes.items()}
        self._frame = encode_frame(self._deltas, is_first=log is None)
        self._room, is_full = room_for(self._frame, log, settings.max_bytes, self._own_log)
        fold = is_full or self.reloaded or (log and log.claim_compaction())
        self._folded, self._snapshot = None, b""
        if log is not None and log.length and fold:
            self._folded, self._snapshot = log.compacted()
        base = b"" if log is None else log.base
        terms = b"".join((
            self._id,
            head(Kind.LIVE, self.session.incarnation),
            (0 if self.has_landed else self._issued).to_bytes(6, "big"),
            settings.terms,
            (self._room * HEADROOM).to_bytes(4, "big"),
            base,
            self._guards() if base else b"",
        ))  # fmt: skip
        if self.new_id is not None:
            return terms, self._frame, self._snapshot, session_handle(self.new_id)
        return (terms, self._frame, self._snapshot) if self._snapshot else (terms, self._frame)

    @property
    def is_privileged(self) -> bool:
        """Whether it would give the session another id or another principal."""
        return self.new_id is not None or PRINCIPAL in self.changes

    def is_in(self, log: bytes) -> bool:
        """Tell whether a copy of this commit has got into a log."""
        return self._id in log

    def catch_up(self) -> None:
        """Resolve changes that were made during the last save, against what that brought.

        Raises:
            SessionConflict: a policy refuses to; or what a merge function raises.
        """
        if self.session.is_behind and self._log is not None:
            self.rebase(self._log)

    def fast_forward(self) -> None:
        """Start from what others of this process have seen of the session since it was loaded.

        Their commits then need not come over the wire again. Only for changes that nobody can
        refuse: others depend on what was there when the session was loaded. All may know that it
        was seen since.
        """
        log, latest = self._log, self.settings.cache.get(self.handle)
        if latest is None or log is None or not self.is_needed:
            return
        is_newer = (latest.version, latest.stamp) > (log.version, log.stamp)
        if is_newer and (
            latest.is_same(log) or not (self.serial or self.is_privileged or self.guarded())
        ):
            self._log = latest

    def guarded(self) -> list[str]:
        """Return the changed keys whose policy has to see what others did."""
        if not self.is_guarded:
            return []
        return [key for key, change in self.changes.items() if change.policy.resolve]

    def theirs(self, reply: Reply) -> Log:
        """Return the log as others have left it, from a conflict's reply."""
        log, tail = self._at_base(reply)
        return log.extended(tail, self.settings.cache.get(self.handle))

    def rebase(self, log: Log) -> None:
        """Put the changes on top of what others did.

        Raises:
            SessionConflict: a policy refuses to; or what a merge function raises.
        """
        refused = []
        for key in self.guarded():
            change = self.changes[key]
            theirs = log.value(key)
            if same(change.base, theirs) or change.policy.resolve is None:
                continue
            try:  # on copies: it may change what it is given, and may be called again
                ours = change.policy.resolve(_own(change.base), _own(change.ours), _own(theirs))
            except Refused:
                refused.append(key)
                continue
            self._resolve(key, ours, theirs)
        if self._guarded_principal and not same(log.value(PRINCIPAL), self._principal()):
            refused.append("principal")
        if refused:
            raise SessionConflict("changed by somebody else meanwhile", refused)
        self._log = log

    def reload(self, log: Log) -> None:
        """Put the changes on top of a log as a load tells it; raises what `rebase` raises.

        That does not tell the ids of folded commits, and a lost copy of this one may be among them.
        So the next attempt folds the log: for a snapshot the script looks through all there is.
        """
        self.reloaded = True
        self.rebase(log)

    def move(self, reply: Reply) -> None:
        """Turn to the successor that a tombstone names.

        Raises:
            InvalidSessionData: it names none.
            SessionConflict: there were too many already.
        """
        self.hops += 1
        if self.hops > _MAX_HOPS:
            raise SessionConflict("the session is rotated faster than a commit can follow")
        self.settings.cache.drop(self.handle)
        self.handle = checked_handle(reply.data)
        self.stale = True

    def land(self) -> None:
        """Take note that a copy of this commit was found in the log of the successor.

        What is sent from now on is so old that the script does not do it, but says that it is done.
        """
        self.new_id = None
        self.has_landed = True

    def yield_privilege(self, log: Log) -> None:
        """Give up rotating and changing the principal, in favour of whoever was faster.

        Raises:
            SessionConflict: the principal is another one; or what else `rebase` raises. The draft
                is as privileged as before then, so that it cannot pass when it is tried again.
        """
        self._guarded_principal = True
        principal = self.changes.pop(PRINCIPAL, None)
        try:
            self.reload(log)
        except BaseException:
            if principal is not None:
                self.changes[PRINCIPAL] = principal
            raise
        self.new_id = None

    def finish(self, reply: Reply | None) -> Commit:
        """Settle the session on what is stored now."""
        if reply is not None and self._is_undisturbed(reply):
            return self._advanced(reply)
        try:
            log = self._settled(reply) if reply else self._log
            private = self.stale
        except InvalidSessionData:  # ours is in; what another wrote beside it is of a newer version
            log, private = None, True
        if private and self.session.log is not None:
            # Dropped or not: what the successor had is not shown, and may have been folded away.
            own = {key: it.delta for key, it in self.sent.items()}
            self._frame, log = encode_frame(own), self.session.log
            log = log.extended(self._own_frame(reply.now if reply else log.stamp)).detached()
        if log is not None:
            self.session.settle(log, self.sent)
        if self.new_id is None:
            self.session.handle = self.handle
        else:
            self.session.assign(self.new_id)
            self.settings.cache.drop(self.handle)
        if log is not None and log.length:
            self.settings.cache.put(self.session.handle, log)
        self.session.is_stale = self.stale or self.session.is_stale
        version = log.version if log else 0
        if not self._fates:
            return Commit(version, self.attempts)
        fates = {public_name(key): fate for key, fate in self._fates.items()}
        return Commit.reviewed(version, self.attempts, fates)

    def failure(self, reply: Reply, budget: Budget) -> Exception:
        """Return the error that a refusal stands for."""
        age = (self.settings.clock.now() or 0) - self._issued
        if reply.code is Code.GONE and budget.unsure and age > ROTATION_GRACE * 1000:
            return give_up(budget)  # it may have been done, and the session rotated since
        if reply.code is Code.GONE:
            self.settings.cache.drop(self.handle)
            self.session.is_stale = self.stale or self.session.is_stale  # gone under another id
            return SessionGone("the session was destroyed or has expired; nothing was written")
        if reply.code is Code.TOO_LARGE and not budget.unsure:
            return too_large(int(reply.data), self._own_log().sizes(), self.settings.max_bytes)
        return give_up(budget)

    def _is_undisturbed(self, reply: Reply) -> bool:
        """Tell whether all is as when it was loaded, but for this commit."""
        return (
            reply.code is Code.OK
            and not reply.data
            and not self._fates
            and not self.stale
            and self.new_id is None
            and self._log is self.session.log is not None
            and not self.session.is_behind
        )

    def _advanced(self, reply: Reply) -> Commit:
        """Put the changes on top of what the session was based on; nobody else was there."""
        for key, delta in self._deltas.items():
            if delta[0] == _ADD and (packed := self.changes[key].packed) is not None:
                self._deltas[key] = SET_BYTE + packed  # the sum is known
        log = self._left(self.base_log(), reply).appended(self._deltas, self._own_frame(reply.now))
        for key, change in self.sent.items():
            if log.packed(key) != change.packed:  # such as a dict with its keys in another order
                self.session.settle(log, self.sent)
                break
        else:
            self.session.advance(log)
        self.settings.cache.put(self.handle, log)
        return Commit(log.version, self.attempts)

    def _at_base(self, reply: Reply) -> tuple[Log, bytes]:
        """Return the log that a reply goes on from, and how."""
        if not reply.found or self._log is None:
            return Log.parse(reply.data[:HEADER_BYTES]), reply.data[HEADER_BYTES:]
        log, tail = self._log.moved(reply.data) if reply.found > 1 else (self._log, reply.data)
        return self._left(log, reply), tail

    def _left(self, log: Log, reply: Reply) -> Log:
        """Return what this commit was based on, as it has left that."""
        return self._folded if self._folded is not None and reply.code is Code.OK else log

    def _settled(self, reply: Reply) -> Log:
        """Return the log with everything in it, and note how each change met those of others."""
        log, tail = self._at_base(reply)
        is_ours = self._log is self.session.log and not self.session.is_behind
        is_done_now = reply.code is Code.OK
        split = len(tail)
        if not is_done_now:
            split = before(tail, self._id)
            if split == 0 and not reply.found and log.version:  # a snapshot with our id on it
                split = len(tail)
        log = log.extended(tail[:split], self.settings.cache.get(self.handle))
        if (split or not is_ours) and not self.session.is_new:
            self._review(log, seen=is_done_now or split < len(tail))
        if is_done_now:
            return log.appended(self._deltas, self._own_frame(reply.now))
        return log.extended(tail[split:])

    def _review(self, theirs: Log, *, seen: bool) -> None:
        for key, change in self.changes.items():
            if not seen:  # applied by an earlier copy and folded since: nobody can tell any more
                if change.delta[0] in (Op.SET, Op.DELETE, Op.CREATE, Op.PATCH):
                    self._fates[key] = Review.OVERWRITTEN
                continue
            value = theirs.value(key)
            if not same(change.base, value):
                fate, met = review(change.base, value, change.delta), self._fates.get(key)
                self._fates[key] = fate if met is None else fate | met

    def _resolve(self, key: str, ours: Any, theirs: Any) -> None:
        change = self.changes.pop(key)
        packed = None if ours is MISSING else pack_value(key, ours)
        self._fates[key] = Review.MERGED
        if same(ours, theirs):
            if not same(ours, change.ours):
                self._fates[key] = Review.DROPPED
            return
        delta = encode(Op.DELETE) if ours is MISSING else encode(Op.SET, ours)
        self.changes[key] = Change(theirs, ours, packed, delta, change.policy)

    def _guards(self) -> bytes:
        if self._log is None or not (self.is_guarded or self.serial or self._guarded_principal):
            return b""
        keys: Iterable[str] = self.guarded()
        if self._guarded_principal:
            keys = (*keys, PRINCIPAL)
        if self.serial:
            seen = self.session.guards()
            if seen is None:
                return b"*"
            keys = seen.union(keys)
        return b"".join(map(key_tag, keys))

    def _principal(self) -> Any:
        if PRINCIPAL in self.sent:
            return self.sent[PRINCIPAL].ours
        return self.session.log.value(PRINCIPAL) if self.session.log else MISSING

    def _own_log(self) -> Log:
        """Return the log with this commit's frame in it, for its sizes."""
        log = self._log or Log(self.session.incarnation, 0, 0, 0)
        return log.extended(self._own_frame(0))

    def _own_frame(self, now: int) -> bytes:
        return self._frame + max(now, self._issued).to_bytes(6, "big") + self._id


def _own(value: Any) -> Any:
    return value if value is MISSING else unpack(pack(value))
