"""Hypothesis strategies for session values, and `image`, the equality that tests judge them by."""

from __future__ import annotations

import copy
import datetime as dt
import math
import struct
import uuid
from collections.abc import Callable
from decimal import Decimal
from itertools import permutations
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from asyncsession import merge
from asyncsession.delta import apply
from asyncsession.operations import MISSING
from asyncsession.values import pack_value, unpack

__all__ = [
    "POLICIES",
    "edited",
    "fold",
    "hashables",
    "image",
    "items",
    "nest",
    "numbers",
    "orders",
    "pairs",
    "rivals",
    "scalars",
    "sequences",
    "sets",
    "stored",
    "values",
]

POLICIES = [
    merge.three_way, merge.last_write, merge.counter, merge.maximum, merge.minimum, merge.union,
    merge.append, merge.first_write, merge.reject,
]  # fmt: skip

# Of other machines' speed and load nothing follows.
settings.register_profile(
    "asyncsession",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("asyncsession")

# Whole seconds: Python itself reads an offset of less than one as none at all.
_seconds = st.integers(-86_399, 86_399)
_zones = st.one_of(st.just(dt.UTC), _seconds.map(lambda s: dt.timezone(dt.timedelta(seconds=s))))
_integers = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.integers(-(2**600), 2**600),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 2**53 + 1]),
)
_decimals = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False),
    st.sampled_from(["NaN", "-Infinity", "-0", "1.10", "1.1", "1E+999999", "1E-999999"]).map(
        Decimal
    ),
)

numbers = st.one_of(_integers, st.floats(), _decimals)

hashable_scalars = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    st.text(max_size=8),
    st.binary(max_size=8),
    st.datetimes(),
    st.datetimes(timezones=_zones),
    st.dates(),
    st.times(),
    st.times(timezones=_zones),
    st.timedeltas(),
    st.uuids(),
)
scalars = st.one_of(hashable_scalars, st.just(Decimal("sNaN")))

hashables: st.SearchStrategy[Any] = st.recursive(
    hashable_scalars, lambda inner: st.frozensets(inner, max_size=3), max_leaves=4
)
sets = st.one_of(st.sets(hashables, max_size=4), st.frozensets(hashables, max_size=4))


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=4), inner, max_size=4),
        st.dictionaries(hashable_scalars, inner, max_size=3),
        sets,
    )


values: st.SearchStrategy[Any] = st.recursive(scalars, _containers, max_leaves=10)

_few = st.one_of(st.integers(0, 5), st.sampled_from(["a", "b", 1.0, True, None, [1], {"a": 1}]))
items = _few.map(copy.deepcopy)  # what is handed out may be changed in place
"""Few different ones, so that lists repeat them and writers meet."""

sequences = st.lists(items, max_size=6)


@st.composite
def edited(draw: st.DrawFn, value: Any, item: st.SearchStrategy[Any] = values) -> Any:
    """What a request may make of `value`: items added, removed, moved, replaced, at any depth."""
    for _ in range(draw(st.integers(0, 3))):
        value = draw(_edit(value, item))
    return value


@st.composite
def _edit(draw: st.DrawFn, value: Any, item: st.SearchStrategy[Any]) -> Any:
    if draw(st.integers(0, 9)) == 0:
        return draw(item)
    if isinstance(value, dict):
        return draw(_edit_dict(value, item))
    if isinstance(value, (list, tuple)):
        return draw(_edit_list(value, item))
    if isinstance(value, (set, frozenset)):
        if value and draw(st.booleans()):
            gone = draw(st.sampled_from(sorted(value, key=repr)))
            return type(value)(one for one in value if one is not gone)
        return type(value)((*value, draw(hashables)))
    return draw(item)


@st.composite
def _edit_dict(draw: st.DrawFn, value: dict[Any, Any], item: st.SearchStrategy[Any]) -> Any:
    entries = list(value.items())
    action = draw(st.sampled_from(["put", "nest", "pop", "order"])) if entries else "put"
    at = draw(st.integers(0, len(entries) - 1)) if entries else 0
    if action == "put":
        entries.append((draw(hashable_scalars), draw(item)))
    elif action == "nest":
        entries[at] = (entries[at][0], draw(_edit(entries[at][1], item)))
    else:
        entry = entries.pop(at)
        if action == "order":
            entries.append(entry)
    return dict(entries)


@st.composite
def _edit_list(draw: st.DrawFn, value: Any, item: st.SearchStrategy[Any]) -> Any:
    result = list(value)
    action = draw(st.sampled_from(["append", "insert", "pop", "move", "nest", "repeat"]))
    if action == "append" or not result:
        return [*result, draw(item)]
    at = draw(st.integers(0, len(result) - 1))
    if action == "insert":
        result.insert(at, draw(item))
    elif action == "nest":
        result[at] = draw(_edit(result[at], item))
    elif action == "repeat":
        result.append(result[at])
    else:
        moved = result.pop(at)
        if action == "move":
            result.insert(draw(st.integers(0, len(result))), moved)
    return result


_or_missing = st.one_of(values, st.just(MISSING))

pairs = st.one_of(
    values.flatmap(lambda base: st.tuples(st.just(base), edited(base))),
    sequences.flatmap(lambda base: st.tuples(st.just(base), edited(base, items))),
    st.tuples(_or_missing, _or_missing),
    st.tuples(numbers, numbers),
)
"""(base, ours): what was loaded and what one request made of it; either may be MISSING."""

rivals = st.one_of(
    values.flatmap(lambda base: st.tuples(st.just(base), edited(base), edited(base))),
    sequences.flatmap(
        lambda base: st.tuples(st.just(base), edited(base, items), edited(base, items))
    ),
    st.tuples(_or_missing, _or_missing, _or_missing),
)
"""(base, ours, theirs): what two requests made of the same value."""


def stored(value: Any) -> Any:
    """Return a value as it comes from the log: no tuples, nothing shared."""
    return value if value is MISSING else unpack(pack_value("key", value))


def nest(depth: int, wrap: Callable[[Any], Any], core: Any = None) -> Any:
    """Return `core`, wrapped so many times."""
    for _ in range(depth):
        core = wrap(core)
    return core


def fold(start: Any, *deltas: bytes | None) -> Any:
    """Return what deltas, in this order, make of `start`; None changes nothing."""
    for delta in deltas:
        start = start if delta is None else apply(start, delta)
    return start


def orders(base: Any, *deltas: bytes | None) -> list[Any]:
    """Return what deltas make of `base`, applied in every order."""
    return [fold(stored(base), *order) for order in permutations(deltas)]


def image(value: Any) -> Any:
    """Return what tells a value from others: 1, 1.0 and True differ, the order of a dict does not.

    Tuples are lists here, since they come back as such. A value of a type that sessions do not
    hold fails.
    """
    kind = type(value)
    if kind in (list, tuple):
        return ["list", *map(image, value)]
    if kind is dict:
        return [
            "dict",
            *sorted(([image(name), image(item)] for name, item in value.items()), key=repr),
        ]
    if kind in (set, frozenset):
        return [kind.__name__, *sorted(map(image, value), key=repr)]
    if kind is int:
        return ["int", hex(value)]
    if kind is float:
        return ["float", "nan" if math.isnan(value) else struct.pack(">d", value).hex()]
    if kind in (dt.datetime, dt.date, dt.time):
        return [kind.__name__, value.isoformat()]
    if kind in (type(None), bool, str, bytes, dt.timedelta, Decimal, uuid.UUID):
        return [kind.__name__, repr(value)]
    assert value is MISSING, f"{kind} is not the type of a session value"
    return ["missing"]
