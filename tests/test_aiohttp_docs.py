"""docs/aiohttp.md is run as it stands."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from support.aiohttp import open_socket, serve
from support.backends import Backend
from test_docs import run

from asyncsession.integrations.aiohttp import setup
from asyncsession.integrations.cookies import Cookie, CookieOptions

PAGE = Path(__file__).parent.parent / "docs" / "aiohttp.md"


@pytest.mark.filterwarnings("ignore:It is recommended to use web.RequestKey")
async def test_aiohttp(valkey: Backend) -> None:
    names = await run(PAGE, valkey.url)
    manager = names["manager"]
    async with serve(names["app"]) as browser:
        assert (await browser.get("/")).json() == {"views": 1, "cart": {"apple": "added"}}
        assert (await browser.post("/login")).status_code == 303
        assert (await browser.get("/")).json()["name"] == "Ada"
        sent = {"cookie": f"session={browser.cookies['session']}"}
        async with open_socket(browser, "/chat", sent) as websocket:
            await websocket.send_str("hello")
            assert await websocket.receive_str() == "1 messages"
        assert (await browser.post("/logout/everywhere")).status_code == 303
        assert (await browser.get("/")).json()["views"] == 1
        assert (await browser.post("/logout")).status_code == 303
        assert await manager.sessions_of("user:42") == []
    async with serve(names["classic"]) as browser:
        assert [(await browser.get("/")).text for _ in range(2)] == ["1", "2"]
        assert (await browser.post("/login")).status_code == 303
        assert (await browser.get("/")).text == "1"
        assert await manager.destroy_all("user:42") == 1
    await manager.aclose()


def test_the_options_in_the_docs_are_those_of_the_code() -> None:
    text = PAGE.read_text("utf-8")
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `")]
    listed = {
        name.strip(" `"): default.strip(" `")
        for names, default in rows
        for name in names.split(",")
    }
    options = inspect.signature(setup).parameters
    for name, option in options.items():
        if option.kind is option.KEYWORD_ONLY:
            assert name in listed
    assert CookieOptions.__annotations__.keys() <= listed.keys()
    assert listed["outage"] == f'"{options["outage"].default}"'
    assert listed["watch"] == f"{options['watch'].default:g} s"
    assert Cookie().name == "__Host-session"
