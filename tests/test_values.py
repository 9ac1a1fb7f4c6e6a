"""Values: what goes in comes out, what cannot come out does not go in, and bytes do no harm."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import random
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.strategies import hashables, image, nest, scalars, values

from asyncsession.errors import InvalidSessionValue, SessionError
from asyncsession.values import pack, pack_value, unpack


class Colour(enum.IntEnum):
    RED = 1
    VAST = 2**70


class Role(enum.StrEnum):
    ADMIN = "admin"
    AA = "aa"
    B = "b"


class Plain(enum.Enum):
    A = 1


class Point(NamedTuple):
    x: int
    y: int


class Text(str):
    __slots__ = ()


class Names(list[str]):
    pass


class Tags(set[str]):
    pass


class Moment(dt.datetime):
    pass


class Other:
    pass


@given(values)
@settings(max_examples=250)
def test_round_trip(value: Any) -> None:
    packed = pack_value("key", value)
    back = unpack(packed)
    assert image(back) == image(value)
    assert pack_value("key", back) == packed


@given(st.dictionaries(hashables, values, max_size=1), scalars)
def test_every_scalar_is_a_dict_key_and_no_container_is(entries: dict[Any, Any], name: Any) -> None:
    if any(isinstance(name, frozenset) for name in entries):
        with pytest.raises(InvalidSessionValue, match="'key': a dict key may not be a container"):
            pack_value("key", entries)
    else:
        assert image(unpack(pack_value("key", entries))) == image(entries)


@given(st.lists(hashables, max_size=12), st.randoms(use_true_random=False))
@example(["aa", "b", "ccc"], random.Random(1))
@example([Role.AA, Role.B, "ccc"], random.Random(1))
@example([Colour.RED, -5, 300], random.Random(1))
def test_equal_sets_pack_the_same(items: list[Any], rng: random.Random) -> None:
    shuffled = rng.sample(items, len(items))
    if set(items) == set(shuffled):
        distinct = list(set(items))
        assert pack(set(distinct)) == pack(set(rng.sample(distinct, len(distinct))))
        assert pack_value("key", unpack(pack_value("key", set(distinct)))) == pack(set(distinct))


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Colour.RED, 1),
        (Colour.VAST, 2**70),
        (Role.ADMIN, "admin"),
        (Text("text"), "text"),
        (Point(1, 2), [1, 2]),
        (Names(["a"]), ["a"]),
        (Tags({"b", "aa"}), {"b", "aa"}),
        (Moment(2026, 1, 2, tzinfo=dt.UTC), dt.datetime(2026, 1, 2, tzinfo=dt.UTC)),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.defaultdict(int, a=1), {"a": 1}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        ({Role.ADMIN: Role.B}, {"admin": "b"}),
        ({Role.AA, Role.B}, {"aa", "b"}),
        ({Role.AA, "b", Text("ccc")}, {"aa", "b", "ccc"}),
        (frozenset({Colour.VAST, 300, Colour.RED}), frozenset({2**70, 300, 1})),
    ],
)
def test_subclasses_come_back_plain(value: Any, plain: Any) -> None:
    packed = pack_value("key", value)
    assert image(unpack(packed)) == image(plain)
    assert packed == pack_value("key", plain)


UNFIT = [
    object(), Other, Other(), Plain.A, bytearray(b"x"), memoryview(b"x"), 1j,
    range(3), (n for n in "ab"), len, ..., NotImplemented, dt.UTC, msgpack.Timestamp(1),
    msgpack.ExtType(5, b"x"), msgpack.ExtType(77, b"x"), {}.keys(), collections.deque([1]),
    collections.ChainMap({}),
]  # fmt: skip


@pytest.mark.parametrize("value", UNFIT, ids=lambda value: type(value).__name__)
def test_unfit_values_are_refused(value: Any) -> None:
    for nested in (value, [value], (1, [value]), {"a": {"b": value}}):
        with pytest.raises(InvalidSessionValue) as caught:
            pack_value("the key", nested)
        assert caught.value.key == "the key"
        assert caught.value.type is type(value)
        assert "'the key'" in str(caught.value)
        assert type(value).__qualname__ in str(caught.value)


@pytest.mark.parametrize("name", [(1, 2), frozenset(), Point(1, 2), Other(), ...])
def test_unfit_dict_keys_are_refused(name: Any) -> None:
    for nested in ({name: 1}, [{"a": {name: 1}}]):
        with pytest.raises(InvalidSessionValue, match="'key'") as caught:
            pack_value("key", nested)
        assert caught.value.type is type(name)


class Hashed(set[int]):
    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.mark.parametrize("item", [(1, 2), (), Point(1, 2), Hashed(), Other()])
def test_unfit_set_items_are_refused(item: Any) -> None:
    """A tuple would come back as a list, which no set can hold: the session would be unreadable."""
    for nested in ({item}, frozenset([item]), [{1, frozenset([item])}]):
        with pytest.raises(InvalidSessionValue, match="'key'") as caught:
            pack_value("key", nested)
        assert caught.value.type is type(item)


@pytest.mark.parametrize(
    ("wrap", "limit"),
    [
        (lambda core: [core], 100),
        (lambda core: (core,), 100),
        (lambda core: {"a": core}, 100),
        (lambda core: frozenset([core]), 10),
    ],
)
def test_depth_is_bounded(wrap: Any, limit: int) -> None:
    deepest = nest(limit, wrap)
    assert image(unpack(pack_value("key", deepest))) == image(deepest)
    for depth in (limit + 1, 1000, 100_000):
        with pytest.raises(InvalidSessionValue, match="'key': containers are nested too deep"):
            pack_value("key", nest(depth, wrap))


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidSessionValue, match="nested too deep"):
        pack_value("key", loop)


@pytest.mark.parametrize("value", ["\ud800", ["x\udfff"], {"\ud800": 1}, {"\ud800"}])
def test_lone_surrogates_are_refused(value: Any) -> None:
    with pytest.raises(InvalidSessionValue) as caught:
        pack_value("key", value)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, SessionError)
