"""What is fuzzed: each target takes bytes of an attacker's choice and may fail in one way only.

`tests/test_hostile_input.py` feeds them with Hypothesis, in the default run; `tests/fuzz/run.py`
with a fuzzer that is guided by coverage.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from asyncsession import SessionManager, SyncSessionManager, merge
from asyncsession.blob import FORMAT, HEADER_BYTES, Kind, encode_frame, scan
from asyncsession.delta import apply, review
from asyncsession.errors import ConfigurationError, InvalidSessionData, InvalidSessionValue
from asyncsession.ids import checked_handle, is_session_id
from asyncsession.integrations.cookies import Cookie
from asyncsession.integrations.headers import Header
from asyncsession.log import Log
from asyncsession.merge import Policies
from asyncsession.operations import MISSING
from asyncsession.session import Session
from asyncsession.values import pack, pack_value, unpack

__all__ = ["TARGETS"]

_HEAD = FORMAT + Kind.LIVE + b"incarnat" + bytes(5) + b"\x01" + bytes(5) + b"\x02" + bytes(16)
_POLICIES = Policies({"n": merge.counter, "s": merge.union}, merge.three_way)


def a_value(data: bytes) -> None:
    """Read it; what could be read can be written, and is the same then."""
    with suppress(InvalidSessionData):
        value = unpack(data)
        with suppress(InvalidSessionValue):  # such as a list of too many sets, or of a Timestamp
            packed = pack_value("key", value)
            assert pack(unpack(packed)) == packed


def a_delta(data: bytes) -> None:
    """Apply it to values of each kind, and review that."""
    for current in (MISSING, 1, 1.5, "a", [1, "a"], {"a": 1, "b": [1]}, {1, "a"}, b"x"):
        with suppress(InvalidSessionData):
            if data:
                apply(current, data)
                review(MISSING, current, data)


def a_log(data: bytes) -> None:
    """Do with a blob all that a request may."""
    assert len(_HEAD) == HEADER_BYTES
    with suppress(InvalidSessionData):
        log = Log.parse(data)
        session = Session("", log, "handle")
        for use in (log.keys, log.sizes, log.compacted, session.keys, lambda: session.principal):
            with suppress(InvalidSessionData):
                use()
        for key in list(log._chains):
            with suppress(InvalidSessionData):
                log.value(key)
        with suppress(InvalidSessionData):
            _change(session)


def _change(session: Session) -> None:
    for key in list(session):
        if isinstance(session[key], (dict, list)):
            session[key].clear()
    session["n"] = 1
    with suppress(InvalidSessionValue):
        sent = session.changes(_POLICIES)
        log = session.log
        assert log is not None
        session.settle(log, sent)


def a_body(data: bytes) -> None:
    """The same, behind a header that is in order."""
    a_log(_HEAD + data)


def a_frame(data: bytes) -> None:
    """The same, for the payload of a frame of the right length."""
    body = bytes(2) + data + bytes(22)
    a_log(_HEAD + len(body).to_bytes(4, "big") + body)
    with suppress(InvalidSessionData):
        list(scan(data))


def a_history(data: bytes) -> None:
    """The same, for a log of commits: key and operation in a byte, a length, an operand."""
    log, at = b"", 0
    while at + 2 <= len(data):
        key, op, length = "nsab"[data[at] >> 6], data[at] & 15, data[at + 1]
        changes = {key: bytes((op,)) + data[at + 2 : at + 2 + length]}
        log += encode_frame(changes) + bytes(6) + at.to_bytes(16, "big")
        at += 2 + length
    a_log(_HEAD + log)


_COOKIE, _NAMED = Cookie(), Cookie(name="s", secure=False)
_HEADERS = (Header(), Header("X-Id"))


def a_request(data: bytes) -> None:
    """Look for an id in headers; what is found has the form of one."""
    name, _, value = data.partition(b"\n")
    raw = [(b"cookie", data), (b"Cookie", value), (name, value), (b"authorization", data)]
    for carrier in (_COOKIE, _NAMED, *_HEADERS):
        for headers in (raw, raw[:1], raw[1:2], raw[2:3], raw[3:], [(b"x-id", data)]):
            found = carrier.read(headers)
            assert found is None or is_session_id(found)


def a_handle(data: bytes) -> None:
    """Read the mark of a rotated session."""
    with suppress(InvalidSessionData):
        assert len(checked_handle(data)) == 49


def a_url(data: bytes) -> None:
    """Set up managers on it; nothing is opened yet."""
    text = data.decode("utf-8", "surrogateescape")
    for url in (text, f"redis://{text}", f"rediss://h/0?{text}", f"unix://{text}"):
        for make in (SessionManager, SyncSessionManager):
            with suppress(ConfigurationError):
                made: Any = make(url)
                repr(made)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__.partition("_")[2]: target
    for target in (a_value, a_delta, a_log, a_body, a_frame, a_history, a_request, a_handle, a_url)
}
