"""docs/flask.md is run as it stands, and what it states is so."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask, sessions
from support.flask import serve
from support.quart import serve as serve_quart
from support.servers import Server
from support.web import connect
from test_docs import sources

from asyncsession import SyncSessionManager, errors
from asyncsession.integrations import flask, quart
from asyncsession.integrations.answers import answer_to

PAGE = Path(__file__).parent.parent / "docs" / "flask.md"


@pytest.fixture
def names(get_server: Callable[[str], Server]) -> dict[str, Any]:
    """What the page's code leaves, whose cookies pass over plain HTTP as Flask's do."""
    names: dict[str, Any] = {"__name__": __name__}
    for source in sources(PAGE, get_server("valkey9").url):
        exec(compile(source, PAGE.name, "exec"), names)
    return names


def test_flask(names: dict[str, Any]) -> None:
    pytest.importorskip("flask_wtf")
    names["shop"].add_url_rule("/who", "who", lambda: dict(names["session"]))
    names["forms"].add_url_rule("/", "form", lambda: names["session"]["csrf_token"])
    with names["manager"] as manager, names["forms_manager"], serve(names["app"]) as browser:
        assert browser.post("/cart/apple").json() == {"items": 1}
        before = browser.cookies["session"]
        assert browser.get("/progress").text == "0\n1\n2\n"
        assert manager.load(before)["step"] == 2
        client = names["shop"].test_client()
        client.set_cookie("session", before)
        assert client.post("/login").text == "welcome"
        assert client.get("/who").json == {"user_id": 42}
        assert len(manager.sessions_of("user:42")) == 1
        assert client.post("/logout").text == "bye"
        assert manager.sessions_of("user:42") == []
        assert manager.load(before).is_new
        forms = names["forms"].test_client()
        assert forms.get("/").text == forms.get("/").text
    on_error = names["on_error"]
    with names["careful"].test_request_context():
        assert on_error(None, errors.SessionGone()).status_code == 302
    assert on_error(None, errors.SessionConflict(""))[1] == 409
    assert on_error(None, errors.StoreUnavailable()) is None
    for moving in ("moved", "stayed"):
        assert names[moving].test_client().get("/").status_code == 404
    names["source"].close()


async def test_quart(names: dict[str, Any]) -> None:
    async with names["async_manager"], serve_quart(names["quart_app"]) as browser:
        assert [(await browser.get("/views")).text for _ in range(2)] == ["1", "2"]
        async with connect(browser, "/live", browser.cookies["session"]) as line:
            await line.send("hello")
            assert await line.recv() == '["hello"]'


def test_the_page_names_every_option_and_answer() -> None:
    text = PAGE.read_text("utf-8")
    options = {
        **inspect.signature(flask.SessionInterface).parameters,
        **inspect.signature(quart.SessionInterface).parameters,
    }
    for name in options.keys() - {"manager"}:
        assert f"{name}=" in text or f"`{name}`" in text, name
    assert f"`watch={options['watch'].default}`" in text
    for error in errors.__all__:
        if answer := answer_to(getattr(errors, error).__new__(getattr(errors, error))):
            assert re.search(rf"^\|.*`{error}`.*\| {answer.status}", text, re.MULTILINE), error


def test_the_page_names_every_option_of_the_cookie() -> None:
    text = PAGE.read_text("utf-8")
    asked: list[str] = []

    class Config(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            asked.append(key)
            return "x"

    interface: Any = sessions.SessionInterface()
    for name in dir(interface):
        if name.startswith("get_cookie_"):
            getattr(interface, name)(SimpleNamespace(config=Config()))
    assert len(asked) == 7
    for key in asked:
        assert f"`{key}`" in text, key


def test_the_page_names_the_timeouts() -> None:
    options = inspect.signature(SyncSessionManager).parameters
    days = [options[name].default / 86_400 for name in ("idle_timeout", "absolute_timeout")]
    browsers = Flask(__name__).permanent_session_lifetime.days
    stated = f"{browsers} days by default, where theirs are {days[0]:.0f} and {days[1]:.0f}."
    assert stated in PAGE.read_text("utf-8")
