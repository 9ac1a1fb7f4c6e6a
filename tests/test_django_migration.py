"""Taking over the sessions of Django's own engines: a browser comes with the cookie it had."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.core.cache import caches
from django.test import Client, override_settings
from django.utils import timezone
from support.django import COOKIE, ENGINE, database, engine, in_thread, serve_asgi
from support.django_way import HAS_AWAITED_MAPPING
from support.servers import Server

from asyncsession.ids import is_session_id
from asyncsession.integrations.django import SessionStore, end_sessions
from asyncsession.integrations.django.config import current
from asyncsession.integrations.django.sources import ENGINES, CacheSource, DatabaseSource

BACKENDS = "django.contrib.sessions.backends."
JSON = {"SERIALIZER": "django_redis.serializers.json.JSONSerializer"}


class Move:
    """A project that had one engine, and has ours now.

    Attributes:
        engine: the former `SESSION_ENGINE`.
    """

    def __init__(self, engine: str) -> None:
        self.engine = engine

    def before(self, *paths: str, login: str = "") -> Client:
        """Return a browser that has visited the project under its former engine."""
        browser = Client()
        with override_settings(SESSION_ENGINE=self.engine):
            for path in paths:
                browser.get(path)
            if login:
                browser.post(f"/login/{login}", {"password": "lovelace"})
        moved = Client()  # the other one keeps its middleware
        moved.cookies = browser.cookies
        assert not is_session_id(key_of(moved))
        return moved


@pytest.fixture(params=["db", "cached_db", "cache", "cache on django-redis"])
def move(request: pytest.FixtureRequest, get_server: Callable[[str], Server]) -> Iterator[Move]:
    database()
    url = get_server("valkey9").url
    cache = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "moved"}
    if "django-redis" in request.param:
        name = {"KEY_PREFIX": secrets.token_hex(4)}
        backend = "django_redis.cache.RedisCache"
        cache = {"BACKEND": backend, "LOCATION": url, "OPTIONS": JSON, **name}  # type: ignore[dict-item]
    former = BACKENDS + request.param.partition(" ")[0]
    with engine(url, READ_THROUGH=former, overrides={"CACHES": {"default": cache}}):
        yield Move(former)
        caches["default"].clear()


def key_of(browser: Client) -> str:
    return str(browser.cookies[COOKIE].value)


def test_who_is_logged_in_stays_so(move: Move) -> None:
    browser = move.before("/visit/a", login="ada")
    former = key_of(browser)
    assert browser.get("/who").content == b"ada"
    assert is_session_id(key_of(browser)), "the browser has our cookie"
    shown = browser.get("/look").json()
    assert (shown["cart"], shown["views"]) == (["a"], 1)
    assert current().blocking.load(key_of(browser)).principal == "user:1"
    late = Client()
    late.cookies[COOKIE] = former
    assert late.get("/look").json() == shown, "a parallel first request finds the same session"
    assert key_of(late) == key_of(browser)


def test_a_logout_is_final(move: Move) -> None:
    browser = move.before(login="ada")
    former = key_of(browser)
    browser.get("/logout")
    browser.cookies[COOKIE] = former
    assert browser.get("/look").json() == {}
    assert key_of(browser) == ""


@pytest.mark.parametrize("own", [True, False])
def test_what_is_ended_by_its_former_key_stays_so(move: Move, own: bool) -> None:
    """As by an application that has put down the keys of its users' sessions."""
    browser = move.before(login="ada")
    former = key_of(browser)
    if own:
        SessionStore(former).delete()
    else:
        SessionStore().delete(former)
    assert browser.get("/look").json() == {}
    assert key_of(browser) == ""


def test_signing_out_everywhere_comes_before(move: Move) -> None:
    from django.contrib.auth import get_user_model

    browser = move.before(login="ada")
    end_sessions(get_user_model().objects.get_by_natural_key("ada"))
    assert browser.get("/who").content == b""


def test_a_former_key_that_nobody_has_is_not_adopted(move: Move) -> None:
    browser = Client()
    browser.cookies[COOKIE] = "a" * 32
    assert browser.get("/look").json() == {}
    assert key_of(browser) == ""


def test_parallel_first_requests_meet_in_one_session(move: Move) -> None:
    browser = move.before("/visit/a")
    stores = [SessionStore(key_of(browser)) for _ in range(3)]
    for number, store in enumerate(stores):
        store[f"k{number}"] = number
    for store in stores:
        store.save()
    assert len({store.session_key for store in stores}) == 1
    shown = dict(SessionStore(stores[0].session_key).items())
    assert {"k0", "k1", "k2", "cart"} <= shown.keys()


def test_a_custom_expiry_comes_along(move: Move) -> None:
    browser = Client()
    with override_settings(SESSION_ENGINE=move.engine):
        session = browser.session
        session["a"] = 1
        session.set_expiry(300)
        session.save()
    browser.get("/look")
    assert browser.cookies[COOKIE]["max-age"] == 300
    assert SessionStore(key_of(browser)).get_expiry_age() == 300


@pytest.mark.skipif(not HAS_AWAITED_MAPPING, reason="Django before 5.1 has no methods to await")
async def test_on_an_event_loop(get_server: Callable[[str], Server]) -> None:
    await in_thread(database)
    with engine(get_server("valkey9").url, READ_THROUGH=f"{BACKENDS}db"):
        former = key_of(await in_thread(Move(f"{BACKENDS}db").before, login="ada"))
        async with serve_asgi() as browser:
            browser.cookies.set(COOKIE, former, domain="127.0.0.1")
            assert (await browser.get("/a/who")).text == "ada"
            assert is_session_id(browser.cookies.get(COOKIE))


@pytest.fixture
def rows(get_server: Callable[[str], Server]) -> Iterator[Callable[..., Client]]:
    """Return a browser with the key of a row in the database."""
    from django.contrib.sessions.models import Session  # once Django is set up

    database()

    def browser(data: str, ends: datetime | None = None) -> Client:
        ends = ends or timezone.now() + timedelta(hours=1)
        row = Session(session_key=secrets.token_hex(16), session_data=data, expire_date=ends)
        row.save()
        made = Client()
        made.cookies[COOKIE] = row.session_key
        return made

    with engine(get_server("valkey9").url, READ_THROUGH=f"{BACKENDS}db"):
        yield browser


def signed(data: Any) -> str:
    from django.contrib.sessions.backends.db import SessionStore as Former

    return str(Former().encode(data))


def test_a_row_that_has_expired_is_none(rows: Callable[..., Client]) -> None:
    assert rows(signed({"a": 1})).get("/look").json() == {"a": 1}
    ended = timezone.now() - timedelta(seconds=1)
    assert rows(signed({"a": 1}), ended).get("/look").json() == {}


def test_what_cannot_be_trusted_is_left(
    rows: Callable[..., Client], caplog: pytest.LogCaptureFixture
) -> None:
    with override_settings(SECRET_KEY="another"):
        forged = signed({"a": 1})
    for data in (forged, "nonsense", signed([1]), signed({"a": "x" * 300_000})):
        caplog.clear()
        assert rows(data).get("/look").json() == {}
        assert "is not taken over" in caplog.text


def test_pickle_is_not_read(rows: Callable[..., Client], caplog: pytest.LogCaptureFixture) -> None:
    import pickle

    from django.core import signing

    class Pickled:
        def dumps(self, data: Any) -> bytes:
            return pickle.dumps(data)

    data = signing.dumps({"a": 1}, salt="django.contrib.sessions.SessionStore", serializer=Pickled)
    assert rows(data).get("/look").json() == {}
    assert "it is not JSON" in caplog.text


def test_a_database_that_is_down_is_an_outage(
    rows: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = rows(signed({"a": 1}))

    def fail(self: Any, key: str) -> None:
        raise OSError("down")

    monkeypatch.setattr(DatabaseSource, "find", fail)
    with engine("memory://django", READ_THROUGH=f"{BACKENDS}db"):
        assert browser.get("/look").status_code == 503


@pytest.mark.parametrize(
    ("expiry", "seconds"),
    [
        (None, 1_209_600),
        (0, 1_209_600),
        (300, 300),
        ("in 30 days", 30 * 86_400),
    ],
    ids=["none", "at-close", "seconds", "date"],
)
def test_how_long_a_cache_may_keep_a_session(expiry: Any, seconds: float) -> None:
    """The mark that it was taken over outlives it; no cache of Django's can be asked."""
    cache = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "kept"}
    with override_settings(CACHES={"default": cache}):
        if expiry == "in 30 days":
            expiry = (timezone.now() + timedelta(days=30)).isoformat()
        caches["default"].set(
            "django.contrib.sessions.cache" + "a" * 32, {"_session_expiry": expiry}
        )
        found = CacheSource(None).find("a" * 32)
        assert found is not None
        assert abs(found[1] / 1000 - seconds) < 60


def test_the_engines_are_those_of_django() -> None:
    from django.utils.module_loading import import_string

    for name in ENGINES:
        assert import_string(f"{name}.SessionStore")
        assert name != ENGINE
