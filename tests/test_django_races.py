"""Parallel requests of one browser to Django, by threads and by an event loop."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

import httpx
import pytest
from support.django import COOKIE, database, engine, in_thread, serve_asgi, serve_wsgi, session_id
from support.django_site import GATES, Gate, alogin, change, login
from support.django_way import HAS_AWAITED_MAPPING
from support.servers import Server

from asyncsession.ids import is_session_id

REQUESTS = 40
PASSWORD = {"password": "lovelace"}


class Site(NamedTuple):
    """The project on one kind of server, in a browser.

    Attributes:
        browser: talks to it, and keeps cookies.
        at: what paths begin with.
    """

    browser: httpx.AsyncClient
    at: str

    def get(self, path: str) -> Any:
        return self.browser.get(f"{self.at}/{path}")

    def post(self, path: str, **data: str) -> Any:
        return self.browser.post(f"{self.at}/{path}", data=data)

    def slow(self, act: Callable[[Any], Any], acts: Callable[[Any], Any]) -> tuple[Gate, Any]:
        """Return a gate, and a request that waits at it and then acts on its session."""
        name = secrets.token_hex(4)
        gate = GATES[name] = Gate()
        change[name] = acts if self.at else act
        return gate, self.post(f"slow/{name}", **PASSWORD)


@pytest.fixture(autouse=True)
def store(get_server: Callable[[str], Server]) -> Iterator[None]:
    with engine(get_server("valkey9").url):
        yield


@pytest.fixture(params=["threads", "loop"])
async def site(request: pytest.FixtureRequest, store: None) -> AsyncIterator[Site]:
    """The project, by threads and by an event loop."""
    await in_thread(database)
    is_loop = request.param == "loop"
    if is_loop and not HAS_AWAITED_MAPPING:
        pytest.skip("Django before 5.1 has no methods to await")
    serve: Callable[[], AbstractAsyncContextManager[httpx.AsyncClient]]
    serve = serve_asgi if is_loop else serve_wsgi
    async with serve() as browser:
        yield Site(browser, "/a" if is_loop else "")


def put(**values: Any) -> tuple[Callable[[Any], None], Callable[[Any], Any]]:
    """Return what puts values into a session, for threads and for an event loop."""

    def act(request: Any) -> None:
        request.session.update(values)

    async def acts(request: Any) -> None:
        await request.session.aupdate(values)

    return act, acts


async def test_no_change_of_forty_parallel_requests_is_lost(site: Site) -> None:
    await site.get("visit/first")
    items = [str(number) for number in range(REQUESTS)]
    responses = await asyncio.gather(*(site.get(f"visit/{item}") for item in items))
    assert {response.status_code for response in responses} == {200}
    shown = (await site.get("look")).json()
    assert shown["views"] == 1 + REQUESTS
    assert sorted(shown["cart"]) == sorted(["first", *items])
    assert [item for item in items if not shown[f"item:{item}"]] == []


async def test_a_logout_is_not_undone_by_a_slow_request(site: Site) -> None:
    await site.post("login/ada", **PASSWORD)
    gate, request = site.slow(*put(late=True))
    left = session_id(site.browser)
    response = await gate.hold(request, lambda: site.get("logout"))
    assert (response.status_code, response.text) == (200, "slow")
    assert session_id(site.browser) is None, "cleared, by the logout and by the slow response"
    assert left is not None
    site.browser.cookies.set(COOKIE, left, domain="127.0.0.1")
    assert (await site.get("look")).json() == {}
    assert (await site.get("who")).text == ""


async def test_a_login_keeps_what_a_slow_request_does(site: Site) -> None:
    await site.get("visit/first")
    before = session_id(site.browser)
    gate, request = site.slow(*put(late=True))
    response = await gate.hold(request, lambda: site.post("login/ada", **PASSWORD))
    assert response.status_code == 200
    assert "set-cookie" not in response.headers, "the browser has a newer one"
    assert is_session_id(session_id(site.browser))
    assert session_id(site.browser) != before
    shown = (await site.get("look")).json()
    assert (shown["late"], shown["views"], shown["_auth_user_id"]) == (True, 1, "1")
    assert (await site.get("who")).text == "ada"


async def test_a_rotated_id_neither_sets_nor_clears_the_cookie(site: Site) -> None:
    await site.get("visit/first")
    old = session_id(site.browser)
    await site.post("login/ada", **PASSWORD)
    new = session_id(site.browser)
    assert old is not None
    assert new is not None
    change["x"] = put(x=1)[1 if site.at else 0]
    for method, path, status in [("GET", "look", 200), ("GET", "do/x", 200), ("POST", "do/x", 409)]:
        site.browser.cookies.set(COOKIE, old, domain="127.0.0.1")
        response = await site.browser.request(method, f"{site.at}/{path}")
        assert response.status_code == status, path
        assert "set-cookie" not in response.headers, path
    site.browser.cookies.set(COOKIE, new, domain="127.0.0.1")
    assert "x" not in (await site.get("look")).json()
    assert (await site.get("who")).text == "ada"


async def test_a_login_that_is_sent_twice_at_once(site: Site) -> None:
    """A double click: one session, and neither response takes its cookie away."""
    await site.get("visit/first")
    gate, request = site.slow(
        lambda request: login(request, "ada"), lambda request: alogin(request, "ada")
    )
    response = await gate.hold(request, lambda: site.post("login/ada", **PASSWORD))
    assert (response.status_code, "set-cookie" in response.headers) == (200, False)
    assert (await site.get("who")).text == "ada"
    assert (await site.get("look")).json()["views"] == 1
