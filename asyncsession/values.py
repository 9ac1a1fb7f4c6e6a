"""Values: what a session can hold, and its bytes.

MessagePack with extension types for what it lacks. Nothing here builds objects of the
application's classes, and there is no fallback decoder (CVE-2026-28277, CVE-2026-39324).

Packing is canonical enough to compare: the same value gives the same bytes, since sets are packed
in the order of their items' bytes. That is how nested changes are noticed.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from decimal import Decimal
from enum import IntEnum
from functools import partial
from typing import Any, Final

import msgpack
from msgpack import fallback

from asyncsession.errors import InvalidSessionData, InvalidSessionValue

__all__ = [
    "check_depth",
    "check_spread",
    "pack",
    "pack_plain",
    "pack_value",
    "unpack",
    "unpack_flat",
]

_MAX_DEPTH: Final = 100
"""Containers within containers. Precedents: PHP's json_decode allows 512, Rust's serde_json 128."""

_MAX_SETS: Final = 10
"""Sets within sets. Each is an extension type, which msgpack decodes by a nested call in C."""

_MAX_ALIKE: Final = 256
"""Different dict keys or items of sets with one hash. Python's dicts and sets compare each with all
of them, and for the types in `_COLLIDING` anybody can make up as many as he likes."""

_GUARDED: Final = 4096
"""Bytes from which on that is looked after: fewer cannot hold enough of them to take long."""

_MAX_PROMISES: Final = 32
"""Long arrays that msgpack's C part is given. It makes room for 10,240 items of each before it
looks for them, so 3 KB could take 80 MB."""


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
_SCALARS: Final = (type(None), bool, int, float, str, bytes, Decimal, uuid.UUID,
            dt.date, dt.time, dt.timedelta, dt.datetime)  # fmt: skip
_SCALAR_TYPES: Final = frozenset(_SCALARS)
_PLAIN_TYPES: Final = frozenset((type(None), bool, int, float, str, bytes))
_packer: Final = msgpack.Packer()
pack_plain: Final[Callable[[Any], bytes]] = (
    msgpack.packb if isinstance(_packer, fallback.Packer) else _packer.pack
)
"""Packs what holds nothing of our types. The packer in C is made once: it calls nothing of ours, so
no two threads meet in it."""

_CONTAINERS: Final = (dict, list, tuple, set, frozenset)

_COLLIDING: Final = (int, Decimal, uuid.UUID, frozenset)
"""Their hashes are made of numbers modulo 2**61 - 1, or of such hashes, without any secret."""
_COLLIDING_EXTS: Final = frozenset(
    map(int, (_Ext.BIG_INT, _Ext.DECIMAL, _Ext.UUID, _Ext.FROZENSET))
)
_DECIMAL: Final = int(_Ext.DECIMAL)
_UUID: Final = int(_Ext.UUID)

_LONG_ARRAYS: Final = (b"\xdc", b"\xdd")
_CONTAINER_BYTES: Final = bytes((*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF))
_OTHER_BYTES: Final = bytes(set(range(256)) - set(_CONTAINER_BYTES))


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
    packed: bytes
    if type(value) in _PLAIN_TYPES:
        try:
            packed = pack_plain(value)
        except OverflowError:
            pass
        else:
            return packed
    packed = msgpack.packb(value, default=_to_ext)
    return packed


def unpack(packed: bytes) -> Any:
    """Return the value that `packed` stands for, in time and memory linear in its length.

    Raises:
        InvalidSessionData: these bytes are no value.
    """
    if len(packed) <= _MAX_DEPTH or packed[0] not in _CONTAINER_BYTES:
        return _unpack(packed, 0)
    headers = packed.translate(None, _OTHER_BYTES)  # those of containers, and what looks like them
    promises = sum(map(headers.count, _LONG_ARRAYS)) if len(headers) > _MAX_PROMISES else 0
    decode = fallback.unpackb if promises > _MAX_PROMISES else msgpack.unpackb
    value = _unpack(packed, 0, decode)
    if len(headers) > _MAX_DEPTH:
        _check_levels(value)
    return value


def unpack_flat(packed: bytes) -> Any:
    """Return the dict that `packed` stands for, which holds no list and nothing of our types.

    Raises:
        InvalidSessionData: these bytes are none, or hold such.
    """
    try:
        return msgpack.unpackb(packed, max_array_len=0, max_ext_len=0)
    except _UNREADABLE as error:
        raise _unreadable(error) from None


def check_depth(value: Any, packed: bytes) -> None:
    """Refuse a value that was put together of several, and is nested deeper than one may be.

    Raises:
        InvalidSessionData: it is.
    """
    if len(packed) > _MAX_DEPTH and len(packed.translate(None, _OTHER_BYTES)) > _MAX_DEPTH:
        _check_levels(value)


def check_spread(items: Collection[Any], fresh: Iterable[Any]) -> None:
    """Refuse a set, or the keys of a dict, of which too many have the same hash.

    Args:
        items: the set or dict.
        fresh: those items that may not have been looked at before.

    Raises:
        InvalidSessionData: there are more than 256.
    """
    if len(items) <= _MAX_ALIKE:
        return
    if not any(issubclass(kind, _COLLIDING) for kind in set(map(type, fresh))):
        return
    if len(items) - len(set(map(hash, items))) < _MAX_ALIKE:
        return
    if max(Counter(map(hash, items)).values()) > _MAX_ALIKE:
        raise InvalidSessionData(f"a stored value has {_ALIKE}")


def _check_levels(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            item
            for holder in level
            for item in (holder.values() if type(holder) is dict else holder)
            if type(item) is dict or type(item) is list
        ]
        if not level:
            return
    raise InvalidSessionData("a stored value is nested too deep")


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
    if isinstance(value, (dict, set, frozenset)):
        try:
            check_spread(value, value)
        except InvalidSessionData:
            raise InvalidSessionValue(key, type(value), f"it has {_ALIKE}") from None
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
    reader = _READERS.get(code)
    if reader is None:
        raise ValueError(f"extension type {code} is not known to this version")
    return reader(data, depth)


def _read_timedelta(data: bytes, _: int) -> dt.timedelta:
    days, seconds, microseconds = msgpack.unpackb(data)
    return dt.timedelta(days, seconds, microseconds)


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
        ext_hook=_ext_hook(packed, depth),
    )
    unpacker.feed(packed)
    count, items = unpacker.read_array_header(), list(unpacker)
    if len(items) != count:
        raise ValueError("a set does not end where it should")
    return items


def _unpack(packed: bytes, depth: int, decode: Callable[..., Any] = msgpack.unpackb) -> Any:
    try:
        return decode(packed, strict_map_key=False, timestamp=3, ext_hook=_ext_hook(packed, depth))
    except _UNREADABLE as error:
        raise _unreadable(error) from None


def _unreadable(error: Exception) -> InvalidSessionData:
    kind = type(error).__name__  # in its own words it may quote the value
    return InvalidSessionData(f"a stored value cannot be read: {kind}")


def _ext_hook(packed: bytes, depth: int) -> Callable[[int, bytes], Any]:
    return _EXT_HOOKS[depth] if len(packed) < _GUARDED else _Guard(depth)


class _Guard:
    """Decodes extension types, and counts how many different ones have the same hash."""

    __slots__ = ("_alike", "_depth", "_first")

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._first: dict[int, bytes] = {}  # by hash
        self._alike: dict[int, set[bytes]] = {}  # the others

    def __call__(self, code: int, data: bytes) -> Any:
        value = _from_ext(self._depth, code, data)
        if code not in _COLLIDING_EXTS or (code == _DECIMAL and value.is_snan()):
            return value
        hashed = hash(int.from_bytes(data, "big") if code == _UUID else value)  # the same, faster
        if self._first.setdefault(hashed, data) != data:
            alike = self._alike.setdefault(hashed, set())
            alike.add(data)
            if len(alike) >= _MAX_ALIKE:
                raise InvalidSessionData(f"a stored value has {_ALIKE}")
        return value


_ALIKE: Final = f"more than {_MAX_ALIKE} keys or items with the same hash"
_READERS: Final[
    dict[int, Callable[[bytes, int], Any]]
] = {  # of an extension's bytes, `depth` sets deep
    _Ext.BIG_INT: lambda data, _: int.from_bytes(data, "big", signed=True),
    _Ext.SET: lambda data, depth: set(_unpack_items(data, depth + 1)),
    _Ext.FROZENSET: lambda data, depth: frozenset(_unpack_items(data, depth + 1)),
    _Ext.DATETIME: lambda data, _: dt.datetime.fromisoformat(data.decode()),
    _Ext.DATE: lambda data, _: dt.date.fromisoformat(data.decode()),
    _Ext.TIME: lambda data, _: dt.time.fromisoformat(data.decode()),
    _Ext.TIMEDELTA: _read_timedelta,
    _Ext.DECIMAL: lambda data, _: Decimal(data.decode()),
    _Ext.UUID: lambda data, _: uuid.UUID(bytes=data),
}
_EXT_HOOKS: Final = [partial(_from_ext, depth) for depth in range(_MAX_SETS + 1)]
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    ArithmeticError,
    AttributeError,
    msgpack.UnpackException,
)
