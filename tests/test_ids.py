"""Ids: secret, recognisable, and never to be seen in what is stored."""

from __future__ import annotations

import base64
import math
import re
import secrets
from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis.crc import key_slot
from support.strategies import values

from asyncsession import ids
from asyncsession.ids import (
    index_key,
    is_session_id,
    new_id,
    session_handle,
    sibling_id,
    store_key,
)  # fmt: skip

FORM = re.compile(r"[A-Za-z0-9]{3}\.[A-Za-z0-9_-]{32}")
URL_SAFE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

slots = st.text(URL_SAFE[:-2], min_size=3, max_size=3)
session_ids = st.builds("{}.{}".format, slots, st.text(URL_SAFE, min_size=32, max_size=32))
prefixes = st.text(st.characters(exclude_characters="{}", codec="utf-8"), min_size=1)


def secret(session_id: str) -> str:
    return session_id.partition(".")[2]


def test_form() -> None:
    for session_id in (new_id(), sibling_id(new_id())):
        assert FORM.fullmatch(session_id)
        assert len(session_id) == 36
        assert is_session_id(session_id)


def test_192_bits_are_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them from `secrets`, none of them in the slot."""
    asked: list[int] = []
    token_bytes = secrets.token_bytes

    def spy(count: int | None = None) -> bytes:
        asked.append(count or 0)
        return token_bytes(count)

    monkeypatch.setattr(secrets, "token_bytes", spy)
    assert len(base64.urlsafe_b64decode(secret(new_id()))) == 24
    assert asked == [24]
    sibling_id(new_id())
    assert asked == [24, 24, 24]


def test_ids_do_not_repeat_and_letters_are_even() -> None:
    found = [new_id() for _ in range(5000)]
    assert len(set(map(secret, found))) == len(found)
    assert len({session_id[:3] for session_id in found}) > 4000
    counts = Counter("".join(map(secret, found)))
    assert set(counts) == set(URL_SAFE)
    even = 5000 * 32 / 64
    assert all(abs(count - even) < 7 * math.sqrt(even) for count in counts.values())


@given(st.one_of(values, st.text(), st.from_regex(FORM)))
@example("")
@example(None)
@example("abc." + "a" * 31)
@example("abc." + "a" * 33)
@example("abc." + "a" * 32 + "\n")
@example(" abc." + "a" * 32)
@example("abc_" + "a" * 32)
@example("ab}." + "a" * 32)
@example("ab-." + "a" * 32)
@example("abc." + "a" * 31 + "=")
@example("abc." + "a" * 31 + "é")
@example("٣bc." + "a" * 32)
@example("abc." + "a" * 31 + "\0")
@example(b"abc." + b"a" * 32)
def test_only_what_has_the_form_is_an_id(candidate: Any) -> None:
    expected = isinstance(candidate, str) and len(candidate) == 36
    assert is_session_id(candidate) is (expected and FORM.fullmatch(candidate) is not None)


@given(session_ids)
def test_a_sibling_keeps_the_slot_and_nothing_else(session_id: str) -> None:
    sibling = sibling_id(session_id)
    assert is_session_id(sibling)
    assert sibling[:4] == session_id[:4]
    assert secret(sibling) != secret(session_id)
    assert session_handle(sibling) != session_handle(session_id)


@given(session_ids, prefixes)
@example("aaa." + "a" * 32, "session")
def test_handles_and_keys_do_not_contain_the_secret(session_id: str, prefix: str) -> None:
    handle = session_handle(session_id)
    key = store_key(prefix, handle)
    assert key == f"{prefix}:{handle}"
    assert re.fullmatch(r"\{[A-Za-z0-9]{3}\}:[A-Za-z0-9_-]{43}", handle)
    assert handle == session_handle(session_id)
    digest = handle.partition(":")[2]
    known = secret(session_id)
    assert not any(known[at : at + 8] in digest for at in range(25))
    assert not is_session_id(handle)
    assert not is_session_id(handle.replace("{", "").replace("}:", "."))


@given(session_ids, session_ids, prefixes)
def test_siblings_live_in_one_cluster_slot(session_id: str, other: str, prefix: str) -> None:
    old, new, foreign = (
        store_key(prefix, session_handle(it)) for it in (session_id, sibling_id(session_id), other)
    )
    assert old != new
    assert key_slot(old.encode()) == key_slot(new.encode()) == key_slot(session_id[:3].encode())
    assert (old == foreign) == (secret(session_id) == secret(other) and old[:-44] == foreign[:-44])


def test_sessions_spread_over_the_cluster() -> None:
    count = Counter(key_slot(session_id[:3].encode()) * 4 // 16384 for session_id in
                    (new_id() for _ in range(4000)))  # fmt: skip
    assert all(800 < count[node] < 1200 for node in range(4))


@given(st.text(min_size=1), st.text(min_size=1), prefixes)
@example("user:42", "user:43", "session")
@example("\ud800", "\ud801", "session")
def test_an_index_key_does_not_show_whose_it_is(one: str, other: str, prefix: str) -> None:
    key = index_key(prefix, one)
    assert re.fullmatch(r":of:[A-Za-z0-9_-]{43}", key.removeprefix(prefix))
    assert (key == index_key(prefix, other)) == (one == other)
    assert len(one) < 6 or one not in key.removeprefix(prefix)


def test_an_index_is_never_a_session() -> None:
    handle = session_handle(new_id())
    assert not index_key("session", handle).startswith("session:{")
    assert store_key("session", handle).startswith("session:{")


def test_all_is_complete() -> None:
    public = {
        name for name, it in vars(ids).items() if getattr(it, "__module__", "") == ids.__name__
    }
    assert set(ids.__all__) == {name for name in public if not name.startswith("_")}
