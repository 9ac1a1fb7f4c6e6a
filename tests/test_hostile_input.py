"""Input of an attacker's choice: typed errors only, in bounded memory and time.

The targets are those of the fuzzer (`tests/fuzz/run.py`); here Hypothesis feeds them. Blobs, values
and deltas that are nearly in order are the matter of the tests of damage beside their modules.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from typing import Any

import msgpack
import pytest
from fuzz.targets import TARGETS
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.logs import blob, set_
from support.strategies import nest, values

from asyncsession import (
    ConfigurationError,
    InvalidSessionData,
    InvalidSessionValue,
    Session,
    SessionManager,
    SyncSessionManager,
)
from asyncsession.delta import Op, encode
from asyncsession.ids import checked_handle, is_session_id, new_id, session_handle
from asyncsession.integrations.cookies import Cookie
from asyncsession.log import Log
from asyncsession.values import pack, pack_value, unpack

MEGABYTES = 8  # that an input of `max_bytes`, 64 KiB, may take
PRIME = 2**61 - 1  # numbers that differ by a multiple of it have the same hash

ids = st.builds(lambda: new_id().encode())
_joints = st.sampled_from([b"session=", b"__Host-session=", b"s=", b"; ", b";", b"=", b" ", b"\n",
                           b"Bearer ", b"bearer", b"\t", b'"', b","])  # fmt: skip
headers = st.lists(st.binary(max_size=6) | _joints | ids, max_size=12).map(b"".join)
_parts = st.sampled_from(
    [
        "redis://",
        "rediss://",
        "unix://",
        "memory://",
        "embedded://",
        ":",
        "@",
        "/",
        "?",
        "&",
        "=",
        "[::1]",
        "%",
        "#",
        "0",
        "-1",
        "65536",
        "none",
        "db",
        "path",
        "protocol",
        "retry",
        "encoding",
        "max_connections",
        "socket_timeout",
        "ssl_cert_reqs",
    ]
)
urls = st.lists(_parts | st.text(max_size=4), max_size=9).map(
    lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
)


@pytest.mark.parametrize("target", sorted(set(TARGETS) - {"request", "url"}))
@settings(max_examples=40)
@given(st.binary(max_size=200) | values.map(pack))
def test_any_bytes_end_in_a_typed_error_or_none(target: str, data: bytes) -> None:
    TARGETS[target](data)


@settings(max_examples=80)
@given(headers)
@example(b"__Host-session=" + b";__Host-session=" * 3)
@example(b"\xff" * 40)
def test_any_headers_hold_an_id_or_none(data: bytes) -> None:
    TARGETS["request"](data)


@settings(max_examples=60)
@given(urls)
@example(b"localhost?retry_on_error=x")
@example(b"localhost?foo=1")
@example(b"h/0?ssl_cert_reqs=foo")
@example(b"ssl_check_hostname=maybe")
def test_any_url_makes_a_manager_or_a_configuration_error(data: bytes) -> None:
    TARGETS["url"](data)


@pytest.mark.parametrize(
    "option",
    ["foo=1", "retry_on_error=x", "parser_class=x", "connection_class=x", "credential_provider=x",
     "socket_keepalive_options=1", "ssl_cert_reqs=required", "path=x", "driver_info=x", "db=x"],
)  # fmt: skip
def test_options_that_redis_py_does_not_take_show_at_once(option: str) -> None:
    """They were a TypeError of the first request, or an outcome said to be unknown."""
    for make in (SessionManager, SyncSessionManager):
        with pytest.raises(ConfigurationError, match="the store") as caught:
            make(f"redis://:hidden@localhost/0?{option}")
        assert "hidden" not in str(caught.value)


@settings(max_examples=100)
@given(st.text(max_size=60) | st.binary(max_size=60) | st.integers() | st.none())
def test_what_was_not_issued_is_no_id(candidate: Any) -> None:
    assert not is_session_id(candidate)
    with SyncSessionManager("redis://127.0.0.1:1") as manager:
        session = manager.load(candidate)  # and nobody is asked
        assert session.is_new
        assert session.id != candidate


def test_ids_are_matched_whole() -> None:
    issued = new_id()
    for wrong in (issued + "\n", " " + issued, issued[:-1], issued.replace(".", ":"), issued + "\0",
                  issued[:-1] + "\u0661", issued[:-1] + "é"):  # fmt: skip
        assert not is_session_id(wrong)
    handle = session_handle(issued).encode()
    assert checked_handle(handle) == handle.decode()
    for bad in (handle + b"\n", handle[:-1], b"", handle[:-1] + b"\xff", handle + b"x" * 9999):
        with pytest.raises(InvalidSessionData):
            checked_handle(bad)


@contextmanager
def bounded(megabytes: float = MEGABYTES, seconds: float = 2) -> Iterator[None]:
    """Hold what is done to so much memory, and so much time of the processor."""
    gc.collect()
    tracemalloc.start()
    started = time.process_time()
    try:
        yield
        assert time.process_time() - started < seconds
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()


def extension(code: int, data: bytes) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, data))
    return packed


SIZE = 65_000
EXPENSIVE: dict[str, bytes] = {
    "promises within promises": b"\xdc\x4e\x20" * 100 + b"\xc0" * 60_000,
    "many promises within promises": b"\xdc\x4e\x20" * (SIZE // 3),
    "long promises": b"\xdd\0\0\x4e\x20" * (SIZE // 5),
    "promises of maps": b"\xdf\xff\xff\xff\xff\x01" * (SIZE // 6),
    "lists of nothing": b"\xdc\xfd\xe0" + b"\x90" * SIZE,
    "dicts of nothing": b"\xdc\xfd\xe0" + b"\x80" * SIZE,
    "sets of nothing": b"\xdc\x3e\x80" + extension(2, b"\x90") * 16_000,
    "sets within sets": nest(200, lambda core: extension(3, b"\x91" + core), b"\xc0"),
    "lists within lists": b"\x91" * SIZE,
    "lists that are not that deep": b"\x91" * 101 + b"\xc0",
    "dicts within dicts": b"\x81\xa0" * (SIZE // 2),
    "a long number": extension(1, b"\x7f" * SIZE),
    "a long decimal": extension(8, b"9" * SIZE),
}
COLLIDING: dict[str, Callable[[int], Any]] = {
    "int": lambda n: (n + 20) * PRIME,
    "UUID": lambda n: uuid.UUID(int=n * PRIME),
    "Decimal": lambda n: Decimal(n * PRIME),
    "frozenset": lambda n: frozenset([(n + 20) * PRIME]),
}
for kind, make in COLLIDING.items():
    many = {make(n) for n in range(60_000 // len(pack(make(2000))))}
    EXPENSIVE[f"a set of colliding {kind}s"] = pack(many)
    EXPENSIVE[f"a dict of colliding {kind}s"] = pack(dict.fromkeys(many))


@pytest.mark.parametrize("packed", EXPENSIVE.values(), ids=EXPENSIVE)
def test_a_value_cannot_be_made_expensive(packed: bytes) -> None:
    stored = blob([{"a": b"\0" + packed}, {"b": set_(1)}])
    with bounded(), suppress(InvalidSessionData):
        log = Log.parse(stored)
        log.value("a")
        log.compacted()


@pytest.mark.parametrize("kind", COLLIDING)
def test_too_many_with_one_hash_are_refused_when_read_and_when_written(kind: str) -> None:
    few, many = ([COLLIDING[kind](n) for n in range(count)] for count in (256, 400))
    makers: list[Callable[[Any], Any]] = [set]
    if kind != "frozenset":  # which may not be the key of a dict
        makers.append(dict.fromkeys)
    for make in makers:
        assert unpack(pack_value("key", make(few))) == make(few)
        with pytest.raises(InvalidSessionData, match="same hash"):
            unpack(pack(make(many)))
        with pytest.raises(InvalidSessionValue, match=r"'key'.*same hash") as caught:
            pack_value("key", make(many))
        assert caught.value.key == "key"
    assert unpack(pack_value("key", [few[0]] * 1000)) == [few[0]] * 1000, "one, many times"


@pytest.mark.parametrize("op", ["UNION", "CREATE", "PATCH"])
def test_nor_can_they_be_put_together_of_several_changes(op: str) -> None:
    def delta(start: int) -> bytes:
        some = [COLLIDING["UUID"](n) for n in range(start, start + 100)]
        if op == "UNION":
            return encode(Op.UNION, [[], set(some)])
        if op == "CREATE":
            return encode(Op.CREATE, set(some))
        return encode(Op.PATCH, dict.fromkeys(some, encode(Op.SET, 1)))

    first = set_({}) if op == "PATCH" else set_(set())
    log = Log.parse(blob([{"a": first}, *({"a": delta(start)} for start in range(0, 3000, 100))]))
    with bounded(), pytest.raises(InvalidSessionData, match="same hash"):
        log.value("a")


def test_ordinary_keys_and_items_may_be_many() -> None:
    for value in (
        {uuid.uuid4() for _ in range(2000)},
        {str(number): number for number in range(5000)},
        {2**64 + number for number in range(2000)},
        {Decimal(number) / 7 for number in range(2000)},
        dict.fromkeys(range(-5000, 5000)),
    ):
        assert unpack(pack_value("key", value)) == value


@pytest.mark.parametrize(
    "wrap", [lambda core: [core], lambda core: {"a": core}, lambda core: [1, {"x": core}]]
)
def test_as_deep_as_is_saved_is_read_and_no_deeper(wrap: Callable[[Any], Any]) -> None:
    step = len(list(_levels(wrap(None))))
    deepest = nest(100 // step, wrap)
    assert unpack(pack_value("key", deepest)) == deepest
    for depth in (100 // step + 1, 400 // step):
        deeper = nest(depth, wrap)
        with pytest.raises(InvalidSessionValue, match="too deep"):
            pack_value("key", deeper)
        with pytest.raises(InvalidSessionData, match="too deep"):
            unpack(pack(deeper))


def _levels(value: Any) -> Iterator[Any]:
    while value is not None:
        yield value
        value = value[-1] if isinstance(value, list) else next(iter(value.values()))


def test_changes_cannot_make_a_value_deeper() -> None:
    deep = nest(90, lambda core: {"a": core}, {})
    patch = encode(Op.SET, nest(90, lambda core: {"a": core}))
    for _ in range(60):
        patch = encode(Op.PATCH, {"a": patch})
    log = Log.parse(blob([{"k": set_(deep)}, {"k": patch}]))
    with pytest.raises(InvalidSessionData, match="too deep"):
        log.value("k")


def test_a_cookie_header_costs_no_more_than_a_few_times_its_size() -> None:
    for line in (b";" * SIZE, b"__Host-session=;" * 4000, b"__Host-session=" + b"x" * SIZE):
        with bounded():
            assert Cookie().read([(b"cookie", line)]) is None


def test_hostile_objects_are_named_and_not_kept() -> None:
    class Loud(dict):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            raise RuntimeError("an application's own error")

    endless: list[Any] = []
    endless.append(endless)
    session = Session()
    some = [endless, {(): 1}, {frozenset(): 1}, object(), "\ud800", bytearray(), {1: object()}]
    for value in (*some, msgpack.Timestamp(1), msgpack.ExtType(99, b""), [{"a": endless}]):
        session["key"] = value
        with pytest.raises(InvalidSessionValue, match="'key'"):
            pack_value("key", value)
        assert session.modified
    with pytest.raises(RuntimeError, match="own error"):
        pack_value("key", Loud(a=1))
