"""Policies: which one a key has, and what each makes of two writers' changes."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from enum import StrEnum
from functools import reduce
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.strategies import image, orders, sequences

from asyncsession import merge
from asyncsession.delta import Op, Review, apply, fold, review
from asyncsession.errors import ConfigurationError
from asyncsession.merge import MISSING, Policies, Policy, Refused, as_policy

NAMES = ["append", "counter", "first_write", "last_write", "maximum", "minimum", "reject",
         "three_way", "union"]  # fmt: skip
GUARDED = {"first_write", "reject"}


def longest(base: Any, ours: Any, theirs: Any) -> Any:
    """A merge function."""
    return max(ours, theirs, key=len)


# Which policy a key has.


def test_the_exact_key_goes_before_patterns_and_patterns_before_the_default() -> None:
    policies = Policies(
        {"cart:*": merge.union, "cart:total": merge.counter, "*": merge.append}, merge.reject
    )
    assert policies["cart:total"] is merge.counter
    assert policies["cart:items"] is merge.union
    assert policies["cart:"] is merge.union
    assert policies["cart"] is merge.append
    assert Policies({"a": merge.union}, merge.reject)["b"] is merge.reject
    assert Policies({"a": merge.union}, merge.reject)["A"] is merge.reject


@pytest.mark.parametrize("order", [("a*", "*b"), ("*b", "a*")])
def test_the_first_pattern_that_matches_is_taken(order: tuple[str, str]) -> None:
    declared = dict.fromkeys(order, merge.three_way) | {order[0]: merge.union}
    assert Policies(declared, merge.reject)["ab"] is merge.union
    assert Policies(declared, merge.reject)["a\nb"] is merge.union


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("a?", "ab", True),
        ("a?", "a", False),
        ("a?", "a?", True),
        ("[ab]x", "bx", True),
        ("[!ab]x", "bx", False),
        ("[", "[", True),
        ("a.c", "abc", False),
        ("", "", True),
        ("*", "", True),
    ],
)
def test_patterns(pattern: str, key: str, *, matches: bool) -> None:
    policy = Policies({pattern: merge.union}, merge.reject)[key]
    assert policy is (merge.union if matches else merge.reject)


def test_a_function_becomes_a_guarded_policy() -> None:
    policy = Policies({"name": longest}, merge.three_way)["name"]
    assert policy.resolve is longest
    assert policy.diff("a", "bb") == merge.last_write.diff("a", "bb")
    assert Policies({}, longest)["anything"].resolve is longest
    assert as_policy(policy) is policy


@pytest.mark.parametrize("junk", ["counter", None, 1, {}, ("union",), merge.MISSING])
def test_what_is_no_policy_is_refused(junk: Any) -> None:
    for declared, default in (({"key": junk}, merge.union), ({}, junk)):
        with pytest.raises(ConfigurationError, match=type(junk).__qualname__):
            Policies(declared, default)


@pytest.mark.parametrize("key", [1, None, b"key", ("a", "b")])
def test_what_is_no_key_is_refused(key: Any) -> None:
    with pytest.raises(ConfigurationError, match=type(key).__qualname__):
        Policies({key: merge.union}, merge.three_way)


def test_policies_by_name() -> None:
    for name in NAMES:
        policy = getattr(merge, name)
        assert isinstance(policy, Policy)
        assert policy.name == name
        assert repr(policy) == f"merge.{name}"
        assert (policy.resolve is not None) == (name in GUARDED)
    assert {name for name, it in vars(merge).items() if isinstance(it, Policy)} == set(NAMES)
    assert set(NAMES) < set(merge.__all__)
    assert repr(as_policy(longest)) == "merge.longest"
    assert repr(as_policy(lambda *_: 1)) == "merge.<lambda>"


def test_missing() -> None:
    assert repr(MISSING) == "MISSING"
    assert not MISSING


# What each does.


def both(policy: Policy, base: Any, ours: Any, theirs: Any) -> tuple[Any, Review]:
    """Return what ours, on top of theirs, comes to, and what the writer is told."""
    first, second = policy.diff(base, theirs), policy.diff(base, ours)
    assert second is not None
    there = base if first is None else apply(base, first)
    return apply(there, second), review(base, there, second)


M, OVER, DROP, OK = MISSING, Review.OVERWRITTEN, Review.DROPPED, Review.MERGED


@pytest.mark.parametrize(
    ("policy", "base", "ours", "theirs", "result", "verdict"),
    [
        (merge.last_write, {"a": 1}, {"a": 1, "b": 1}, {}, {"a": 1, "b": 1}, OVER),
        (merge.last_write, 1, 2, 2, 2, OK),
        (merge.last_write, 1, M, 2, M, OVER),
        (merge.last_write, M, 1, 2, 1, OVER),
        (merge.counter, 1, 3, 6, 8, OK),
        (merge.counter, 10, 0, 11, 1, OK),
        (merge.counter, M, 2, 3, 5, OK),
        (merge.counter, 0, 0.5, 1, 1.5, OK),
        (merge.counter, 2.0, 3, 5.0, 6.0, OK),
        (merge.counter, Decimal("1.10"), Decimal("1.20"), Decimal("1.30"), Decimal("1.40"), OK),
        (merge.counter, 1, 2, M, 1, OK),
        (merge.counter, 1, M, 2, M, OVER),
        (merge.counter, 1, 2, "text", "text", DROP),
        (merge.counter, 1, 2, True, True, DROP),
        (merge.counter, 1, "text", 2, "text", OVER),
        (merge.counter, "text", 2, "other", 2, OVER),
        (merge.counter, True, 2, False, 2, OVER),
        (merge.maximum, 1, 5, 3, 5, OK),
        (merge.maximum, 1, 3, 5, 5, OK),
        (merge.maximum, 5, 1, 6, 1, OVER),
        (merge.maximum, M, 1, 2, 2, OK),
        (merge.maximum, 1, 2, M, 2, OK),
        (merge.maximum, 1, 2, "text", "text", DROP),
        (merge.maximum, "a", "c", "b", "c", OK),
        (merge.maximum, 1, M, 2, M, OVER),
        (merge.minimum, 5, 1, 3, 1, OK),
        (merge.minimum, 5, 3, 1, 1, OK),
        (merge.minimum, 1, 5, 0, 5, OVER),
        (merge.minimum, 1, 0, None, None, DROP),
        (merge.union, {1, 2}, {1, 3}, {1, 2, 4}, {1, 3, 4}, OK),
        (merge.union, [1, 2], [2, 3], [1, 2, 3], [2, 3], OK),
        (merge.union, M, [1, 2], [2, 3], [2, 3, 1], OK),
        (merge.union, M, frozenset({1}), frozenset({2}), frozenset({1, 2}), OK),
        (merge.union, {1}, [1, 2], {1, 3}, [1, 2], OVER),
        (merge.union, [1], [1, 2], "text", "text", DROP),
        (merge.union, [1], [1, 2], M, [2], OK),
        (merge.union, [1], M, [1, 2], [2], OK),
        (merge.three_way, [1], M, [1], M, OK),
        (merge.three_way, {1}, M, {1, 2}, {2}, OK),
        (merge.three_way, [1], M, "text", M, OVER),
        (merge.union, [1, 2], [2], M, M, OK),
        (merge.append, [1, 2], [2], M, M, OK),
        (merge.append, M, [1], [1], [1, 1], OK),
        (merge.append, [1], [1, 2], [1, 2], [1, 2, 2], OK),
        (merge.append, [1, 2], [2], [1, 2, 3], [2, 3], OK),
        (merge.append, [1], [1, 2], {"a": 1}, {"a": 1}, DROP),
        (merge.three_way, {"a": [1]}, {"a": [1, 2]}, {"a": [1, 3]}, {"a": [1, 3, 2]}, OK),
        (merge.three_way, {"a": 1}, {"a": 2}, M, M, DROP),
        (merge.three_way, "old", "ours", "theirs", "ours", OVER),
    ],
)
def test_two_writers(
    policy: Policy, base: Any, ours: Any, theirs: Any, result: Any, verdict: Review
) -> None:
    got, told = both(policy, base, ours, theirs)
    assert image(got) == image(result)
    assert told is verdict


def test_first_write_keeps_theirs_and_reject_refuses() -> None:
    assert merge.first_write.resolve is not None
    assert merge.first_write.resolve(1, 2, 3) == 3
    assert merge.first_write.resolve(1, 2, MISSING) is MISSING
    assert merge.reject.resolve is not None
    with pytest.raises(Refused):
        merge.reject.resolve(1, 2, 3)


@pytest.mark.parametrize("name", ["last_write", "first_write", "reject"])
def test_plain_policies_set_and_delete(name: str) -> None:
    change: Callable[[Any, Any], bytes] = getattr(merge, name).diff
    assert change({"a": 1}, {"a": 1}) is None
    assert change({"a": 1}, {"a": 2})[0] == Op.SET
    assert change(1, MISSING) == bytes([Op.DELETE])
    assert change(MISSING, {"a": 1})[0] == Op.SET


_cents = st.integers(-(10**12), 10**12).map(lambda n: Decimal(n).scaleb(-2))
_counts = st.one_of(st.integers(), st.integers(-(2**80), 2**80))


@given(st.one_of(*(st.tuples(n, n, n, n) for n in (_counts, _cents))), st.booleans())
def test_counters_add_up(counts: tuple[Any, ...], created: bool) -> None:
    base, *others = counts
    base = MISSING if created else base
    total = (0 if created else base) + sum(one - (0 if created else base) for one in others)
    for result in orders(base, *(merge.counter.diff(base, one) for one in others)):
        assert type(result) is type(others[0])
        assert result == total


@given(st.lists(_counts, min_size=2, max_size=4), st.sampled_from([1, -1]))
def test_extremes_commute(counts: list[int], sign: int) -> None:
    base, *others = (sign * count for count in sorted(sign * count for count in counts))
    policy, winner = (merge.maximum, max) if sign == 1 else (merge.minimum, min)
    for start in (base, MISSING):
        deltas = [policy.diff(start, one) for one in others]
        assert {*orders(start, *deltas)} == {winner(others) if start is MISSING else winner(counts)}


_few = st.frozensets(st.sampled_from([0, 1, 2, "a", "b", frozenset({1}), None]), max_size=5)


def _united(base: Any, ours: Any, theirs: Any) -> Any:
    """Return what a set must be after two writers: kept by both, or added by one."""
    return (base & ours & theirs) | (ours - base) | (theirs - base)


@given(st.sampled_from([merge.three_way, merge.union]), st.booleans(), _few, _few, _few)
def test_nothing_added_to_a_set_is_lost(
    policy: Policy, frozen: bool, base: Any, ours: Any, theirs: Any
) -> None:
    kind = frozenset if frozen else set
    deltas = [policy.diff(kind(base), kind(one)) for one in (ours, theirs)]
    for result in orders(kind(base), *deltas):
        assert image(result) == image(kind(_united(base, ours, theirs)))


@given(st.sampled_from([list, tuple]), st.permutations(range(6)), _few, _few, st.booleans())
def test_union_uses_lists_as_sets(
    kind: type, new: list[int], ours: Any, theirs: Any, created: bool
) -> None:
    """Two that add the same item add it once; the order of what is kept stays."""
    base = [] if created else list(range(4))
    deltas = []
    for one in (ours, theirs):
        kept = [item for item in base if item in one]
        mine = kind([*kept, *(item for item in new if item in one and item not in base)])
        deltas.append(merge.union.diff(MISSING if created else base, mine))
    expected = _united(frozenset(base), ours & set(range(6)), theirs & set(range(6)))
    for result in orders(MISSING if created else base, *deltas):
        assert sorted(result) == sorted(expected)


@given(sequences, sequences, sequences, st.booleans())
def test_nothing_appended_is_lost(
    base: list[Any], ours: list[Any], theirs: list[Any], created: bool
) -> None:
    start = MISSING if created else base
    base = [] if created else base
    deltas = [merge.append.diff(start, [*base, *ours]), merge.append.diff(start, [*base, *theirs])]
    one, two = orders(start, *deltas)
    assert image(one) == image([*base, *ours, *theirs])
    assert image(two) == image([*base, *theirs, *ours])


_union_pairs = st.one_of(
    st.tuples(sequences | st.just(MISSING), sequences),
    st.tuples(_few.map(set) | st.just(MISSING), _few.map(set)),
)


@given(st.one_of(sequences, _few.map(set), _few), st.lists(_union_pairs, min_size=1, max_size=4))
@example([1], [([1], []), ([], [1])])
def test_a_run_of_unions_is_folded_as_it_would_be_one_by_one(
    start: Any, changes: list[tuple[Any, Any]]
) -> None:
    deltas = [delta for base, ours in changes if (delta := merge.union.diff(base, ours))]
    for current in (start, MISSING, "text"):
        expected = reduce(apply, deltas, current)
        before = image(current)
        assert image(fold(deltas, current)) == image(expected)
        assert image(current) == before


class Role(StrEnum):
    ADMIN = "admin"


@pytest.mark.parametrize("kind", [set, frozenset, list])
def test_an_item_of_a_subclass_is_the_plain_item(kind: type) -> None:
    """It is stored as such, so assigning it again neither removes nor adds anything."""
    base, ours = kind(["admin"]), kind([Role.ADMIN, "new"])
    for policy in (merge.union, merge.three_way):
        assert both(policy, base, ours, kind([]))[0] == kind(["new"])
