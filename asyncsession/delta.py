"""Deltas: what one commit did to one value, so that it can be done again to another's value.

    apply(base, diff(base, ours)) == ours

A delta is one byte, its operation, and a packed operand. It stands in the log, so any reader can
apply it without knowing the policies of the application that wrote it. Applying never fails: a
delta that cannot act on what it meets (a number to add, and text is there) leaves that as it is.
`review` tells the writer when that happened, or when it replaced what somebody else wrote.

`diff` is the three-way merge; `asyncsession.merge` has the differences that other policies make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum, IntFlag
from typing import Any, Final

from asyncsession import operations
from asyncsession.errors import InvalidSessionData
from asyncsession.operations import MISSING, Unfit, same
from asyncsession.values import check_spread, pack, unpack

__all__ = ["SET_BYTE", "Op", "Review", "apply", "diff", "encode", "fold", "review"]


class Op(IntEnum):
    """Operations. They are stored, so none ever changes its meaning; new ones get new numbers."""

    SET = 0  # value
    DELETE = 1  # (nothing)
    CREATE = 2  # value: nothing was there; joins what somebody else has created meanwhile
    PATCH = 3  # {sub-key: delta}
    LIST = 4  # [items removed, items appended]
    UNION = 5  # [items removed, container of the items added]
    ADD = 6  # [n], or [n, base, ours] where rounding keeps base + n from being ours
    MAXIMUM = 7  # candidate
    MINIMUM = 8  # candidate
    DISCARD = 9  # items removed from a list or set, which goes, too, if that leaves it empty


class Review(IntFlag):
    """What a delta did to a change that somebody else had made in the meantime."""

    MERGED = 0
    OVERWRITTEN = 1
    DROPPED = 2


SET_BYTE: Final = bytes((Op.SET,))
"""What a delta begins with that sets a value; the packed value is the rest of it."""
_DEPTH: Final = 64  # dicts within dicts that are compared; what lies deeper is replaced as a whole


def encode(op: Op, operand: Any = MISSING) -> bytes:
    """Return the delta `op` with its operand."""
    code = _CODES[op]
    return code if operand is MISSING else code + pack(operand)


def diff(base: Any, ours: Any, depth: int = _DEPTH) -> bytes | None:
    """Return the delta that leads from `base` to `ours` by three-way merge, or None if equal.

    Dicts go by sub-key, recursively; lists by items removed and items appended; sets by items
    removed and added; anything else is set. Either argument may be `MISSING`.
    """
    if same(base, ours):
        return None
    if ours is MISSING:
        items = operations.is_list(base) or isinstance(base, (set, frozenset))
        return encode(Op.DISCARD, list(base)) if items else encode(Op.DELETE)
    if base is MISSING:
        return encode(Op.CREATE if isinstance(ours, (dict, list, tuple, set)) else Op.SET, ours)
    if (
        isinstance(base, dict)
        and isinstance(ours, dict)
        and depth
        and operations.same_names(base, ours)
    ):
        patch = {}
        for name in base | ours:
            change = diff(base.get(name, MISSING), ours.get(name, MISSING), depth - 1)
            if change is not None:
                patch[name] = change
        return encode(Op.PATCH, patch) if patch else None
    if operations.is_list(base) and operations.is_list(ours):
        return encode(Op.LIST, operations.list_change(base, ours))
    if isinstance(base, (set, frozenset)) and type(base) is type(ours):
        removed, added = operations.set_change(base, ours)
        if same(operations.reset(base, (removed, added)), ours):  # not if there are several NaNs
            return encode(Op.UNION, (removed, type(ours)(added)))
    return encode(Op.SET, ours)


def apply(current: Any, delta: bytes) -> Any:
    """Return what `delta` makes of `current`; both may be `MISSING`. `current` is not changed.

    Raises:
        InvalidSessionData: the delta is corrupt, or of a newer version of the library.
    """
    try:
        return _apply(current, delta, _DEPTH)
    except Unfit:
        return current
    except (RecursionError, ValueError):  # which of them depends on whose stack was too short
        raise InvalidSessionData("a stored value is nested too deep") from None


def fold(chain: Iterable[bytes], start: Any = MISSING) -> Any:
    """Return the value that deltas, oldest first, make of `start`; `MISSING` if they delete it."""
    value, deltas, at = start, tuple(chain), 0
    while at < len(deltas):
        if deltas[at][0] == _UNION:
            end = at + 1
            while end < len(deltas) and deltas[end][0] == _UNION:
                end += 1
            try:
                value = operations.reset(value, *(_decode(delta)[1] for delta in deltas[at:end]))
                at = end
                continue
            except Unfit:
                pass  # one of them is; the others are not
        value = apply(value, deltas[at])
        at += 1
    return value


def review(base: Any, theirs: Any, delta: bytes) -> Review:
    """Tell what becomes of the change from `base` to `theirs` when `delta` is put on top of it."""
    op, operand = _decode(delta)
    if op is Op.PATCH and isinstance(theirs, dict):
        before = base if isinstance(base, dict) else {}
        result = Review.MERGED
        for name, part in operand.items():
            result |= review(before.get(name, MISSING), theirs.get(name, MISSING), part)
        return result
    try:
        ours = _carried_out(theirs, op, operand, _DEPTH)
    except Unfit:
        return Review.DROPPED
    if op in _REPLACING and not (same(base, theirs) or same(theirs, ours)):
        return Review.OVERWRITTEN
    if op is Op.CREATE and not _joined(theirs, ours):
        return Review.OVERWRITTEN
    if op is Op.DISCARD and not isinstance(theirs, (list, set, frozenset)):
        return Review.MERGED if theirs is MISSING else Review.OVERWRITTEN
    return Review.MERGED


def _apply(current: Any, delta: bytes, depth: int) -> Any:
    return _carried_out(current, *_decode(delta), depth)


def _carried_out(current: Any, op: Op, operand: Any, depth: int) -> Any:
    if op is Op.SET:
        return operand
    if op is Op.PATCH:
        return _patch(current, operand, depth)
    return _WORK[op](current, operand)


def _add(current: Any, operand: list[Any]) -> Any:
    if len(operand) == 3 and same(current, operand[1]):
        return operand[2]
    return operations.add(current, operand[0])


def _delete(_current: Any, _operand: Any) -> Any:
    return MISSING


def _relist(current: Any, operand: list[Any]) -> Any:
    return operations.relist(current, *operand)


def _patch(current: Any, parts: dict[Any, bytes], depth: int) -> dict[Any, Any]:
    if not isinstance(current, dict):
        raise Unfit  # deleted meanwhile: it must not come back with one field in it
    if not depth:
        raise InvalidSessionData("a stored change is nested too deep")
    result = dict(current)
    for name, part in parts.items():
        try:
            item = _apply(result.get(name, MISSING), part, depth - 1)
        except Unfit:
            continue
        if item is MISSING:
            result.pop(name, None)
        else:
            result[name] = item
    check_spread(result, parts)
    return result


def _joined(theirs: Any, ours: Any) -> bool:
    """Tell whether all of `theirs` is still there in `ours`."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return all(name in ours and _joined(item, ours[name]) for name, item in theirs.items())
    if operations.is_list(theirs) and operations.is_list(ours):
        return same(theirs, ours[: len(theirs)])
    if isinstance(theirs, (set, frozenset)):
        return type(theirs) is type(ours) and theirs <= ours
    return theirs is MISSING or same(theirs, ours)


def _decode(delta: bytes) -> tuple[Op, Any]:
    try:
        op = _OPS[delta[0]]
    except IndexError:
        raise InvalidSessionData(
            "a stored change is of a kind this version does not know"
        ) from None
    operand = MISSING if op is Op.DELETE else unpack(delta[1:])
    is_fit = _SHAPES.get(op)
    if is_fit is not None and not is_fit(operand):
        raise InvalidSessionData("a stored change is malformed")
    return op, operand


def _is_patch(operand: Any) -> bool:
    return isinstance(operand, dict) and all(isinstance(part, bytes) for part in operand.values())


def _is_list_change(operand: Any) -> bool:
    return _is_items(operand) and len(operand) == 2 and all(map(_is_items, operand))


def _is_set_change(operand: Any) -> bool:
    return (
        _is_items(operand)
        and len(operand) == 2
        and _is_items(operand[0])
        and isinstance(operand[1], (list, set, frozenset))
    )


def _is_sum(operand: Any) -> bool:
    return _is_items(operand) and len(operand) in (1, 3) and all(map(operations.is_number, operand))


def _is_items(operand: Any) -> bool:
    return isinstance(operand, list)


_OPS: Final = tuple(Op)  # by number
_CODES: Final = tuple(bytes((op,)) for op in _OPS)
_UNION: Final = int(Op.UNION)
_REPLACING: Final = (Op.SET, Op.DELETE)
_WORK: Final[dict[Op, Callable[[Any, Any], Any]]] = {
    Op.DELETE: _delete,
    Op.CREATE: operations.create,
    Op.LIST: _relist,
    Op.UNION: operations.reset,
    Op.ADD: _add,
    Op.MAXIMUM: operations.greatest,
    Op.MINIMUM: operations.least,
    Op.DISCARD: operations.discard,
}
_SHAPES: Final = {
    Op.PATCH: _is_patch,
    Op.LIST: _is_list_change,
    Op.UNION: _is_set_change,
    Op.ADD: _is_sum,
    Op.DISCARD: _is_items,
}
