"""What Django brings that lives in sessions: users, flash messages, the admin."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from django.contrib.auth import get_user_model, update_session_auth_hash
from django.core.management import CommandError, call_command
from django.test import Client, override_settings
from support.django import COOKIE, MIDDLEWARE, database, engine, in_thread, serve_wsgi, session_id
from support.django_site import GATES, Gate, change
from support.django_way import HAS_AWAITED_MAPPING
from support.servers import Server

from asyncsession import ConfigurationError
from asyncsession.integrations.django import (
    SessionStore,
    aclose,
    aend_session,
    aend_sessions,
    asessions_of,
    end_session,
    end_sessions,
    merge_messages,
    sessions_of,
)
from asyncsession.integrations.django.config import current
from asyncsession.merge import MISSING


@pytest.fixture(autouse=True)
def store(get_server: Callable[[str], Server]) -> Iterator[str]:
    database()
    url = get_server("valkey9").url
    with engine(url):
        yield url


@pytest.fixture
def ada() -> Any:
    return get_user_model().objects.get_by_natural_key("ada")


def log_in(name: str = "ada") -> Client:
    browser = Client()
    browser.post(f"/login/{name}", {"password": {"ada": "lovelace", "bob": "builder"}[name]})
    return browser


def who(browser: Client) -> str:
    return str(browser.get("/who").content, "ascii")


def key_of(browser: Client) -> str:
    return str(browser.cookies[COOKIE].value)


def principal_of(key: str) -> str | None:
    return current().blocking.load(key).principal


# Users


def test_login_and_logout() -> None:
    browser = Client()
    browser.get("/visit/a")
    anonymous = key_of(browser)
    browser.post("/login/ada", {"password": "lovelace"})
    assert key_of(browser) != anonymous, "ASVS 5.0 7.2.4"
    assert browser.get("/look").json()["views"] == 1, "what the visitor had comes along"
    assert who(browser) == "ada"
    assert principal_of(key_of(browser)) == "user:1"
    key = key_of(browser)
    browser.get("/logout")
    assert key_of(browser) == ""
    assert not SessionStore().exists(key)
    assert who(browser) == ""


def test_logging_in_as_somebody_else_takes_nothing_along() -> None:
    browser = log_in("ada")
    browser.get("/visit/a")
    before = key_of(browser)
    browser.post("/login/bob", {"password": "builder"})
    assert who(browser) == "bob"
    assert "views" not in browser.get("/look").json()
    assert not SessionStore().exists(before)


def test_the_test_client_logs_in(ada: Any) -> None:
    browser = Client()
    browser.force_login(ada)
    assert who(browser) == "ada"
    browser.logout()
    assert who(browser) == ""


def test_a_change_of_password_ends_the_others(ada: Any) -> None:
    here, there = log_in(), log_in()

    def change_it(request: Any) -> None:
        request.user.set_password("countess")
        request.user.save()
        update_session_auth_hash(request, request.user)

    change["password"] = change_it
    before = key_of(here)
    try:
        here.post("/do/password")
        assert who(here) == "ada"
        assert key_of(here) != before
        assert who(there) == ""
    finally:
        ada.set_password("lovelace")
        ada.save()


def test_a_session_of_a_former_secret_key_goes_on() -> None:
    browser = log_in()
    before = key_of(browser)
    from django.conf import settings

    with override_settings(SECRET_KEY="a new one", SECRET_KEY_FALLBACKS=[settings.SECRET_KEY]):
        assert who(browser) == "ada"
        assert key_of(browser) != before
    with override_settings(SECRET_KEY="a newer one"):
        assert who(browser) == ""


def test_two_users_who_log_in_to_one_session_at_once() -> None:
    """The second is told so; it does not become the session of both."""
    browser = Client(raise_request_exception=False)
    browser.get("/visit/a")
    other = Client()
    other.cookies[COOKIE] = key_of(browser)

    def meanwhile(request: Any) -> None:
        dict(request.session.items())
        other.post("/login/bob", {"password": "builder"})
        request.session.cycle_key()
        request.session["_auth_user_id"] = "1"

    change["login"] = meanwhile
    assert browser.post("/do/login").status_code == 409
    assert who(other) == "bob"


# Devices


def test_devices(ada: Any) -> None:
    here, there, bobs = log_in(), log_in(), log_in("bob")
    mine = SessionStore(key_of(here))
    first, second = sessions_of(ada, mine)
    assert {first.is_current, second.is_current} == {True, False}
    (theirs,) = [one for one in (first, second) if not one.is_current]
    bob = get_user_model().objects.get_by_natural_key("bob")
    assert not end_session(bob, theirs.handle), "it is none of theirs"
    assert end_session(ada, theirs.handle)
    assert (who(here), who(there), who(bobs)) == ("ada", "", "bob")
    elsewhere = log_in()
    assert end_sessions(ada, keep=SessionStore(key_of(here))) == 1
    assert (who(here), who(elsewhere), who(bobs)) == ("ada", "", "bob")
    assert end_sessions(ada) == 1
    assert who(here) == ""


@pytest.mark.skipif(not HAS_AWAITED_MAPPING, reason="Django before 5.1 has no methods to await")
async def test_devices_awaited() -> None:
    user = get_user_model()(pk=7)
    keys = []
    for _ in range(3):
        store = SessionStore()
        await store.aset("_auth_user_id", "7")
        await store.asave()
        keys.append(store.session_key)
    mine = SessionStore(keys[0])
    listed = await asessions_of(user, mine)
    assert len(listed) == 3
    (current_one,) = [one for one in listed if one.is_current]
    other = next(one for one in listed if not one.is_current)
    assert await aend_session(user, other.handle)
    assert not await aend_session(user, other.handle)
    assert await aend_sessions(user, keep=mine) == 1
    assert [one.handle for one in await asessions_of(user)] == [current_one.handle]
    await aclose()


@pytest.mark.parametrize("kind", ["AnonymousUser", "User"])
async def test_who_is_anonymous_or_not_stored_has_no_sessions(kind: str) -> None:
    nobody, mine = getattr(auth_models(), kind)(), SessionStore()
    assert await in_thread(sessions_of, nobody, mine) == await asessions_of(nobody, mine) == []
    assert not await in_thread(end_session, nobody, "handle")
    assert not await aend_session(nobody, "handle")
    assert await in_thread(end_sessions, nobody, mine) == await aend_sessions(nobody, mine) == 0
    await aclose()


def auth_models() -> Any:
    from django.contrib.auth import models  # needs the applications to be loaded

    return models


def test_a_session_that_has_expired_is_not_listed(ada: Any) -> None:
    store = SessionStore(key_of(log_in()))
    store.set_expiry(-1)
    store.save()
    assert sessions_of(ada) == []


def owner(session: Any) -> str | None:
    return f"tenant:{session['tenant']}" if "tenant" in session else None


def test_principals_of_the_application(ada: Any, store: str) -> None:
    with engine(store, PRINCIPAL="test_django_auth.owner"):
        session = SessionStore()
        session["tenant"] = "a"
        session.save()
        assert principal_of(str(session.session_key)) == "tenant:a"
        with pytest.raises(ConfigurationError, match="PRINCIPAL returns None"):
            sessions_of(ada)
    with engine(store, PRINCIPAL=None):
        assert principal_of(key_of(log_in())) is None
        with pytest.raises(ConfigurationError, match="PRINCIPAL is None"):
            end_sessions(ada)


def command(name: str, *args: str) -> str:
    out = io.StringIO()
    call_command(name, *args, stdout=out)
    return out.getvalue()


def test_the_commands() -> None:
    here, there = log_in(), log_in()
    lines = command("listsessions", "ada").splitlines()
    assert len(lines) == 2
    mine = current().blocking.load(key_of(here)).handle
    assert [line for line in lines if line.startswith(mine)]
    assert key_of(here) not in "".join(lines)
    with pytest.raises(CommandError, match="nothing was ended"):
        command("endsessions", "ada", "--keep", "other")
    assert command("endsessions", "ada", "--keep", mine) == "sessions ended: 1\n"
    assert (who(here), who(there)) == ("ada", "")
    assert command("endsessions", "ada") == "sessions ended: 1\n"
    assert command("listsessions", "ada") == ""
    with pytest.raises(CommandError, match="'eve' does not exist"):
        command("listsessions", "eve")


# Flash messages


async def test_flash_messages_of_parallel_requests_are_all_shown() -> None:
    async with serve_wsgi() as browser:
        await browser.get("/tell/first")
        texts = [str(number) for number in range(12)]
        await asyncio.gather(*(browser.get(f"/tell/{text}") for text in texts))
        assert sorted((await browser.get("/told")).json()) == sorted(["first", *texts])
        assert (await browser.get("/told")).json() == []


async def test_a_message_that_comes_while_others_are_shown_stays() -> None:
    async with serve_wsgi() as browser:
        await browser.get("/tell/first")
        gate = GATES["show"] = Gate()
        shown: list[str] = []

        def show(request: Any) -> None:
            from django.contrib.messages import get_messages

            shown.extend(str(message) for message in get_messages(request))

        change["show"] = show
        await gate.hold(browser.get("/slow/show"), lambda: browser.get("/tell/second"))
        assert shown == ["first"]
        assert (await browser.get("/told")).json() == ["second"]


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "merged"),
    [
        ("[1]", MISSING, "[1,2]", "[2]"),
        (MISSING, "[1]", "[2]", "[2,1]"),
        ("[1]", "[1,3]", "[1,2]", "[1,2,3]"),
        ("[1]", MISSING, MISSING, MISSING),
        ("[1]", "[1]", "[1,2]", "[1,2]"),
        ("not json", "[1]", "other", "[1]"),
        ('{"a":1}', "[1]", "[2]", "[1]"),
        ([1], [1, 2], [1, 3], [1, 3, 2]),
        (5, 5, 6, 6),
    ],
)
def test_how_messages_are_merged(base: Any, ours: Any, theirs: Any, merged: Any) -> None:
    assert merge_messages(base, ours, theirs) == merged


# The admin


async def test_the_admin() -> None:
    """Real requests, with its forms and CSRF tokens."""
    csrf = "django.middleware.csrf.CsrfViewMiddleware"
    with override_settings(MIDDLEWARE=[*MIDDLEWARE, csrf], CSRF_USE_SESSIONS=True):
        async with serve_wsgi() as browser:
            page = await browser.get("/admin/login/")
            anonymous = session_id(browser)
            page = await _send(browser, "/admin/login/?next=/admin/", page, **_PASSWORD)
            assert page.headers["location"] == "/admin/"
            assert session_id(browser) != anonymous
            page = await browser.get("/admin/auth/user/add/")
            assert page.status_code == 200
            new = {"username": "grace", "usable_password": "true"}
            passwords = {"password1": "rear-admiral-1906", "password2": "rear-admiral-1906"}
            page = await _send(browser, "/admin/auth/user/add/", page, **new, **passwords)
            assert page.status_code == 302
            page = await browser.get(page.headers["location"])
            assert "was added successfully" in page.text, "a flash message"
            page = await _send(browser, "/admin/logout/", page)
            assert session_id(browser) is None
            assert (await browser.get("/admin/")).status_code == 302


_PASSWORD = {"username": "ada", "password": "lovelace"}


async def _send(
    browser: httpx.AsyncClient, path: str, page: httpx.Response, **fields: str
) -> httpx.Response:
    """Fill in the form of a page."""
    found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
    assert found is not None, page.text
    return await browser.post(path, data={"csrfmiddlewaretoken": found[1], **fields})
