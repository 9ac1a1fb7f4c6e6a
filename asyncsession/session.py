"""The session: a mapping over what was loaded, which knows what has been changed since.

Values are unpacked when first read. What was handed out is packed again at `save` and its bytes
compared, so that nested changes are noticed without a flag to set.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, MutableMapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from asyncsession.delta import SET_BYTE, apply, review
from asyncsession.errors import InvalidSessionValue
from asyncsession.ids import new_id, session_handle
from asyncsession.log import Log
from asyncsession.merge import Policies, Policy, last_write, three_way
from asyncsession.operations import MISSING
from asyncsession.values import pack, pack_value, unpack

__all__ = ["MAX_PRINCIPAL", "PRINCIPAL", "Change", "Session"]

_NO_POLICIES = Policies({}, three_way)
_FIXED = frozenset((bool, int, float, str, bytes))  # what cannot be changed in place
_RESERVED = "\0"  # what starts with it is ours; session keys of the application may not
PRINCIPAL = _RESERVED + "principal"
MAX_PRINCIPAL = 1024
"""Characters that a principal may have."""


class Change(NamedTuple):
    """What has become of one key since it was loaded.

    Attributes:
        base, ours: its value then and now; `MISSING` for none.
        packed: `ours` as bytes, None for none.
        delta: what leads from `base` to `ours`.
        policy: the key's merge policy.
    """

    base: Any
    ours: Any
    packed: bytes | None
    delta: bytes
    policy: Policy


class Session(MutableMapping[str, Any]):
    """One session as one request sees it. Made by a manager; one task at a time may save it.

    Keys are strings; for values see `asyncsession.values.pack_value`.

    Attributes:
        id: the secret that belongs in the cookie; empty for a session found through its principal.
        handle: a public name of the session, of no use as an id; it changes with rotation.
        incarnation: 8 random bytes, the same through all rotations.
        is_stale: the id was rotated away. Loaded so, the session is a new, anonymous one; rotated
            while this request was under way, its commits land in the successor, and it shows what
            it loaded and did itself. Leave the browser's cookie alone either way.
        is_destroyed: it has ended: destroyed here, or found gone by a save or touch.
        is_current: it is the one that was given as `current` when this list of sessions was made.
        is_unreadable: it was listed, but what is stored cannot be read: it shows nothing, and all
            that can be done is to destroy it.
        is_saving: a commit or refresh of it is under way.
        was_sent: it is stored, or may be, since a commit of it was sent.
        unanswered: the commit that was sent and never answered, if any; the next save finishes it.
        joining: the principal whose index lists the session for a commit that is not confirmed yet,
            and the index's epoch then.
        is_newcomer: it did not belong to that principal before.
    """

    __slots__ = ("__weakref__", "_bases", "_held", "_log", "_policies", "_read", "_read_all",
                 "_seen", "handle", "id", "incarnation", "is_current", "is_destroyed",
                 "is_newcomer", "is_saving", "is_stale", "is_unreadable", "joining", "unanswered",
                 "was_sent")  # fmt: skip

    def __init__(self, session_id: str = "", log: Log | None = None, handle: str = "") -> None:
        self.id = session_id or ("" if handle else new_id())
        self.handle = handle or session_handle(self.id)
        self.incarnation = log.incarnation if log else secrets.token_bytes(8)
        self.is_stale = False
        self.is_destroyed = False
        self.is_current = self.is_unreadable = False
        self.is_saving = False
        self.was_sent = log is not None
        self.unanswered: object = None
        self.joining: tuple[str, bytes] | None = None
        self.is_newcomer = True
        self._log = log
        self._held: dict[str, Any] = {}
        self._bases: dict[str, Any] = {}  # of changes made during a save, which others have met
        self._read: set[str] = set()
        self._read_all = False
        self._seen = 0  # ms, server clock; when it was last touched through this object
        self._policies = _NO_POLICIES

    @classmethod
    def unreadable(cls, handle: str) -> Session:
        """Return what stands for a session in a list that cannot be read."""
        session = cls("", None, handle)
        session.is_unreadable = session.was_sent = True
        return session

    @property
    def log(self) -> Log | None:
        """What is known of the stored session; None if it has never been stored."""
        return self._log

    @property
    def is_behind(self) -> bool:
        """Whether changes made during a save have yet to be put on top of what others did."""
        return bool(self._bases)

    @property
    def is_new(self) -> bool:
        """Whether the session is not in the store yet. An empty new session is never written."""
        return self._log is None and not self.is_unreadable

    @property
    def version(self) -> int:
        """How many commits the session has seen; 0 if new."""
        return self._log.version if self._log else 0

    @property
    def created_at(self) -> datetime | None:
        """When the session was first written, on the server's clock; None if new."""
        return _moment(self._log.created) if self._log else None

    @property
    def expires_at(self) -> datetime | None:
        """When the absolute timeout ends it, whatever happens (ASVS 5.0 7.3.2); None if new."""
        return _moment(self._log.deadline) if self._log else None

    @property
    def last_seen(self) -> datetime | None:
        """When the session was last committed, or its idle timeout put off; None if new.

        On the server's clock. Loads put the timeout off once in a touch interval, a tenth of the
        idle timeout or a minute, whichever is shorter; it is not known to more than that.
        """
        log = self._log
        return _moment(min(max(log.stamp, self._seen), log.deadline)) if log else None

    @property
    def principal(self) -> str | None:
        """Who the session belongs to, such as `"user:42"`; indexed with the next commit."""
        principal: str | None = self._get(PRINCIPAL, None)
        return principal

    @principal.setter
    def principal(self, principal: str | None) -> None:
        if principal is not None and not (isinstance(principal, str) and principal):
            raise InvalidSessionValue("principal", type(principal), "expected a string, or None")
        if principal is not None and len(principal) > MAX_PRINCIPAL:
            reason = f"a principal has at most {MAX_PRINCIPAL} characters"
            raise InvalidSessionValue("principal", str, reason)
        self._held[PRINCIPAL] = MISSING if principal is None else principal

    @property
    def held_principal(self) -> str | None:
        """The principal, without marking it as read."""
        held: str | None = self._held.get(PRINCIPAL, self.stored_principal) or None
        return held

    @property
    def has_joined(self) -> bool:
        """Whether its principal is the stored one, in whose index it is listed."""
        is_held = PRINCIPAL in self._held
        return self.joining is None and not (
            is_held and self.held_principal != self.stored_principal
        )

    @property
    def stored_principal(self) -> str | None:
        """The principal as last loaded or committed."""
        stored = MISSING if self._log is None else self._log.value(PRINCIPAL)
        return None if stored is MISSING else stored or None

    @property
    def modified(self) -> bool:
        """Whether there is anything to save, nested changes included."""
        try:
            return next(self._differences(), None) is not None
        except InvalidSessionValue:
            return True

    def __getitem__(self, key: str) -> Any:
        value = self.get(key, MISSING)
        if value is MISSING:
            raise KeyError(key)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or `default`."""
        is_ours = isinstance(key, str) and not key.startswith(_RESERVED)
        return self._get(key, default) if is_ours else default

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise InvalidSessionValue(key, type(key), "session keys are strings")
        if key.startswith(_RESERVED):
            raise InvalidSessionValue(key, type(key), "a session key may not start with NUL")
        if not (key.isascii() or _is_text(key)):
            raise InvalidSessionValue(key, type(key), "a session key may not hold lone surrogates")
        self._held[key] = value

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self._held[key] = MISSING

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str) or _is_reserved(key):
            return False
        self._read.add(key)
        if key in self._held:
            return self._held[key] is not MISSING
        return self._log is not None and key in self._log

    def __iter__(self) -> Iterator[str]:
        self._read_all = True
        stored = self._log.keys() if self._log else []
        names = dict.fromkeys((*stored, *self._held))
        return iter([name for name in names if name in self])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def clear(self) -> None:
        """Remove every key; the principal stays."""
        self._held |= dict.fromkeys(self, MISSING)

    def __repr__(self) -> str:
        kind = "new" if self.is_new else f"version {self.version}"
        return f"<Session {kind}, stale>" if self.is_stale else f"<Session {kind}>"

    def assign(self, session_id: str) -> None:
        """Take a new id, after a rotation."""
        self.id, self.handle = session_id, session_handle(session_id)

    def restarted(self, log: Log) -> Session:
        """Return this session as `log` has it, with nothing changed, to begin an update again."""
        fresh = Session(self.id, log, self.handle)
        fresh.is_stale = self.is_stale
        return fresh

    def end(self) -> None:
        """Show nothing any more: the session was destroyed."""
        self.is_destroyed, self._log = True, None
        self._held.clear()

    def note_seen(self, stamp: int, trailer: bytes) -> None:
        """Take note of a touch at `stamp`, ms by the server's clock; for both see `Log.touched`."""
        self._seen = stamp
        if self._log is not None:
            self._log = self._log.touched(trailer, stamp)

    def refresh(self, log: Log, policies: Policies) -> None:
        """Show the state of `log`, what has not been saved on top of it."""
        self._policies = policies
        self.settle(log, {})

    def guards(self) -> frozenset[str] | None:
        """Return the keys that have been read or written; None for all, if they were listed."""
        return None if self._read_all else frozenset(self._read.union(self._held))

    def changes(self, policies: Policies) -> dict[str, Change]:
        """Return what has changed since the session was loaded.

        A dict whose keys are only in another order is no change, and gets the stored order back.

        Raises:
            InvalidSessionValue: naming the key and the type that cannot be kept.
        """
        self._policies, changes = policies, {}
        bases, log = self._bases, self._log
        differences = list(self._differences())
        if bases:
            for key in bases.keys() - {key for key, *_ in differences}:
                del bases[key]  # that change was taken back
        for key, ours, packed in differences:
            base = MISSING if log is None else log.value(key)
            if bases:
                base = bases.get(key, base)
            policy = last_write if key[:1] == _RESERVED else policies[key]
            is_scalar = type(ours) in _FIXED and key not in bases
            if packed is not None and is_scalar and policy.sets_scalars:
                delta: bytes | None = SET_BYTE + packed
            else:
                delta = policy.diff(base, ours)
            if delta is not None:
                if packed is not None and policy.resolve:
                    ours = unpack(packed)  # as it is now, whatever becomes of what was handed out
                changes[key] = Change(base, ours, packed, delta, policy)
            elif key not in bases:  # such as a dict whose keys are in another order
                self._held[key] = _refresh(ours, base)
        return changes

    def advance(self, log: Log) -> None:
        """Take note that `log` is what was loaded with what is held here, and nothing else."""
        self._log = log

    def settle(self, log: Log, sent: dict[str, Change]) -> None:
        """Show the state of `log`, in which the changes `sent` have been committed.

        Objects that were handed out stay the ones in the session: they are brought up to date in
        place. What was changed while the commit was under way stays a change.
        """
        before, self._log = self._log, log
        for key in sent:
            self._bases.pop(key, None)
        for key, held in list(self._held.items()):
            stored, change = log.packed(key), sent.get(key)
            if change and held is change.ours and stored == change.packed and type(held) in _FIXED:
                continue
            try:
                packed = None if held is MISSING else pack_value(key, held)
            except InvalidSessionValue:
                continue  # put there during the commit; the next save reports it
            old = change.packed if change else before.packed(key) if before else None
            if packed == old == stored and stored is not None:
                continue
            value = log.value(key)
            if packed != old:
                was = self._bases.get(key, MISSING if old is None else unpack(old))
                policy = last_write if _is_reserved(key) else self._policies[key]
                later = policy.diff(was, held)
                met = later is not None and (old != stored or key in self._bases)
                if later is not None and met and (policy.resolve or review(was, value, later)):
                    self._bases[key] = was  # for the next save to resolve, or to report
                    continue
                self._bases.pop(key, None)  # what is shown now goes on top of what is stored
                target = value if later is None else apply(value, later)
            else:
                self._bases.pop(key, None)
                target = value
            if target is MISSING and value is MISSING:
                del self._held[key]
            elif packed != stored or target is not value:
                self._held[key] = _refresh(held, target)

    def _get(self, key: str, default: Any) -> Any:
        self._read.add(key)
        if key not in self._held:
            value = self._log.value(key) if self._log else MISSING
            if value is MISSING:
                return default
            self._held[key] = value
        value = self._held[key]
        return default if value is MISSING else value

    def _differences(self) -> Iterator[tuple[str, Any, bytes | None]]:
        """Yield each key whose bytes differ from the stored ones, its value and its bytes."""
        log = self._log
        for key, held in self._held.items():
            stored = log.packed(key) if log else None
            packed = None if held is MISSING else pack_value(key, held)
            if packed != stored:
                yield key, held, packed


def _is_reserved(key: object) -> bool:
    return isinstance(key, str) and key.startswith(_RESERVED)


def _is_text(key: str) -> bool:
    try:
        return bool(key.encode())
    except UnicodeEncodeError:
        return False


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _refresh(held: Any, value: Any) -> Any:
    """Return `value`, poured into the containers of `held` where they are alike."""
    if isinstance(held, dict) and isinstance(value, dict):
        fresh = {name: _refresh(held.get(name), item) for name, item in value.items()}
        held.clear()
        held.update(fresh)
        return held
    if isinstance(held, list) and isinstance(value, list):
        mine: dict[bytes, list[Any]] = {}  # dicts and the like, by what they hold
        for item in held:
            if isinstance(item, (dict, list, set)):
                mine.setdefault(pack(item), []).append(item)
        alike = [mine.get(pack(item)) if mine else None for item in value]
        held[:] = [same.pop(0) if same else item for item, same in zip(value, alike, strict=True)]
        return held
    if isinstance(held, set) and isinstance(value, set):
        held.clear()
        held.update(value)
        return held
    return value
