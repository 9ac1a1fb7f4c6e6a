"""Deltas: apply(base, diff(base, ours)) == ours, and what becomes of two writers' deltas."""

from __future__ import annotations

import copy
import datetime as dt
from collections import Counter
from contextlib import suppress
from decimal import Decimal
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.strategies import (
    POLICIES,
    fold,
    image,
    items,
    orders,
    pairs,
    rivals,
    sequences,
    sets,
    stored,
    values,
)

from asyncsession import merge
from asyncsession.delta import Op, Review, apply, diff, encode, review
from asyncsession.errors import InvalidSessionData
from asyncsession.merge import Policy
from asyncsession.operations import MISSING, same
from asyncsession.values import pack, pack_value

NAN = float("nan")
any_policy = st.sampled_from(POLICIES)


@given(any_policy, pairs)
@settings(max_examples=400)
@example(merge.three_way, ({1: "a"}, {True: "a"}))
@example(merge.three_way, ({1: "a", 2: 0}, {1.0: "a"}))
@example(merge.three_way, ({NAN: 1}, {}))
@example(merge.three_way, ({NAN: 1}, {NAN: 2}))
@example(merge.three_way, ({Decimal("NaN"): 1, "a": 1}, {"a": 1}))
@example(merge.three_way, ({NAN, 1}, {1}))
@example(merge.three_way, ({1}, {True}))
@example(merge.three_way, ({"a": {NAN, 1}}, {"a": {float("nan"), float("nan"), 2}}))
@example(merge.union, ({NAN}, {float("nan"), float("nan")}))
@example(merge.union, ([1, 1, 2], [2, 1]))
@example(merge.union, ([1], (1, 2)))
@example(merge.union, (MISSING, [1, 1]))
@example(merge.counter, (Decimal("1.1"), Decimal("1.10")))
@example(merge.counter, (2.0, 3))
@example(merge.counter, (0.1, 0.3))
@example(merge.counter, (10**400, 1.5))
@example(merge.counter, (float("inf"), NAN))
@example(merge.counter, (Decimal("1E+999999"), Decimal("9" * 40)))
@example(merge.counter, (1, True))
@example(merge.maximum, (NAN, 1))
@example(merge.maximum, (1, Decimal("sNaN")))
@example(merge.minimum, (-0.0, 0.0))
@example(merge.append, (MISSING, ()))
def test_the_law(policy: Policy, pair: tuple[Any, Any]) -> None:
    base, ours = stored(pair[0]), pair[1]
    delta = policy.diff(base, ours)
    if delta is None:
        assert image(base) == image(ours)
    else:
        assert not same(base, ours)
        assert image(apply(base, delta)) == image(ours)


@given(any_policy, pairs, st.one_of(values, st.just(MISSING)))
@settings(max_examples=250)
@example(merge.three_way, ({1, 2}, {1, (3.5)}), [[]])
@example(merge.union, ([], [[1]]), {1})
@example(merge.maximum, (1, 2), Decimal("sNaN"))
@example(merge.minimum, (MISSING, [NAN]), [Decimal("NaN")])
@example(merge.counter, (1, 10**400), 1.5)
@example(merge.counter, (MISSING, Decimal("9E+999999")), Decimal("9E+999999"))
def test_a_delta_that_meets_anything_has_a_result(
    policy: Policy, pair: tuple[Any, Any], current: Any
) -> None:
    delta = policy.diff(stored(pair[0]), pair[1])
    if delta is None:
        return
    current = stored(current)
    before, twin = image(current), copy.deepcopy(current)
    result = apply(current, delta)
    assert image(current) == before
    if result is not MISSING:
        pack_value("key", result)
    assert image(apply(stored(twin), delta)) == image(result)
    assert isinstance(review(stored(pair[0]), current, delta), Review)
    assert image(current) == before


_left, _right = (st.dictionaries(st.sampled_from(names), values) for names in ("ab", [1, None]))


@given(_left, _right, _left, _right)
@settings(max_examples=100)
def test_writers_of_different_sub_keys_commute(
    left: dict[Any, Any], right: dict[Any, Any], ours: dict[Any, Any], theirs: dict[Any, Any]
) -> None:
    """Whatever they add, change and delete, and however deep in the value."""
    one = diff({"x": left | right}, {"x": ours | right})
    two = diff({"x": left | right}, {"x": left | theirs})
    for result in orders({"x": left | right}, one, two):
        assert image(result) == image({"x": ours | theirs})


@given(sequences, st.sets(st.integers(0, 5)), sequences)
def test_removing_an_item_and_appending_another_commute(
    base: list[Any], gone: set[int], new: list[Any]
) -> None:
    ours = [item for at, item in enumerate(base) if at not in gone]
    one, two = orders(base, diff(base, ours), diff(base, [*base, *new]))
    assert Counter(map(pack, one)) == Counter(map(pack, two)) == Counter(map(pack, [*ours, *new]))
    if not set(map(pack, gone)) & set(map(pack, new)):
        assert len(one) == len(ours) + len(new)


@given(st.permutations(range(6)), st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_moved_items_are_neither_doubled_nor_resurrected(
    ours: list[int], theirs: list[int], gone: set[int]
) -> None:
    base = list(range(6))
    for other in (theirs, [item for item in base if item not in gone]):
        for result in orders(base, diff(base, ours), diff(base, other)):
            assert sorted(result) == sorted(other)


@given(rivals)
@settings(max_examples=100)
def test_review_reports_what_was_replaced_and_nothing_else(rival: tuple[Any, Any, Any]) -> None:
    base, ours, theirs = map(stored, rival)
    delta = diff(base, ours)
    if delta is not None:
        for equal in (base, ours):
            assert review(base, equal, delta) is Review.MERGED
        if delta[0] in (Op.SET, Op.DELETE) and not same(base, theirs) and not same(theirs, ours):
            assert review(base, theirs, delta) is Review.OVERWRITTEN


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "result", "verdict"),
    [
        ({"a": 1}, {"a": 2}, MISSING, MISSING, Review.DROPPED),
        ({"a": 1}, {"a": 2}, "text", "text", Review.DROPPED),
        ({"d": {"a": 1}}, {"d": {"a": 2}}, {}, {}, Review.DROPPED),
        ({"d": {"a": 1}}, {"d": {"a": 2}, "n": 1}, {}, {"n": 1}, Review.DROPPED),
        ([1], [1, 2], "text", "text", Review.DROPPED),
        ({1}, {1, 2}, 7, 7, Review.DROPPED),
        (1, 2, 3, 2, Review.OVERWRITTEN),
        (1, 2, 2, 2, Review.MERGED),
        (1, MISSING, 3, MISSING, Review.OVERWRITTEN),
        (1, MISSING, MISSING, MISSING, Review.MERGED),
        ({"a": 1}, {"a": 2}, {"a": 3}, {"a": 2}, Review.OVERWRITTEN),
        ({"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 1, "b": 3}, {"a": 2, "b": 3}, Review.MERGED),
        ({"a": 1}, {}, {"a": 3}, {}, Review.OVERWRITTEN),
        (MISSING, {"a": 1}, {"b": 2}, {"b": 2, "a": 1}, Review.MERGED),
        (MISSING, {"a": 1}, {"a": 2}, {"a": 1}, Review.OVERWRITTEN),
        (MISSING, {"a": 1}, 7, {"a": 1}, Review.OVERWRITTEN),
        (MISSING, {"a": {"x": 1}}, {"a": {"y": 2}}, {"a": {"y": 2, "x": 1}}, Review.MERGED),
        (MISSING, [1], [2], [2, 1], Review.MERGED),
        (MISSING, {1}, {2}, {1, 2}, Review.MERGED),
    ],
)
def test_review(base: Any, ours: Any, theirs: Any, result: Any, verdict: Review) -> None:
    delta = diff(base, ours)
    assert delta is not None
    assert image(apply(theirs, delta)) == image(result)
    assert review(base, theirs, delta) is verdict


_parts = st.recursive(
    st.binary(max_size=8),
    lambda part: st.builds(
        lambda op, operand: bytes((op,)) + pack(operand),
        st.integers(0, 9),
        st.one_of(
            values,
            st.dictionaries(st.sampled_from("ab"), part, max_size=2),
            st.lists(st.one_of(st.lists(items), sets, values), max_size=3),
        ),
    ),
    max_leaves=4,
)


@given(_parts, st.one_of(values, sequences, st.just(MISSING)))
@settings(max_examples=250)
@example(b"", 1)
@example(b"\x09\xc0", 1)
@example(b"\x01 trailing", 1)
@example(bytes([Op.ADD]) + pack([1, 2]), 1)
@example(bytes([Op.ADD]) + pack([10**5000, 1, 1]), 1.5)
@example(bytes([Op.LIST]) + pack([[[]], [1], [2]]), [])
@example(bytes([Op.UNION]) + pack([[[]], [[]]]), {1})
@example(bytes([Op.UNION]) + pack([[[]], {1}]), [[]])
@example(bytes([Op.MAXIMUM]) + pack(Decimal("sNaN")), 1)
def test_hostile_deltas_have_a_result_or_are_refused(delta: bytes, current: Any) -> None:
    for base in (current, MISSING, {"a": {"b": 1}}):
        before = image(base)
        with suppress(InvalidSessionData):
            image(apply(base, delta))
            review(MISSING, base, delta)
        assert image(base) == before


@pytest.mark.parametrize("op", list(Op))
@pytest.mark.parametrize("depth", [600, 1024])
def test_deeply_nested_values_are_a_value_or_refused(op: Op, depth: int) -> None:
    for header, end in ((b"\x91", b"\xc0"), (b"\x81\xa1a", b"\x01"), (b"\x81\xa1a", b"\xc0")):
        deep = header * depth + end
        too_deep = msgpack.unpackb(deep)
        operands = [deep, b"\x92\x91" + deep + b"\x91" + deep, b"\x81\xa1a" + pack(b"\x00" + deep)]
        for operand in operands:
            for current in (MISSING, 1, [1], {"a": 1}, too_deep, [too_deep]):
                with suppress(InvalidSessionData):
                    apply(current, bytes((op,)) + operand)


def test_deeply_nested_patches_are_refused() -> None:
    delta = encode(Op.SET, 1)
    current: dict[str, Any] = {}
    for _ in range(80):
        delta, current = encode(Op.PATCH, {"a": delta}), {"a": current}
    with pytest.raises(InvalidSessionData):
        apply(current, delta)


def test_dicts_deeper_than_are_compared_are_replaced_as_a_whole() -> None:
    base: Any = {"n": 0}
    ours: Any = {"n": 1}
    for _ in range(90):
        base, ours = {"a": base, "s": 1}, {"a": ours, "s": 1}
    delta = diff(base, ours)
    assert delta is not None
    assert image(apply(base, delta)) == image(ours)


# Bugs of the field, by name.


def test_flash_message_added_while_the_old_ones_are_cleared() -> None:
    one, two = orders(["old"], diff(["old"], []), diff(["old"], ["old", "new"]))
    assert one == two == ["new"]


def test_flash_message_added_while_the_old_ones_are_popped() -> None:
    """It survives where it comes second; where it came first, the loss is at least reported."""
    popped, added = diff(["old"], MISSING), diff(["old"], ["old", "new"])
    assert popped is not None
    assert fold(["old"], popped, added) == ["new"]
    assert fold(["old"], added, popped) == ["new"]
    assert review(["old"], ["old", "new"], popped) is Review.MERGED


def test_flash_messages_popped_twice() -> None:
    popped = diff(["old"], MISSING)
    assert orders(["old"], popped, popped, diff(["old"], ["old"])) == [MISSING] * 6


def test_redis_rack_53_keys_can_be_deleted_after_a_merge() -> None:
    base = {"keep": 1, "gone": 2}
    for result in orders(base, diff(base, {"keep": 1}), diff(base, {**base, "keep": 3, "new": 4})):
        assert result == {"keep": 3, "new": 4}
    merged = fold(MISSING, diff(MISSING, {"gone": 1}), diff(MISSING, {"keep": 2}))
    assert fold(merged, diff(merged, {"keep": 2})) == {"keep": 2}


def test_connect_redis_346_dates_stay_dates() -> None:
    base = {"at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "n": 1}
    ours = {"at": dt.datetime(2026, 2, 2), "on": dt.date(2026, 2, 2), "n": 1}
    for result in orders(base, diff(base, ours), diff(base, {**base, "n": 2})):
        assert image(result) == image({**ours, "n": 2})
    for result in orders(MISSING, diff(MISSING, {"at": base["at"]}), diff(MISSING, {})):
        assert image(result) == image({"at": base["at"]})


def test_flask_session_71_nested_appends_all_arrive() -> None:
    base = {"user": {"log": ["a"]}}
    ours, theirs = ({"user": {"log": ["a", new]}} for new in "bc")
    one, two = orders(base, diff(base, ours), diff(base, theirs))
    assert one == {"user": {"log": ["a", "b", "c"]}}
    assert two == {"user": {"log": ["a", "c", "b"]}}
