"""Blobs that are damaged, foreign or of a newer version: refused, and never by another error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.compiled import copy_of, only_interpreted
from support.logs import HEADER, History, blob, frame, header, histories, meaning, set_
from support.strategies import image

from asyncsession import operations
from asyncsession.blob import Kind
from asyncsession.delta import Op, encode
from asyncsession.errors import InvalidSessionData
from asyncsession.log import Log
from asyncsession.session import Session
from asyncsession.values import pack


def read_all(stored: bytes, look: Callable[[Any], object] = image) -> None:
    """Do with a blob all that a request may; InvalidSessionData is the only way to fail."""
    try:
        log = Log.parse(stored)
    except InvalidSessionData:
        return
    session = Session("", log, "handle")
    assert session.created_at is None or session.created_at.tzinfo
    attempts: list[Any] = [log.keys, log.sizes, lambda: session.expires_at]
    attempts.append(lambda: log.compacted()[1])
    for key in [*log._chains, "absent"]:
        attempts += [lambda key=key: log.value(key), lambda key=key: key in log]
        attempts += [lambda key=key: key in log and log.packed(key)]
    for attempt in attempts:
        with suppress(InvalidSessionData):
            look(attempt())


@given(st.binary(max_size=80))
@example(b"")
@settings(max_examples=200)
def test_any_bytes_are_a_log_or_refused(junk: bytes) -> None:
    read_all(junk)
    read_all(header() + junk)
    body = bytes(2) + junk + bytes(22)
    read_all(header() + len(body).to_bytes(4, "big") + body)


@given(histories(), st.data())
@settings(max_examples=200)
def test_damaged_blobs_are_a_log_or_refused(history: History, data: st.DataObject) -> None:
    stored = bytearray(history.blob())
    read_all(bytes(stored[: data.draw(st.integers(0, len(stored)))]))
    for _ in range(data.draw(st.integers(1, 3))):
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    read_all(bytes(stored))


def test_truncation_is_noticed_at_every_byte() -> None:
    stored = blob([{"a": set_("text")}, {"b": set_([1, 2])}])
    whole = {HEADER, HEADER + len(frame({"a": set_("text")}, 1)), len(stored)}
    for end in range(len(stored)):
        if end not in whole:
            with pytest.raises(InvalidSessionData):
                Log.parse(stored[:end])


def test_a_tail_that_cannot_be_read_changes_nothing() -> None:
    log = Log.parse(blob([{"a": set_(1)}]))
    before = meaning(copy_of(log))
    for bad in (frame({"a": bytes([max(Op) + 1])}, 3), frame({"b": set_(1)}, 3)[:-1], b"\x00"):
        with pytest.raises(InvalidSessionData):
            log.extended(frame({"a": set_(2)}, 2) + bad)
        assert meaning(copy_of(log)) == before
        assert (log.length, log.frames) == (len(frame({"a": set_(1)}, 1)), 1)


@pytest.mark.parametrize("op", [max(Op) + 1, 100, 255])
def test_an_operation_of_a_newer_version_is_refused(op: int) -> None:
    with pytest.raises(InvalidSessionData, match="does not know"):
        Log.parse(blob([{"a": set_(1)}, {"a": bytes([op]) + pack(1)}]))
    nested = encode(Op.PATCH, {"sub": bytes([op]) + pack(1)})
    log = Log.parse(blob([{"a": set_({}), "b": set_(1)}, {"a": nested}]))
    assert log.value("b") == 1
    with pytest.raises(InvalidSessionData, match="does not know"):
        log.value("a")


@pytest.mark.parametrize("form", [b"aS\x00", b"aS\x02", b"aS\xff", b"As\x01", b"\x80\x03}"])
def test_another_format_is_refused(form: bytes) -> None:
    with pytest.raises(InvalidSessionData, match="not a session of this format"):
        Log.parse(header(form=form) + frame({"a": set_(1)}, 1))


@pytest.mark.parametrize("kind", [Kind.MOVED, Kind.DESTROYED, b"\x00", b"l"])
def test_what_is_not_live_is_refused(kind: bytes) -> None:
    with pytest.raises(InvalidSessionData, match="not a session of this format"):
        Log.parse(header(kind=kind))


PAYLOADS: list[Any] = [[], 1, {1: b"\x00"}, {"a": "text"}, {"a": b""}, {b"a": b"\x00"}]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_malformed_payload_is_refused(payload: Any) -> None:
    body = bytes(2) + pack(payload) + bytes(22)
    with pytest.raises(InvalidSessionData):
        Log.parse(header() + len(body).to_bytes(4, "big") + body)


@pytest.mark.parametrize("depth", [600, 1020, 1024])
def test_values_too_deep_are_a_value_or_refused(depth: int) -> None:
    deep = b"\x91" * depth + b"\xc0"
    for later in (
        encode(Op.LIST, [[1], [2]]),
        encode(Op.PATCH, {"a": b"\x00" + deep}),
        b"\x04\x92\x90\x91" + deep,
    ):
        for first in (set_({}), set_([1]), b"\x00" + deep, b"\x02" + deep):
            read_all(blob([{"a": first}, {"a": later}]), look=type)


@pytest.mark.parametrize("at", [12, 18])
def test_times_beyond_the_calendar_are_refused(at: int) -> None:
    stored = bytearray(blob([{"a": set_(1)}]))
    stored[at] = 0xFF
    with pytest.raises(InvalidSessionData, match="not a session of this format"):
        Log.parse(bytes(stored))


MALFORMED: dict[Op, list[Any]] = {
    Op.PATCH: [1, [], {"a": 1}, {"a": {"b": b"\0"}}],
    Op.LIST: [[], [[]], [[], [], []], {}, [[], {}], [1, 2]],
    Op.UNION: [[], [[]], [[], 1], [1, []], [[], [], []], {}],
    Op.ADD: [1, [], [1, 2], ["1"], [True], [1, 2, "3"], [1, 2, 3, 4]],
}


@pytest.mark.parametrize("op", MALFORMED)
def test_a_malformed_change_is_refused(op: Op) -> None:
    for operand in MALFORMED[op]:
        log = Log.parse(blob([{"a": set_({}), "b": set_(1)}, {"a": encode(op, operand)}]))
        assert log.value("b") == 1
        with pytest.raises(InvalidSessionData, match="malformed"):
            log.value("a")


@only_interpreted
def test_what_is_too_deep_to_pack_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """msgpack without its C part packs half as deep as it unpacks."""

    def shallow(value: Any) -> bytes:
        raise ValueError("recursion limit exceeded")

    monkeypatch.setattr(operations, "pack", shallow)
    log = Log.parse(blob([{"a": set_([[1]])}, {"a": encode(Op.LIST, [[[1]], []])}]))
    with pytest.raises(InvalidSessionData, match="too deep"):
        log.value("a")
