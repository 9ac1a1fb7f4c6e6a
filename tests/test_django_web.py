"""The cookie: what Django's `SessionMiddleware` and ours send together, and it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.test import Client, override_settings
from support.django import COOKIE, ENGINE, MIDDLEWARE, engine
from support.django_client import do, end, is_cleared, put, rotate, shown, stored, with_cookie
from support.servers import Server

from asyncsession.ids import new_id
from asyncsession.integrations.django import SessionStore, middleware

BARE = [name for name in MIDDLEWARE if not name.startswith(ENGINE)]


@pytest.fixture(autouse=True)
def server(get_server: Callable[[str], Server]) -> Iterator[Server]:
    server = get_server("valkey9")
    with engine(server.url):
        yield server


@pytest.fixture
def browser() -> Client:
    return Client(raise_request_exception=False)


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


def test_a_login_takes_effect_with_its_response_or_not_at_all() -> None:
    browser = with_cookie(key := stored(a=1))

    def fail(request: Any) -> None:
        request.session.cycle_key()
        assert request.session.session_key != key
        raise ZeroDivisionError

    assert do(browser, fail).status_code == 500
    assert browser.get("/look").json() == {"a": 1}


def test_whoever_asks_for_the_former_key_finds_it_gone() -> None:
    browser, found = with_cookie(key := stored(a=1)), []

    def act(request: Any) -> None:
        request.session.cycle_key()
        found.append(request.session.exists(key))
        found.append(request.session.exists(request.session.session_key))

    assert do(browser, act).cookies[COOKIE].value != key
    assert found == [False, True]


@pytest.mark.parametrize("method", ["save", "create", "cycle_key"])
@pytest.mark.parametrize("bare", [False, True])
def test_a_key_that_a_view_asks_for_is_the_browsers(bare: bool, method: str) -> None:
    """As for the cart of a visitor who is not logged in: there is nothing in it yet but its key."""
    keys = []

    def ask(request: Any) -> None:
        if request.session.session_key is None:
            getattr(request.session, method)()
        keys.append(request.session.session_key)

    with override_settings(MIDDLEWARE=BARE if bare else MIDDLEWARE):
        browser = Client()
        for _ in range(2):
            do(browser, ask)
    assert keys == [browser.cookies[COOKIE].value] * 2
    assert SessionStore().exists(keys[0])


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


def test_what_middleware_outside_of_ours_changes_is_saved_by_that_of_django() -> None:
    late = "support.django_site.LateMiddleware"
    with override_settings(MIDDLEWARE=[MIDDLEWARE[0], late, *MIDDLEWARE[1:]]):
        do(with_cookie(key := stored(a=1)), put(a=2))
        assert shown(key) == {"a": 2, "late": True}


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


def test_a_view_that_saves_with_a_rotated_id_by_itself() -> None:
    rotated = rotate(key := stored(a=1))

    def act(request: Any) -> None:
        request.session["b"] = 2
        request.session.save()

    response = do(with_cookie(key), act)
    assert (response.status_code, COOKIE in response.cookies) == (409, False)
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
