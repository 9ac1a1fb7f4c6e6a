"""A real browser, headless Chromium, and a site with a login for it to visit."""

from __future__ import annotations

import asyncio
import contextlib
import html
import importlib.util
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from asyncsession import SessionManager
from asyncsession.integrations.asgi import SessionMiddleware
from support.web import Handler, count, plain

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, Frame, Page

__all__ = ["ADA", "User", "make_site", "missing", "open_browser", "press", "surf", "who"]

ADA = "user:ada"
"""The principal of who logs in."""

# The first is the same browser without its windows, and takes half the time.
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_EXECUTABLE = next(filter(None, map(shutil.which, _NAMES)), None)
_FLAGS = [  # besides those that Playwright gives: headless, no sandbox, nothing in the background
    "--disable-gpu",
    "--disable-quic",
    "--host-resolver-rules=MAP *.test 127.0.0.1",  # as many sites and subdomains as a test wants
]
_PATIENCE = 10.0  # seconds for one step in the browser
_LONGEST = 30.0  # seconds for a test; none takes so long


def missing() -> str | None:
    """Return what this machine lacks for these tests; None if nothing."""
    if _EXECUTABLE is None:
        return f"there is no browser: none of {', '.join(_NAMES)}"
    for module in ("playwright", "trustme"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    return None


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """Start a browser with an empty profile; it ends with its driver, and that with our process."""
    from playwright.async_api import async_playwright

    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=_EXECUTABLE, args=_FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


_PAGE = """<!doctype html><title>Home</title><p id="user">{}</p>
<form method="post" action="login"><button>Log in</button></form>
<form method="post" action="logout"><button>Log out</button></form>"""


async def home(request: Request) -> Response:
    """Say who is logged in."""
    user = request.scope["session"].get("user", "nobody")
    return HTMLResponse(_PAGE.format(html.escape(user)))


def make_site(manager: SessionManager, *handlers: Handler, **options: Any) -> Starlette:
    """Return an application with a login, and below `/sub` once more.

    Args:
        handlers: served under their names; they may replace those of the site.
        options: for SessionMiddleware.
    """

    async def login(request: Request) -> Response:
        session = request.scope["session"]
        session["user"], session.principal = "ada", ADA
        await manager.rotate(session)
        return RedirectResponse("home", 303)

    async def logout(request: Request) -> Response:
        await manager.destroy(request.scope["session"])
        return RedirectResponse("home", 303)

    named = {each.__name__: each for each in (home, login, logout, count, plain, *handlers)}
    routes = [Route(f"/{name}", each, methods=["GET", "POST"]) for name, each in named.items()]
    session = Middleware(SessionMiddleware, manager=manager, **options)
    return Starlette(routes=[*routes, Mount("/sub", routes=routes)], middleware=[session])


async def who(tab: Page | Frame) -> str:
    """Return who is logged in, as the page says."""
    return await tab.inner_text("#user")


class User:
    """Somebody at a browser window, whose tabs share one cookie jar.

    Attributes:
        context: the window.
    """

    def __init__(self, context: BrowserContext, scheme: str, port: int) -> None:
        self.context = context
        self._scheme, self._port = scheme, port

    def url(self, path: str, host: str = "localhost") -> str:
        """Return the address of a page; `host` is localhost or any name below `.test`."""
        return f"{self._scheme}://{host}:{self._port}{path}"

    async def open(self, path: str, host: str = "localhost") -> Page:
        """Open a page in a new tab."""
        tab = await self.context.new_page()
        await self.visit(tab, path, host)
        return tab

    async def visit(self, tab: Page, path: str, host: str = "localhost") -> Any:
        """Go to a page in a tab; return the response."""
        return await tab.goto(self.url(path, host))

    async def jar(self) -> dict[str, dict[str, Any]]:
        """Return the cookies that the browser keeps, by name; no two may share a name."""
        cookies = [dict(cookie) for cookie in await self.context.cookies()]
        jar = {str(cookie["name"]): cookie for cookie in cookies}
        assert len(jar) == len(cookies), f"two cookies of one name: {sorted(jar)}"
        return jar

    async def session_id(self, name: str = "session") -> str:
        """Return the value of a cookie that has to be there."""
        return str((await self.jar())[name]["value"])


async def press(tab: Page | Frame, button: str) -> Any:
    """Press a button or link that leads to another page; return the response, redirects done."""
    async with tab.expect_navigation() as navigation:
        # A real click waits until the button is painted, which in a tab behind others takes long.
        await tab.get_by_text(button, exact=True).dispatch_event("click")
    return await navigation.value


@asynccontextmanager
async def surf(browser: Browser, app: Any, *, tls: bool = False) -> AsyncIterator[User]:
    """Serve an ASGI application in this event loop, to a user whose cookie jar is empty.

    Raises:
        TimeoutError: the block took too long, as one does that waits for what never comes.
    """
    async with asyncio.timeout(_LONGEST), _serve(app, tls=tls) as port:
        context = await browser.new_context(ignore_https_errors=True)
        context.set_default_timeout(_PATIENCE * 1000)
        try:
            yield User(context, "https" if tls else "http", port)
        finally:
            await context.close()  # and its connections, which the server waits for


@asynccontextmanager
async def _serve(app: Any, *, tls: bool) -> AsyncIterator[int]:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        certificate = stack.enter_context(_certificate_file()) if tls else None
        config = uvicorn.Config(
            app,
            ssl_certfile=certificate,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await running


def _certificate_file() -> contextlib.AbstractContextManager[str]:
    import trustme

    certificate = trustme.CA().issue_cert("localhost", "*.test")
    return certificate.private_key_and_cert_chain_pem.tempfile()
