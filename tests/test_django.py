"""The session engine by Django's contract for engines, by its own methods and by those to await."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.sessions.backends.base import CreateError, UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted
from django.core.exceptions import SynchronousOnlyOperation
from django.test import override_settings
from support.django import engine
from support.django_way import HAS_AWAITED_MAPPING, Way
from support.servers import Server

from asyncsession import InvalidSessionValue, SessionConflict
from asyncsession.ids import is_session_id, new_id
from asyncsession.integrations.django import SessionStore, aclose


@pytest.fixture
def server(get_server: Callable[[str], Server]) -> Iterator[Server]:
    server = get_server("valkey9")
    with engine(server.url):
        yield server


@pytest.fixture(params=["blocking", "awaited"])
async def way(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Way]:
    if request.param == "awaited" and not HAS_AWAITED_MAPPING:
        pytest.skip("Django before 5.1 has no methods to await")
    yield Way(request.param == "awaited")
    await aclose()


async def test_a_new_session_is_untouched(way: Way) -> None:
    store = SessionStore()
    assert (store.accessed, store.modified, store.session_key) == (False, False, None)
    assert store.is_empty()
    assert await way(store, "get", "a") is None
    assert (store.accessed, store.modified, store.is_empty()) == (True, False, True)


async def test_the_mapping(way: Way) -> None:
    store = SessionStore()
    await way(store, "set", "a", 1)
    assert store.modified
    assert await way(store, "setdefault", "a", 2) == 1
    assert await way(store, "setdefault", "b", 2) == 2
    await way(store, "update", {"c": 3})
    assert await way(store, "has_key", "c")
    assert "d" not in store
    assert list(await way(store, "keys")) == ["a", "b", "c"]
    assert list(await way(store, "values")) == [1, 2, 3]
    assert list(await way(store, "items")) == [("a", 1), ("b", 2), ("c", 3)]
    assert await way(store, "pop", "a") == 1
    assert await way(store, "pop", "a", 7) == 7
    with pytest.raises(KeyError):
        await way(store, "pop", "a")
    await way(store, "set_test_cookie")
    assert await way(store, "test_cookie_worked")
    await way(store, "delete_test_cookie")
    assert not await way(store, "test_cookie_worked")


@pytest.mark.parametrize("look", ["get", "has_key", "pop"])
async def test_looking_is_access_and_no_change(way: Way, look: str) -> None:
    store = SessionStore(await way.stored(a=1))
    await way(store, look, "b", *([None] if look == "pop" else []))
    assert (store.accessed, store.modified) == (True, False)


async def test_a_nested_change_is_one_without_being_declared(way: Way) -> None:
    store = SessionStore(await way.stored(cart=["a"]))
    (await way(store, "get", "cart")).append("b")
    await way(store, "pop", "nothing", None)  # and a miss does not hide it
    assert store.modified
    await way(store, "save")
    assert await way.shown(store.session_key) == {"cart": ["a", "b"]}


async def test_what_is_declared_to_be_unmodified_is(way: Way) -> None:
    store = SessionStore()
    await way(store, "set", "a", 1)
    store.modified = False
    assert not store.modified
    await way(store, "set", "b", 1)
    assert store.modified


async def test_two_requests_are_merged(way: Way) -> None:
    key = await way.stored(views=1)
    one, other = SessionStore(key), SessionStore(key)
    for store, name in ((one, "one"), (other, "other")):
        await way(store, "set", "views", await way(store, "get", "views") + 1)
        await way(store, "set", name, True)
    await way(one, "save")
    await way(other, "save")
    assert await way.shown(key) == {"views": 3, "one": True, "other": True}


async def test_an_explicit_save_stores_an_empty_session(way: Way) -> None:
    store = SessionStore()
    await way(store, "save")
    key = store.session_key
    assert is_session_id(key)
    assert await way(store, "exists", key)
    await way(store, "set", "a", 1)
    await way(store, "save")
    assert store.session_key == key
    assert await way.shown(key) == {"a": 1}


async def test_create_begins_another_session_with_what_this_one_holds(way: Way) -> None:
    old = await way.stored(a=1)
    store = SessionStore(old)
    await way(store, "get", "a")
    await way(store, "create")
    assert store.session_key not in (old, None)
    assert await way.shown(store.session_key) == await way.shown(old) == {"a": 1}


@pytest.mark.parametrize("key", ["1", "", "someunknownkey", "a" * 32, None])
async def test_a_foreign_key_is_never_adopted(way: Way, key: str | None) -> None:
    await _is_never_adopted(way, key)


async def test_a_key_of_our_form_that_was_not_issued_is_never_adopted(way: Way) -> None:
    await _is_never_adopted(way, new_id())


async def _is_never_adopted(way: Way, key: str | None) -> None:
    store = SessionStore(key)
    await way(store, "load")
    assert store.session_key is None
    assert not await way(store, "exists", key)
    await way(store, "set", "a", 1)
    await way(store, "save")
    assert store.session_key != key


async def test_must_create(way: Way) -> None:
    key = await way.stored(a=1)
    with pytest.raises(CreateError):
        await way(SessionStore(key), "save", True)
    store = SessionStore(planted := new_id())
    await way(store, "save", True)
    assert store.session_key != planted
    assert await way(store, "exists", store.session_key)


async def test_saving_a_key_that_nobody_has_is_an_update_error(way: Way) -> None:
    with pytest.raises(UpdateError):
        await way(SessionStore(new_id()), "save")


@pytest.mark.parametrize("change", [{"a": 2}, {}], ids=["changed", "unchanged"])
async def test_an_ended_session_is_not_brought_back(way: Way, change: dict[str, Any]) -> None:
    store = SessionStore(await way.stored(a=1))
    await way(store, "update", change)
    key = store.session_key
    await way(SessionStore(key), "delete")
    with pytest.raises(UpdateError):
        await way(store, "save")
    assert not await way(store, "exists", key)
    assert await way.shown(key) == {}


async def test_clear_of_what_was_never_looked_at(way: Way) -> None:
    key = await way.stored(a=1)
    store = SessionStore(key)
    store.clear()
    assert (store.accessed, store.modified, store.is_empty()) == (True, True, False)
    await way(store, "set", "b", 2)
    await way(store, "save")
    assert await way.shown(key) == {"b": 2}


async def test_flush_ends_the_session_and_begins_another(way: Way) -> None:
    key = await way.stored(a=1)
    store = SessionStore(key)
    await way(store, "flush")
    assert (store.session_key, store.accessed, store.modified) == (None, True, True)
    assert store.is_empty()
    assert not await way(store, "exists", key)
    await way(store, "set", "b", 2)
    await way(store, "save")
    assert store.session_key not in (key, None)
    assert await way.shown(store.session_key) == {"b": 2}


@pytest.mark.parametrize("method", ["flush", "delete"])
async def test_a_session_is_ended_wherever_it_has_moved(way: Way, method: str) -> None:
    key = await way.stored(a=1)
    slow, login = SessionStore(key), SessionStore(key)
    await way(slow, "get", "a")
    await way(login, "cycle_key")
    await way(slow, method)
    assert not await way(slow, "exists", login.session_key)


async def test_flush_with_a_key_that_was_rotated_away_says_so(way: Way) -> None:
    login = SessionStore(key := await way.stored(a=1))
    await way(login, "cycle_key")
    with pytest.raises(SessionConflict):
        await way(SessionStore(key), "flush")
    assert await way(login, "exists", login.session_key)


async def test_cycle_key_moves_the_session_with_what_is_not_saved_yet(way: Way) -> None:
    store = SessionStore(key := await way.stored(a=1))
    await way(store, "set", "b", 2)
    await way(store, "cycle_key")
    assert store.session_key not in (key, None)
    assert not await way(store, "exists", key)
    assert await way(store, "exists", store.session_key)
    assert await way.shown(store.session_key) == {"a": 1, "b": 2}


async def test_cycle_key_of_nothing_stored_writes_nothing_until_it_is_saved(way: Way) -> None:
    store = SessionStore()
    await way(store, "cycle_key")
    assert not await way(store, "exists", store.session_key)
    await way(store, "save")
    assert await way(store, "exists", store.session_key)


async def test_cycle_key_does_not_bring_an_ended_session_back(way: Way) -> None:
    """Django's own engines copy its content, the login included, to a new key."""
    store = SessionStore(key := await way.stored(_auth_user_id="1"))
    await way(store, "get", "_auth_user_id")
    await way(SessionStore(key), "delete")
    with pytest.raises(SessionInterrupted):
        await way(store, "cycle_key")
    assert store.is_empty()


async def test_on_its_own_a_save_after_a_rotation_elsewhere_keeps_the_cookie(way: Way) -> None:
    key = await way.stored(a=1)
    slow, login = SessionStore(key), SessionStore(key)
    await way(slow, "set", "b", 2)
    await way(login, "cycle_key")
    with pytest.raises(UpdateError, match="new key"):  # `SessionMiddleware` would send the old one
        await way(slow, "save")
    assert await way.shown(login.session_key) == {"a": 1, "b": 2}


async def test_a_value_that_cannot_be_kept_is_named(way: Way) -> None:
    store = SessionStore()
    await way(store, "set", "a", object())
    assert store.modified
    with pytest.raises(InvalidSessionValue, match="'a'"):
        await way(store, "save")


async def test_types_that_json_does_not_know_are_kept(way: Way) -> None:
    values = {"when": datetime(2026, 1, 1, tzinfo=UTC), "set": {1}, "ids": {1: "one"}, "b": b"\0"}
    assert await way.shown(await way.stored(**values)) == values


@pytest.mark.skipif(not HAS_AWAITED_MAPPING, reason="Django before 5.1 has no methods to await")
async def test_on_an_event_loop_only_methods_to_await_may_wait(server: Server) -> None:
    way = Way(is_awaited=True)
    store = SessionStore(await way.stored(a=1))
    with pytest.raises(SynchronousOnlyOperation, match="aget"):
        store.get("a")
    await store.aget("a")
    assert store["a"] == 1, "what is loaded may be looked at"
    await aclose()


async def test_tasks_of_one_request_share_its_session(way: Way) -> None:
    store = SessionStore(await way.stored(a=1))
    await asyncio.gather(*(way(store, "set", f"k{number}", number) for number in range(4)))
    await way(store, "save")
    assert len(await way.shown(store.session_key)) == 5


def test_there_is_nothing_to_clear(server: Server) -> None:
    from django.core.management import call_command

    with override_settings(SESSION_ENGINE="asyncsession.integrations.django"):
        call_command("clearsessions")
