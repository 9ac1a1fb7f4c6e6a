"""Bytes that are no value of ours: refused, in bounded time and memory, and they build nothing."""

from __future__ import annotations

import gc
import struct
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.strategies import image, nest, values

from asyncsession.errors import InvalidSessionData
from asyncsession.values import pack, pack_value, unpack


def _ext(code: int, data: bytes) -> bytes:
    return b"\xc9" + struct.pack(">IB", len(data), code) + data


def _unpack_or_refuse(packed: bytes) -> None:
    with suppress(InvalidSessionData):
        image(unpack(packed))  # knows no types but those of session values


_exts = st.builds(msgpack.ExtType, st.integers(0, 20), st.binary(max_size=12) | values.map(pack))
_junk: st.SearchStrategy[Any] = st.recursive(
    _exts | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(_exts, inner, max_size=2)
        | st.builds(
            lambda code, item: msgpack.ExtType(code, msgpack.packb([item])),
            st.integers(1, 9),
            inner,
        )
    ),
    max_leaves=5,
)


@given(
    st.one_of(
        st.binary(max_size=64),
        _junk.map(msgpack.packb),
        st.binary(max_size=3).map(b"\xd5\xff".__add__),
    )
)
@settings(max_examples=300)
@example(msgpack.packb(msgpack.Timestamp(2**33)))
@example(msgpack.packb(msgpack.Timestamp(2**62)))
@example(msgpack.packb(msgpack.ExtType(7, msgpack.packb([10**18, 0, 0]))))
@example(msgpack.packb(msgpack.ExtType(7, msgpack.packb([float("nan"), 0, 0]))))
@example(msgpack.packb(msgpack.ExtType(7, msgpack.packb("abc"))))
@example(msgpack.packb(msgpack.ExtType(2, b"\x80")))
@example(msgpack.packb(msgpack.ExtType(2, b"\xa3abc")))
@example(b"\x81" + pack(Decimal("sNaN")) + b"\x01")
@example(pack({"a": 1}) + b"\x00")
def test_any_bytes_are_a_value_or_refused(packed: bytes) -> None:
    _unpack_or_refuse(packed)


@given(values, st.data())
@settings(max_examples=200)
def test_damaged_values_are_a_value_or_refused(value: Any, data: st.DataObject) -> None:
    packed = bytearray(pack_value("key", value))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] = data.draw(st.integers(0, 255))
    _unpack_or_refuse(bytes(packed))
    _unpack_or_refuse(bytes(packed[:at]))


REFUSED = {
    "nothing": b"",
    "two values": pack(1) + pack(2),
    "an unknown type": msgpack.packb(msgpack.ExtType(10, b"")),
    "a set of too few": _ext(2, b"\x92\x01"),
    "a set of too many": _ext(2, b"\x91\x01\x02"),
    "a set cut short": _ext(2, b"\x91\xa2a"),
    "a set of a list": _ext(2, b"\x91\x91\x01"),
    "a set of an empty list": _ext(2, b"\x91\x90"),
    "a set that is no array": _ext(2, pack("abc")),
    "a set that is nothing": _ext(2, b""),
    "a key that is a list": b"\x81\x90\x01",
    "text that is not UTF-8": b"\xa1\xff",
    "eleven sets": _ext(2, b"\x91" + nest(10, lambda core: _ext(3, b"\x91" + core), b"\x01")),
}


@pytest.mark.parametrize("packed", REFUSED.values(), ids=REFUSED)
def test_what_is_no_value_is_refused(packed: bytes) -> None:
    with pytest.raises(InvalidSessionData, match=r"^a stored value "):
        unpack(packed)


@contextmanager
def _bounded(megabytes: float, seconds: float) -> Iterator[None]:
    gc.collect()
    tracemalloc.start()
    started = time.process_time()
    try:
        yield
        assert time.process_time() - started < seconds
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()


def _nested_arrays(depth: int, filling: bytes) -> bytes:
    return (b"\xdc" + struct.pack(">H", 20_000)) * depth + filling


NASTY = {
    "array of 4 G": b"\xdd\xff\xff\xff\xff",
    "map of 4 G": b"\xdf\xff\xff\xff\xff",
    "text of 4 G": b"\xdb\xff\xff\xff\xff",
    "ext of 4 G": b"\xc9\xff\xff\xff\xff\x02",
    "deep arrays": b"\x91" * 1_000_000,
    "deep maps": b"\x81\xa0" * 500_000,
    "deep sets": nest(100, lambda core: _ext(3, b"\x91" + core), b"\xc0"),
    "nils": b"\xc0" * 1_000_000,
    "long int": _ext(1, b"\x7f" * 1_000_000),
    "long decimal": _ext(8, b"9" * 1_000_000),
    "set of a long decimal": _ext(2, b"\x91" + _ext(8, b"1E" + b"9" * 18)),
}


@pytest.mark.parametrize("packed", NASTY.values(), ids=NASTY)
def test_nasty_bytes_cost_little(packed: bytes) -> None:
    with _bounded(megabytes=24, seconds=2):
        _unpack_or_refuse(packed)


def test_nested_promises_of_arrays_cost_a_bounded_amount() -> None:
    """msgpack makes room for up to 10,240 items of each array it is promised, 1,024 deep."""
    packed = _nested_arrays(1020, b"\xc0" * 20_000)
    with _bounded(megabytes=100, seconds=2):
        _unpack_or_refuse(packed)
    for _ in range(9):
        packed = _nested_arrays(1020, _ext(2, packed))
    with _bounded(megabytes=100, seconds=2):
        _unpack_or_refuse(packed)
