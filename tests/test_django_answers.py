"""What the client of a Django application gets where its session stands in the way."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.test import Client, override_settings
from redis import Redis
from support.django import COOKIE, MIDDLEWARE, engine
from support.django_client import do, is_cleared, put, shown, stored, with_cookie
from support.servers import Server

from asyncsession import TooManySessions
from asyncsession.ids import new_id
from asyncsession.integrations.django import SessionStore
from asyncsession.integrations.django.config import current


@pytest.fixture(autouse=True)
def server(get_server: Callable[[str], Server]) -> Iterator[Server]:
    server = get_server("valkey9")
    with engine(server.url):
        yield server


@pytest.fixture
def browser() -> Client:
    return Client(raise_request_exception=False)


def test_a_conflict_is_answered_with_409_and_saves_nothing() -> None:
    browser = with_cookie(key := stored(seat=1))

    def act(request: Any) -> None:
        request.session["seat"] = request.session["other"] = 2
        other = SessionStore(key)
        other["seat"] = 3
        other.save()

    response = do(browser, act)
    assert (response.status_code, COOKIE in response.cookies) == (409, False)
    assert response.headers["Cache-Control"] == "no-store"
    assert shown(key) == {"seat": 3}


@pytest.fixture
def down() -> Iterator[None]:
    """Have the store refuse connections."""
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{bound.getsockname()[1]}"
        with override_settings(ASYNCSESSION={"URL": url, "TIMEOUT": 0.05}):
            yield


def test_a_store_that_is_down_when_a_view_looks(down: None) -> None:
    response = with_cookie(new_id()).get("/look")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert not response.cookies


def test_a_store_that_is_down_when_another_middleware_looks(
    down: None, caplog: pytest.LogCaptureFixture
) -> None:
    names = [*MIDDLEWARE, "support.django_site.LookingMiddleware"]
    with override_settings(MIDDLEWARE=names):
        assert with_cookie(new_id()).get("/plain").status_code == 503


def test_a_store_that_is_down_when_the_response_leaves(browser: Client, down: None) -> None:
    response = do(browser, put(a=1))
    assert (response.status_code, COOKIE in response.cookies) == (503, False)


def test_one_session_too_many(browser: Client, server: Server) -> None:
    with engine(server.url, MAX_SESSIONS=1, WHEN_FULL="refuse"):
        assert do(browser, put(_auth_user_id="1")).status_code == 200
        response = do(Client(), put(_auth_user_id="1"))
        assert (response.status_code, COOKIE in response.cookies) == (403, False)
        store = SessionStore()
        store["_auth_user_id"] = "1"
        with pytest.raises(TooManySessions):
            store.save()


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_visitor_who_may_not_log_in_keeps_what_they_had(server: Server, is_moved: bool) -> None:
    """Also where the key was changed before that, and the browser has to be told."""

    def log_in(request: Any) -> None:
        request.session.cycle_key()
        if is_moved:
            request.session.save()
        request.session["_auth_user_id"] = "1"

    with engine(server.url, MAX_SESSIONS=1, WHEN_FULL="refuse"):
        assert do(Client(), log_in).status_code == 200
        browser = with_cookie(key := stored(cart=["a"]))
        assert do(browser, log_in).status_code == 403
        assert (browser.cookies[COOKIE].value != key) is is_moved
        assert browser.get("/look").json() == {"cart": ["a"]}


def test_after_a_refusal_nothing_is_tried_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SessionMiddleware` saves what is left, which is nothing, and sends the key that it has."""
    plans, run = [], SessionStore._run

    def note(self: Any, plan: Any, *args: Any) -> Any:
        plans.append(plan.__name__)
        return run(self, plan, *args)

    def log_in(request: Any) -> None:
        request.session.cycle_key()
        request.session["_auth_user_id"] = "1"

    with (
        engine(server.url, MAX_SESSIONS=1, WHEN_FULL="refuse"),
        override_settings(SESSION_SAVE_EVERY_REQUEST=True),
    ):
        assert do(Client(), log_in).status_code == 200
        browser = with_cookie(key := stored(cart=["a"]))
        monkeypatch.setattr(SessionStore, "_run", note)
        response = do(browser, log_in)
        assert (response.status_code, response.cookies[COOKIE].value) == (403, key)
        assert plans == ["_cycling", "_concluding"]


def test_a_session_that_cannot_be_read_is_left_and_its_cookie_cleared(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """spring-session#1939: not a 500 with every request."""
    key, manager = stored(a=1), current().blocking
    name = manager.settings.key(manager.load(key).handle)
    with Redis.from_url(server.url) as redis:
        redis.set(name, b"aS\x02 of a newer version", keepttl=True)
        browser = with_cookie(key)
        response = browser.get("/look")
        assert (response.status_code, is_cleared(response)) == (500, True)
        assert "cannot be read" in caplog.text
        assert redis.get(name) == b"aS\x02 of a newer version"


def test_mistakes_of_the_application_stay_exceptions(browser: Client) -> None:
    with pytest.raises(TypeError, match="'a'"):
        do(Client(), put(a=object()))


def test_an_error_that_is_not_of_the_session_passes_by(browser: Client) -> None:
    response = do(browser, lambda request: [].pop())
    assert (response.status_code, b"session" in response.content) == (500, False)
