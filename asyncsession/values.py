"""Values: what a session can hold, and its bytes.

MessagePack with extension types for what it lacks. Nothing here builds objects of the
application's classes, and there is no fallback decoder (CVE-2026-28277, CVE-2026-39324).

Packing is canonical enough to compare: the same value gives the same bytes, since sets are packed
in the order of their items' bytes. That is how nested changes are noticed.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable
from decimal import Decimal
from enum import IntEnum
from functools import partial
from typing import Any

import msgpack

from asyncsession.errors import InvalidSessionData, InvalidSessionValue

__all__ = ["pack", "pack_value", "unpack"]

_MAX_DEPTH = 100
"""Containers within containers. Precedents: PHP's json_decode allows 512, Rust's serde_json 128."""

_MAX_SETS = 10
"""Sets within sets. Each is an extension type, which msgpack decodes by a nested call in C."""


class _Ext(IntEnum):
    """Numbers of the extension types. They are stored, so none ever changes its meaning."""

    BIG_INT = 1
    SET = 2
    FROZENSET = 3
    DATETIME = 4
    DATE = 5
    TIME = 6
    TIMEDELTA = 7
    DECIMAL = 8
    UUID = 9


# None of these holds another value, so each may be a dict key and needs no look inside.
_SCALARS = (type(None), bool, int, float, str, bytes, Decimal, uuid.UUID,
            dt.date, dt.time, dt.timedelta, dt.datetime)  # fmt: skip
_SCALAR_TYPES = frozenset(_SCALARS)

_CONTAINERS = (dict, list, tuple, set, frozenset)


def pack_value(key: str, value: Any) -> bytes:
    """Return the value of the session key `key` as bytes.

    Args:
        key: named in the error, and not part of the result.
        value: None, bool, int of any size, float, str, bytes, list, dict, tuple (comes back as a
            list), set, frozenset, datetime, date, time, timedelta, Decimal, UUID. An aware
            datetime keeps its offset, not its time zone's name.

    Raises:
        InvalidSessionValue: naming the key and the type that cannot be kept.
    """
    try:
        if type(value) not in _SCALAR_TYPES:
            _check(key, value, _MAX_DEPTH, _MAX_SETS)
        return pack(value)
    except InvalidSessionValue:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidSessionValue(key, type(value), str(error)) from error


def pack(value: Any) -> bytes:
    """Return a value that is known to be a fit one as bytes.

    Raises:
        ValueError: text with lone surrogates.
        OverflowError: a single string or container of 4 GiB or more.
    """
    packed: bytes = msgpack.packb(value, default=_to_ext)
    return packed


def unpack(packed: bytes) -> Any:
    """Return the value that `packed` stands for, in time and memory linear in its length.

    Raises:
        InvalidSessionData: these bytes are no value.
    """
    return _unpack(packed, 0)


def _check(key: str, value: Any, depth: int, sets: int) -> None:
    """Refuse what could be packed and not read again, and say which type is at fault."""
    if not isinstance(value, _CONTAINERS) or isinstance(value, msgpack.ExtType):
        if not isinstance(value, _SCALARS):
            raise InvalidSessionValue(key, type(value))
        return
    if isinstance(value, (set, frozenset)):
        sets -= 1
        for item in value:
            if not isinstance(item, (*_SCALARS, frozenset)):
                reason = f"a set may not hold a {type(item).__qualname__}"
                raise InvalidSessionValue(key, type(item), reason)
    if not depth or sets < 0:
        raise InvalidSessionValue(key, type(value), "containers are nested too deep")
    items: Iterable[Any] = value
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, _SCALARS):
                raise InvalidSessionValue(key, type(name), "a dict key may not be a container")
        items = value.values()
    for item in items:
        if type(item) not in _SCALAR_TYPES:
            _check(key, item, depth - 1, sets)


def _to_ext(value: Any) -> msgpack.ExtType:
    match value:
        case int():
            size = value.bit_length() // 8 + 1
            return msgpack.ExtType(_Ext.BIG_INT, value.to_bytes(size, "big", signed=True))
        case set() | frozenset():
            code = _Ext.SET if isinstance(value, set) else _Ext.FROZENSET
            return msgpack.ExtType(code, _pack_sorted(value))
        case dt.datetime():
            return msgpack.ExtType(_Ext.DATETIME, value.isoformat().encode())
        case dt.date():
            return msgpack.ExtType(_Ext.DATE, value.isoformat().encode())
        case dt.time():
            return msgpack.ExtType(_Ext.TIME, value.isoformat().encode())
        case dt.timedelta():
            parts = [value.days, value.seconds, value.microseconds]
            return msgpack.ExtType(_Ext.TIMEDELTA, msgpack.packb(parts))
        case Decimal():
            return msgpack.ExtType(_Ext.DECIMAL, str(value).encode())
        case uuid.UUID():
            return msgpack.ExtType(_Ext.UUID, value.bytes)
    raise TypeError(f"values of type {type(value).__qualname__} are not kept")


def _pack_sorted(items: set[Any] | frozenset[Any]) -> bytes:
    types = set(map(type, items))
    for plain in (str, int, bytes):
        if all(issubclass(type_, plain) for type_ in types):
            return pack(sorted(items))  # in one go; items of several types can't be compared
    header: bytes = msgpack.Packer().pack_array_header(len(items))
    return header + b"".join(sorted(map(pack, items)))


def _from_ext(depth: int, code: int, data: bytes) -> Any:
    match code:
        case _Ext.BIG_INT:
            return int.from_bytes(data, "big", signed=True)
        case _Ext.SET:
            return set(_unpack_items(data, depth + 1))
        case _Ext.FROZENSET:
            return frozenset(_unpack_items(data, depth + 1))
        case _Ext.DATETIME:
            return dt.datetime.fromisoformat(data.decode())
        case _Ext.DATE:
            return dt.date.fromisoformat(data.decode())
        case _Ext.TIME:
            return dt.time.fromisoformat(data.decode())
        case _Ext.TIMEDELTA:
            days, seconds, microseconds = msgpack.unpackb(data)
            return dt.timedelta(days, seconds, microseconds)
        case _Ext.DECIMAL:
            return Decimal(data.decode())
        case _Ext.UUID:
            return uuid.UUID(bytes=data)
    raise ValueError(f"extension type {code} is not known to this version")


def _unpack_items(packed: bytes, depth: int) -> list[Any]:
    """Return the items of a set, none of which can be a list or a dict.

    msgpack makes room for what every list within lists promises to hold: some 80 MB at most, and
    that once only, since there is nothing of the kind within sets.
    """
    if depth > _MAX_SETS:
        raise InvalidSessionData("a stored value nests too many sets")
    unpacker = msgpack.Unpacker(
        None,
        max_buffer_size=len(packed),
        max_array_len=0,
        max_map_len=0,
        timestamp=3,
        ext_hook=_EXT_HOOKS[depth],
    )
    unpacker.feed(packed)
    count, items = unpacker.read_array_header(), list(unpacker)
    if len(items) != count:
        raise ValueError("a set does not end where it should")
    return items


def _unpack(packed: bytes, depth: int) -> Any:
    try:
        return msgpack.unpackb(
            packed, strict_map_key=False, timestamp=3, ext_hook=_EXT_HOOKS[depth]
        )
    except _UNREADABLE as error:  # in its own words it may quote the value
        kind = type(error).__name__
        raise InvalidSessionData(f"a stored value cannot be read: {kind}") from None


_EXT_HOOKS = [partial(_from_ext, depth) for depth in range(_MAX_SETS + 1)]
_UNREADABLE = (ValueError, TypeError, ArithmeticError, AttributeError, msgpack.UnpackException)
