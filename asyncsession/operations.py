"""Operations: the work of a delta on one value, by kind of value.

Each takes the current value (or `MISSING`) and its operand and returns the new value, or raises
`Unfit` where it cannot act on what is there. Current values are never changed in place.
"""

from __future__ import annotations

import decimal
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, Final

from asyncsession.values import check_spread, pack

__all__ = [
    "MISSING",
    "Missing",
    "Unfit",
    "add",
    "create",
    "discard",
    "greatest",
    "is_list",
    "is_number",
    "least",
    "list_change",
    "relist",
    "reset",
    "same",
    "same_names",
    "set_change",
]


class Missing(Enum):
    """The type of `MISSING`."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


MISSING: Final = Missing.MISSING
"""Stands for "no such key": an argument of merge functions, and a result that deletes."""


class Unfit(Exception):
    """The operation cannot act on the current value."""


_DECIMALS: Final = decimal.Context(prec=34, traps=[decimal.InvalidOperation, decimal.Overflow])


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are the same in the log: 1, 1.0 and True are three values."""
    if one is other:
        return True
    if one is MISSING or other is MISSING:
        return False
    if type(one) is type(other) and isinstance(one, (str, int, bytes)):
        return bool(one == other)
    return pack(one) == pack(other)


def is_list(value: Any) -> bool:
    """Tell whether `value` is kept as a list."""
    return isinstance(value, (list, tuple))


def is_number(value: Any) -> bool:
    """Tell whether `value` can be counted with; a bool cannot."""
    return isinstance(value, (int, float, decimal.Decimal)) and not isinstance(value, bool)


def add(current: Any, amount: Any) -> Any:
    """Return the sum; nothing there counts as zero."""
    if current is MISSING:
        return amount
    if not is_number(current) or not is_number(amount):
        raise Unfit
    try:
        if isinstance(current, decimal.Decimal) or isinstance(amount, decimal.Decimal):
            with decimal.localcontext(_DECIMALS):
                return current + amount
        return current + amount
    except (TypeError, ArithmeticError):
        raise Unfit from None


def greatest(current: Any, candidate: Any) -> Any:
    """Return the greater of the two."""
    try:
        return candidate if current is MISSING or candidate > current else current
    except (TypeError, ArithmeticError):
        raise Unfit from None


def least(current: Any, candidate: Any) -> Any:
    """Return the lesser of the two."""
    try:
        return candidate if current is MISSING or candidate < current else current
    except (TypeError, ArithmeticError):
        raise Unfit from None


def same_names(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    """Tell whether a sub-key of one dict names the same thing in the other.

    It does not where 1 stands in one and True in the other, and NaN is never found again.
    """
    names = one.keys() | other.keys()
    if all(type(name) is str for name in names):
        return True
    packed = set(map(pack, (*one, *other)))
    return len(packed) == len(names) and all(name == name for name in names)


def create(current: Any, value: Any) -> Any:
    """Put `value` where there was nothing, or join it with a like container created meanwhile."""
    if isinstance(current, dict) and isinstance(value, dict):
        joint = {name: create(current.get(name, MISSING), item) for name, item in value.items()}
        joined = current | joint
        check_spread(joined, value)
        return joined
    if is_list(current) and is_list(value):
        return [*current, *value]
    if isinstance(current, (set, frozenset)) and type(current) is type(value):
        union = current | value
        check_spread(union, value)
        return union
    return value


def relist(current: Any, removed: list[Any], appended: list[Any]) -> Any:
    """Return a list without `removed`, then `appended`.

    An item in both was moved; it is not put back if somebody else has removed it meanwhile.
    """
    if current is not MISSING and not is_list(current):
        raise Unfit
    if not removed:
        return [*(() if current is MISSING else current), *appended]
    unwanted = Counter(map(_name, removed))
    moved = unwanted & Counter(map(_name, appended))
    kept = []
    for item in () if current is MISSING else current:
        if unwanted[name := _name(item)] > 0:
            unwanted[name] -= 1
        else:
            kept.append(item)
    lost = moved & unwanted  # to be moved, and not found
    for item in appended:
        if lost[name := _name(item)] > 0:
            lost[name] -= 1
        else:
            kept.append(item)
    return MISSING if current is MISSING and removed and not kept else kept


def reset(current: Any, *changes: Sequence[Any]) -> Any:
    """Return a set, or a list used as one, after changes that each have items (removed, added).

    Several at once come cheaper than one after the other, and to the same.
    """
    for number, (removed, added) in enumerate(changes):
        if current is MISSING:
            current = added if added or not removed else MISSING
        elif isinstance(current, (set, frozenset)):
            current = _reset_set(current, removed, added)
        elif is_list(current):
            return _reset_list(current, changes[number:])
        else:
            raise Unfit
    return current


def discard(current: Any, items: list[Any]) -> Any:
    """Delete a list or set of which `items` were known; what others have added to it stays."""
    if is_list(current):
        return relist(current, items, []) or MISSING
    if isinstance(current, (set, frozenset)):
        return _reset_set(current, items, ()) or MISSING
    return MISSING


def _reset_set(current: Any, removed: list[Any], added: Any) -> Any:
    unwanted = set(map(_name, removed))
    kept = [item for item in current if _name(item) not in unwanted] if removed else current
    try:
        union = type(current)(kept).union(added)
    except TypeError:  # an item that is in a list, and can't be in a set
        raise Unfit from None
    check_spread(union, added)
    return union


def _reset_list(current: list[Any], changes: Iterable[Sequence[Any]]) -> list[Any]:
    items, present = list(current), set(map(_name, current))
    for removed, added in changes:
        if removed:
            unwanted = set(map(_name, removed))
            items = [item for item in items if _name(item) not in unwanted]
            present -= unwanted
        fresh = [item for item in added if _name(item) not in present]
        items += fresh
        present.update(map(_name, fresh))
    return items


def _name(item: Any) -> Any:
    """Return what two items have in common if and only if they are the same in the log."""
    if type(item) is str:
        return item
    return str.__str__(item) if isinstance(item, str) else pack(item)


def list_change(base: Sequence[Any], ours: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return the items (removed, appended) with which `relist` makes `ours` of `base`."""
    kept, removed = 0, []
    names = list(map(_name, ours))
    for item in base:
        if kept < len(names) and _name(item) == names[kept]:
            kept += 1
        else:
            removed.append(item)
    appended = list(ours[kept:])
    if same(relist(base, removed, appended), ours):
        return removed, appended
    return list(base), list(ours)


def set_change(base: Iterable[Any], ours: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """Return the items (removed, added) with which `reset` makes `ours` of `base`."""
    before, after = ({_name(item): item for item in items} for items in (base, ours))
    removed = [item for name, item in before.items() if name not in after]
    added = [item for name, item in after.items() if name not in before]
    return removed, added
