"""Changes of sessions that do the same in each world, and values in a form to be compared."""

from __future__ import annotations

import copy
import random
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from asyncsession import Session, merge

__all__ = [
    "GUARDED",
    "POLICIES",
    "Change",
    "Changes",
    "apply",
    "comparable",
    "some_changes",
    "some_keys",
]


def _joined(base: Any, ours: Any, theirs: Any) -> Any:
    if ours is merge.MISSING or theirs is merge.MISSING:
        return theirs if ours is merge.MISSING else ours
    return sorted({*ours, *theirs})[-6:]


POLICIES: dict[str, Any] = {
    "count": merge.counter,
    "tags": merge.union,
    "cart:*": merge.union,
    "high": merge.maximum,
    "low": merge.minimum,
    "last": merge.last_write,
    "queue": merge.append,
    "first": merge.first_write,
    "refuse": merge.reject,
    "custom": _joined,
}
GUARDED = frozenset({"first", "refuse", "custom"})
_NUMBERS = ("count", "high", "low")
_SETS = ("tags", "bag")
_LISTS = ("queue", "items", "custom", "cart:1")
_SCALARS = ("last", "first", "refuse", "note")
_KEYS = (*_NUMBERS, *_SETS, *_LISTS, *_SCALARS, "nested", "text")
_OTHERS: tuple[Any, ...] = (
    None,
    True,
    1.5,
    "é",
    b"\x00",
    2**70,
    (1, 2),
    [1, {"a": (1,)}],
    {"x": {}},
    frozenset({1}),
)


class Change(NamedTuple):
    """What is done to one key.

    Attributes:
        key: the number of one of the schedule's.
        how: 0 takes the key away; what others do depends on what is there.
        n: the number that goes into it.
    """

    key: int
    how: int
    n: int


Changes = tuple[Change, ...]


def some_keys(chance: random.Random) -> tuple[str, ...]:
    """Return the keys of a schedule: few, so that requests meet at them."""
    return tuple(chance.sample(_KEYS, chance.randint(1, 5)))


def some_changes(chance: random.Random, most: int = 3) -> Changes:
    """Return what one request changes: one key, or more, up to `most`."""
    count = chance.randint(1, most)
    return tuple(
        Change(chance.randrange(5), chance.randrange(6), chance.randrange(10)) for _ in range(count)
    )


def apply(session: Session, keys: Sequence[str], todo: Iterable[Change]) -> None:
    """Make changes of some of `keys`, each by what the session shows at that moment."""
    for number, how, n in todo:
        key = keys[number % len(keys)]
        if how == 0:
            session.pop(key, None)
        else:
            _apply(session, key, how, n)


def _apply(session: Session, key: str, how: int, n: int) -> None:
    value = session.get(key)
    if how == 1:  # of whatever type
        session[key] = [n] if key == "custom" else copy.deepcopy(_OTHERS[n])
    elif key in _NUMBERS:
        is_number = isinstance(value, int) and how < 5
        session[key] = value + n - 4 if is_number else n
    elif key in _SETS:
        _in_set(session, key, value, how, n)
    elif key in _LISTS:
        _in_list(session, key, value, how, n)
    elif key == "nested":
        _in_dict(session, key, value, how, n)
    elif key == "text":
        session[key] = "abcdef"[how] * (n * 700)
    else:
        session[key] = n


def _in_set(session: Session, key: str, value: Any, how: int, n: int) -> None:
    if not isinstance(value, set) or how == 5:
        session[key] = {n}
    else:
        value.symmetric_difference_update({n, n // 2} if how == 2 else {n})


def _in_list(session: Session, key: str, value: Any, how: int, n: int) -> None:
    if not isinstance(value, list) or how == 5:
        session[key] = [n]
    elif how == 2 and value:
        value.pop(n % len(value))
    elif how == 4 and n < 2:
        value.reverse()
    else:
        value.append(n)
        del value[:-8]


def _in_dict(session: Session, key: str, value: Any, how: int, n: int) -> None:
    name = "abc"[n % 3]
    if not isinstance(value, dict):
        session[key] = {"a": 1, "b": {"z": [1]}}
    elif how == 2:
        value.pop(name, None)
    elif how == 3:  # the same in another order
        session[key] = dict(reversed(value.items()))
    elif how == 4 and isinstance(inner := value.get(name), dict):
        inner[str(n)] = [n]
    else:
        value[name] = {"z": [n]} if how == 4 else n


def comparable(value: Any) -> Any:
    """Return a value such that two are equal if they are of the same types all through.

    The order of a dict is no part of it, and a tuple is the list that it comes back as.
    """
    if isinstance(value, dict):
        return "dict", {key: comparable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return "list", [comparable(item) for item in value]
    if isinstance(value, str) and len(value) > 20:
        return f"{value[:4]}...", len(value), zlib.crc32(value.encode())
    return type(value).__name__, value
