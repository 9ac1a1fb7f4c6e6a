"""Cookies and answers: what Django's `SessionMiddleware` and ours send together, and it alone."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.test import Client, override_settings
from redis import Redis
from support.django import COOKIE, ENGINE, MIDDLEWARE, engine
from support.django_site import change
from support.servers import Server

from asyncsession import TooManySessions
from asyncsession.ids import new_id
from asyncsession.integrations.django import SessionStore, middleware
from asyncsession.integrations.django.config import current

BARE = [name for name in MIDDLEWARE if not name.startswith(ENGINE)]


@pytest.fixture(autouse=True)
def server(get_server: Callable[[str], Server]) -> Iterator[Server]:
    server = get_server("valkey9")
    with engine(server.url):
        yield server


@pytest.fixture
def browser() -> Client:
    return Client(raise_request_exception=False)


def do(browser: Client, act: Callable[[Any], Any], method: str = "POST", **headers: Any) -> Any:
    """Have a view act on a request; return its response."""
    change["act"] = act
    return browser.generic(method, "/do/act", headers=headers)


def put(**values: Any) -> Callable[[Any], None]:
    return lambda request: request.session.update(values)


def stored(**values: Any) -> str:
    store = SessionStore()
    store.update(values)
    store.save()
    return str(store.session_key)


def shown(key: str) -> dict[str, Any]:
    return dict(SessionStore(key).items())


def with_cookie(key: str) -> Client:
    browser = Client(raise_request_exception=False)
    browser.cookies[COOKIE] = key
    return browser


def end(key: str) -> None:
    SessionStore(key).delete()


def rotate(key: str) -> str:
    store = SessionStore(key)
    store.cycle_key()
    return str(store.session_key)


def is_cleared(response: Any) -> bool:
    return COOKIE in response.cookies and response.cookies[COOKIE].value == ""


# Cookies


def test_nothing_is_sent_for_nothing(browser: Client) -> None:
    response = browser.get("/plain")
    assert COOKIE not in response.cookies
    assert "Cookie" not in response.headers.get("Vary", "")


def test_a_request_that_does_not_look_touches_no_redis() -> None:
    with override_settings(ASYNCSESSION={"URL": "redis://127.0.0.1:1/0", "TIMEOUT": 0.05}):
        browser = with_cookie(new_id())
        assert browser.get("/plain").status_code == 200
        assert browser.get("/look").status_code == 503


def test_looking_varies_and_sets_no_cookie() -> None:
    browser = with_cookie(stored(a=1))
    response = browser.get("/look")
    assert response.json() == {"a": 1}
    assert response.headers["Vary"] == "Cookie"
    assert not response.cookies


@pytest.mark.parametrize("bare", [False, True])
def test_a_nested_change_is_saved_and_renews_the_cookie(bare: bool) -> None:
    with override_settings(MIDDLEWARE=BARE if bare else MIDDLEWARE):
        browser = with_cookie(key := stored(cart=["a"]))
        response = do(browser, lambda request: request.session["cart"].append("b"))
        cookie = response.cookies[COOKIE]
        assert (cookie.value, cookie["max-age"], cookie["samesite"]) == (key, 1209600, "Lax")
        assert response.headers["Vary"] == "Cookie"
        assert shown(key) == {"cart": ["a", "b"]}


def test_the_cookie_follows_a_custom_expiry(browser: Client) -> None:
    response = do(browser, lambda request: request.session.set_expiry(300))
    assert response.cookies[COOKIE]["max-age"] == 300
    response = do(browser, lambda request: request.session.set_expiry(0))
    assert response.cookies[COOKIE]["max-age"] == ""


@pytest.mark.parametrize("bare", [False, True])
def test_saving_every_request(bare: bool) -> None:
    with override_settings(
        SESSION_SAVE_EVERY_REQUEST=True, MIDDLEWARE=BARE if bare else MIDDLEWARE
    ):
        browser = with_cookie(key := stored(a=1))
        assert browser.get("/plain").cookies[COOKIE].value == key
        rotate(key)
        response = browser.get("/plain")
        assert COOKIE not in response.cookies
        assert response.status_code == (400 if bare else 200)


def test_nothing_is_saved_for_a_page_of_an_error() -> None:
    browser = with_cookie(key := stored(a=1))

    def fail(request: Any) -> None:
        request.session["a"] = 2
        raise ZeroDivisionError

    assert do(browser, fail).status_code == 500
    assert shown(key) == {"a": 1}


def test_an_unknown_cookie_is_cleared() -> None:
    assert is_cleared(with_cookie(new_id()).get("/look"))


def test_a_session_that_is_emptied_stays_until_it_is_flushed() -> None:
    browser = with_cookie(key := stored(a=1))
    do(browser, lambda request: request.session.clear())
    assert SessionStore().exists(key)
    assert is_cleared(do(browser, lambda request: request.session.flush()))
    assert not SessionStore().exists(key)


def test_what_is_put_in_after_a_flush_begins_another_session() -> None:
    browser = with_cookie(key := stored(a=1))

    def leave(request: Any) -> None:
        request.session.flush()
        request.session["message"] = "bye"

    fresh = do(browser, leave).cookies[COOKIE].value
    assert fresh not in (key, "")
    assert (shown(key), shown(fresh)) == ({}, {"message": "bye"})


def test_the_session_of_the_test_client(browser: Client) -> None:
    session = browser.session
    session["a"] = 1
    session.save()
    assert browser.get("/look").json() == {"a": 1}


# Sessions that end or move while a request is under way


@pytest.mark.parametrize("bare", [False, True])
def test_a_session_that_ends_meanwhile(bare: bool) -> None:
    """Bare, it is Django's `SessionInterrupted`, which leaves the cookie; with ours, the page."""
    with override_settings(MIDDLEWARE=BARE if bare else MIDDLEWARE):
        browser = with_cookie(key := stored(a=1))

        def act(request: Any) -> None:
            request.session["a"] = 2
            end(key)

        response = do(browser, act)
        assert response.status_code == (400 if bare else 200)
        assert is_cleared(response) is not bare
        assert shown(key) == {}


def test_a_slow_request_leaves_the_cookie_that_may_be_another_by_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(middleware, "PROMPT", 0)
    browser = with_cookie(key := stored(a=1))

    def act(request: Any) -> None:
        request.session["a"] = 2
        end(key)

    response = do(browser, act)
    assert (response.status_code, response.cookies.get(COOKIE)) == (200, None)


@pytest.mark.parametrize("method", ["save", "cycle_key"])
def test_a_view_that_saves_an_ended_session_by_itself(method: str) -> None:
    browser = with_cookie(key := stored(a=1))

    def act(request: Any) -> None:
        request.session["a"] = 2
        end(key)
        getattr(request.session, method)()

    response = do(browser, act)
    assert (response.status_code, is_cleared(response)) == (409, True)
    assert b"ended while this request" in response.content


@pytest.mark.parametrize("bare", [False, True])
def test_a_session_that_moves_meanwhile(bare: bool) -> None:
    with override_settings(MIDDLEWARE=BARE if bare else MIDDLEWARE):
        browser, moved = with_cookie(key := stored(a=1)), []

        def act(request: Any) -> None:
            request.session["b"] = 2
            moved.append(rotate(key))

        response = do(browser, act)
        assert (response.status_code, COOKIE in response.cookies) == (400 if bare else 200, False)
        assert shown(moved[0]) == {"a": 1, "b": 2}


def test_a_view_may_save_a_session_that_moves_meanwhile() -> None:
    browser, moved = with_cookie(key := stored(a=1)), []

    def act(request: Any) -> None:
        request.session["b"] = 2
        moved.append(rotate(key))
        request.session.save()
        request.session["c"] = 3

    response = do(browser, act)
    assert (response.status_code, COOKIE in response.cookies) == (200, False)
    assert shown(moved[0]) == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("POST", 409)])
def test_what_comes_with_a_rotated_id_is_not_saved(
    method: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    rotated = rotate(key := stored(a=1))
    response = do(with_cookie(key), put(b=2), method)
    assert (response.status_code, COOKIE in response.cookies) == (status, False)
    assert ("was not saved" in caplog.text) is (method == "GET")
    assert shown(rotated) == {"a": 1}


def test_bare_a_rotated_id_is_not_cleared_nor_set() -> None:
    with override_settings(MIDDLEWARE=BARE):
        rotate(key := stored(a=1))
        response = with_cookie(key).get("/look")
        assert (response.status_code, COOKIE in response.cookies) == (200, False)
        response = do(with_cookie(key), put(b=2))
        assert (response.status_code, COOKIE in response.cookies) == (400, False)


def test_a_logout_with_a_rotated_id_is_to_be_sent_again() -> None:
    rotated = rotate(key := stored(a=1))
    response = do(with_cookie(key), lambda request: request.session.flush())
    assert (response.status_code, COOKIE in response.cookies) == (409, False)
    assert shown(rotated) == {"a": 1}


def test_a_login_with_a_rotated_id_gets_a_session_of_its_own() -> None:
    rotated = rotate(key := stored(a=1))

    def log_in(request: Any) -> None:
        request.session.cycle_key()
        request.session["_auth_user_id"] = "1"

    fresh = do(with_cookie(key), log_in).cookies[COOKIE].value
    assert fresh not in (key, rotated)
    assert shown(fresh) == {"_auth_user_id": "1"}


# Answers


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


def test_a_visitor_who_may_not_log_in_keeps_what_they_had(server: Server) -> None:
    """The key was cycled before the login was refused, and the browser is told so."""

    def log_in(request: Any) -> None:
        request.session.cycle_key()
        request.session["_auth_user_id"] = "1"

    with engine(server.url, MAX_SESSIONS=1, WHEN_FULL="refuse"):
        assert do(Client(), log_in).status_code == 200
        browser = with_cookie(key := stored(cart=["a"]))
        assert do(browser, log_in).status_code == 403
        assert browser.cookies[COOKIE].value != key
        assert browser.get("/look").json() == {"cart": ["a"]}


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
