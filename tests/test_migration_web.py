"""A browser with a cookie of starsessions meets an application that has switched."""

from __future__ import annotations

import asyncio
from http.cookiejar import DefaultCookiePolicy
from http.cookies import SimpleCookie

from httpx import Response
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from support.backends import Backend
from support.migrating import DATA, open_theirs
from support.web import cookies_of, look, make_app, plain, serve
from test_docs import ROOT, run

from asyncsession.ids import is_session_id


def given(response: Response) -> str:
    """Return the id that a response gives the browser; empty for none."""
    jar: SimpleCookie = SimpleCookie("\n".join(cookies_of(response)))
    return jar["session"].value if "session" in jar else ""


async def test_switching_logs_nobody_out_and_a_logout_is_final(valkey: Backend) -> None:
    manager = valkey.manager()

    async def add(request: Request) -> PlainTextResponse:
        request.session["cart"].append(request.query_params["item"])
        return PlainTextResponse("added")

    async def logout(request: Request) -> PlainTextResponse:
        await manager.destroy(request.scope["session"])
        return PlainTextResponse("bye")

    async with open_theirs(valkey) as theirs:
        peer_id = (await theirs.write()).peer_id
        old = {"cookie": f"session={peer_id}"}
        app = make_app(manager, look, plain, add, logout, read_through=theirs.source())
        async with serve(app) as browser:
            browser.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            first = await asyncio.gather(
                *(browser.get(f"/add?item={number}", headers=old) for number in range(6)),
                browser.get("/look", headers=old),
                browser.get("/plain", headers=old),
            )
            assert {response.status_code for response in first} == {200}
            (session_id,) = {given(response) for response in first}
            assert is_session_id(session_id)
            new = {"cookie": f"session={session_id}"}
            page = await browser.get("/look", headers=new)
            assert page.json()["user"] == DATA["user"]
            assert sorted(page.json()["cart"]) == [*"012345", "a"]
            assert cookies_of(page) == []
            both = {"cookie": f"session={session_id}; session={peer_id}"}
            assert (await browser.get("/look", headers=both)).json() == {}
            bye = await browser.get("/logout", headers=new)
            assert (given(bye), len(cookies_of(bye))) == ("", 1), "ours is cleared"
            for _ in range(2):
                gone = await browser.get("/look", headers=old)
                assert (gone.json(), given(gone)) == ({}, "")
                await theirs.forget_tombstones()
            late = await asyncio.gather(
                *(browser.get("/look", headers=old) for _ in range(6)),
                browser.get("/look", headers=new),
            )
            assert [response.json() for response in late] == [{}] * 7


async def test_the_page_on_migrating(valkey: Backend) -> None:
    names = await run(ROOT / "docs" / "migrating.md", valkey.url)
    async with names["manager"]:
        assert (await names["session_of"](None)).is_new
        assert (await names["session_of"](b"a" * 32)).is_new
        assert names["owner"]({"user_id": 42}) == "user:42"
        assert names["owner"]({}) is None
        await names["source"].aclose()
