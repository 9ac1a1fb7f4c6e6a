"""Logs as the commit script builds them, and histories of writers who did not see one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from asyncsession import merge
from asyncsession.blob import FORMAT, HEADER_BYTES, Kind, encode_frame, scan
from asyncsession.delta import Op, apply, encode
from asyncsession.log import Log
from asyncsession.merge import Policies
from asyncsession.operations import MISSING
from asyncsession.session import Change, Session
from asyncsession.values import pack_value, unpack
from support.strategies import POLICIES, edited, image, items, numbers, sequences

__all__ = [
    "CREATED",
    "DEADLINE",
    "HEADER",
    "INCARNATION",
    "SESSION_KEYS",
    "SESSION_POLICIES",
    "History",
    "Store",
    "blob",
    "commit_id",
    "compact",
    "frame",
    "header",
    "histories",
    "meaning",
    "set_",
    "small_values",
]

INCARNATION = b"\x01incarn\xff"
CREATED, DEADLINE = 1_700_000_000_000, 1_800_000_000_000
HEADER = HEADER_BYTES
_TRAILER = 22

State = dict[str, Any]


def header(folded: int = 0, *, form: bytes = FORMAT, kind: bytes = Kind.LIVE) -> bytes:
    """Return the header of a blob as the scripts send it: no retired ids follow."""
    numbers = (CREATED, DEADLINE, folded)
    return form + kind + INCARNATION + b"".join(n.to_bytes(6, "big") for n in numbers) + bytes(10)


def set_(value: Any) -> bytes:
    """Return the delta that sets a value."""
    return encode(Op.SET, value)


def commit_id(serial: int) -> bytes:
    """Return the id of the commit with this serial number."""
    return b"commit id " + serial.to_bytes(6, "big")


def frame(changes: dict[str, bytes], serial: int) -> bytes:
    """Return a frame with its trailer; commits are a second apart."""
    return encode_frame(changes) + (CREATED + 1000 * serial).to_bytes(6, "big") + commit_id(serial)


def blob(commits: list[dict[str, bytes]]) -> bytes:
    """Return the blob of a session that has seen these commits, with serial numbers from 1."""
    return header() + b"".join(frame(changes, n) for n, changes in enumerate(commits, 1))


def compact(stored: bytes, length: int, payload: bytes) -> bytes:
    """Replace the first `length` bytes of a log by one frame with this payload."""
    log, folded = stored[HEADER:], int.from_bytes(stored[24:30], "big")
    prefix, tail = log[:length], log[length:]
    body = bytes(2) + payload + prefix[-_TRAILER:]
    folded += len(list(scan(prefix))) - 1
    return header(folded) + len(body).to_bytes(4, "big") + body + tail


def meaning(log: Log) -> Any:
    """Return all that a log says, in a form to compare."""
    state = {key: log.value(key) for key in log.keys()}  # noqa: SIM118  a Log is no mapping
    return image(state), log.version, log.tip, log.stamp, log.created, log.deadline, log.incarnation


@dataclass
class History:
    """Commits, and the state of the session before and after each of them."""

    commits: list[dict[str, bytes]]
    states: list[State]

    def blob(self, length: int | None = None) -> bytes:
        """Return the blob after `length` of the commits."""
        return blob(self.commits[:length])


small_values: st.SearchStrategy[Any] = st.one_of(
    items,
    numbers,
    sequences,
    st.dictionaries(st.sampled_from(["a", "b", 1]), items | sequences, max_size=3),
    st.frozensets(st.integers(0, 5), max_size=4).map(set),
)


@st.composite
def histories(draw: st.DrawFn, keys: str = "abc", max_size: int = 6) -> History:
    """Commits of writers each of whom has loaded the session some time before."""
    history = History([], [{}])
    for _ in range(draw(st.integers(0, max_size))):
        loaded, latest = draw(st.sampled_from(history.states)), dict(history.states[-1])
        changes = {}
        for key in draw(st.sets(st.sampled_from(keys), min_size=1, max_size=2)):
            base = loaded.get(key, MISSING)
            fresh = st.just(MISSING) | small_values
            ours = draw(fresh if base is MISSING else fresh | edited(base, items))
            delta = draw(st.sampled_from(POLICIES)).diff(base, ours)
            if delta is None:
                continue
            changes[key] = delta
            latest[key] = apply(latest.get(key, MISSING), delta)
            if latest[key] is MISSING:
                del latest[key]
            else:
                latest[key] = unpack(pack_value(key, latest[key]))
        history.commits.append(changes)
        history.states.append(latest)
    return history


SESSION_KEYS = st.sampled_from(["a", "b", "views", "tags", ""])
SESSION_POLICIES = Policies({"views": merge.counter, "tags": merge.union}, merge.three_way)


class Store:
    """One session's log as Redis would hold it, and commits as the machine makes them."""

    def __init__(self, **state: Any) -> None:
        self.commits = 1
        self.blob = blob([{key: set_(value) for key, value in state.items()}])

    def load(self) -> Session:
        """Return the session as one request loads it."""
        return Session("", Log.parse(self.blob), "{abc}:handle")

    def state(self) -> dict[str, Any]:
        """Return what is stored."""
        log = Log.parse(self.blob)
        return {key: log.value(key) for key in log.keys()}  # noqa: SIM118

    def save(self, session: Session, during: Callable[[], object] = lambda: None) -> set[str]:
        """Commit what has changed, with `during` while the commit is under way."""
        sent = session.changes(SESSION_POLICIES)
        if sent:
            self.commit(sent)
            during()
            self.settle(session, sent)
        return set(sent)

    def commit(self, sent: dict[str, Change]) -> None:
        """Append a frame."""
        self.commits += 1
        self.blob += frame({key: change.delta for key, change in sent.items()}, self.commits)

    def settle(self, session: Session, sent: dict[str, Change]) -> None:
        """Have a session take in all it has not seen."""
        assert session.log is not None
        log = session.log
        session.settle(log.extended(self.blob[HEADER + log.length :]), sent)

    def other(self, **state: Any) -> None:
        """Somebody else sets keys."""
        session = self.load()
        session.update(state)
        self.save(session)
