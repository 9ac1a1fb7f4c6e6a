"""What `settings.ASYNCSESSION` may say, and what the system checks say about it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.sessions.middleware import SessionMiddleware
from django.core import checks
from django.test import override_settings
from support.django import ENGINE, MIDDLEWARE, engine

from asyncsession import ConfigurationError, SessionManager, SyncSessionManager, merge
from asyncsession.integrations.django import CommitMiddleware
from asyncsession.integrations.django.checks import check_settings
from asyncsession.integrations.django.config import _NAMES, Config, current
from asyncsession.migration import DjangoRedis
from asyncsession.protocol import Durability

URL = "redis://127.0.0.1:1/0"


def either(base: Any, ours: Any, theirs: Any) -> Any:
    return ours


def test_each_option_of_the_managers_can_be_set() -> None:
    options = {"PRINCIPAL", "READ_THROUGH"}
    for manager in (SessionManager, SyncSessionManager):
        options |= {name.upper() for name in inspect.signature(manager).parameters}
    assert sorted(options) == _NAMES


def test_what_the_managers_are_given() -> None:
    config = Config.of(
        {
            "URL": URL,
            "PREFIX": "shop",
            "IDLE_TIMEOUT": 600,
            "ABSOLUTE_TIMEOUT": 6000,
            "MERGE": {
                "cart": "asyncsession.merge.union",
                "seat:*": either,
                "x": "test_django_settings.either",
            },
            "DEFAULT_MERGE": "asyncsession.merge.last_write",
            "MAX_BYTES": 4096,
            "CACHE_BYTES": 1000,
            "TIMEOUT": 2,
            "MAX_SESSIONS": 3,
            "WHEN_FULL": "refuse",
            "MIN_REPLICAS": 1,
            "DURABILITY_TIMEOUT": 1.5,
            "LANES": 2,
            "CONNECTIONS": 8,
        }
    )
    for manager in (config.awaited, config.blocking):
        found = manager.settings
        assert (found.prefix, found.idle_timeout, found.absolute_timeout) == ("shop", 600, 6000)
        assert (found.max_bytes, found.timeout) == (4096, 2)
        assert (found.max_sessions, found.ends_oldest) == (3, False)
        assert found.durability == Durability(1, 1.5)
        assert found.policies["cart"] is merge.union
        assert found.policies["other"] is merge.last_write
        assert found.policies["seat:1"].resolve is found.policies["x"].resolve is not None
        assert found.policies["_messages"].name == "merge_messages"
        assert found.policies["_session_ends"] is merge.maximum


def test_the_timeouts_follow_the_age_of_the_cookie() -> None:
    found = Config.of({"URL": URL}).blocking.settings
    assert (found.idle_timeout, found.absolute_timeout) == (1_209_600, 1_209_600)
    with override_settings(SESSION_COOKIE_AGE=60):
        found = Config.of({"URL": URL}).blocking.settings
        assert (found.idle_timeout, found.absolute_timeout) == (60, 1_209_600)
    with override_settings(SESSION_COOKIE_AGE=30 * 86_400):
        assert Config.of({"URL": URL}).blocking.settings.absolute_timeout == 30 * 86_400
    month = Config.of({"URL": URL, "IDLE_TIMEOUT": timedelta(days=30)}).blocking.settings
    assert (month.idle_timeout, month.absolute_timeout) == (30 * 86_400, 30 * 86_400)


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        (None, "a dict"),
        ({}, "URL"),
        ({"URL": object()}, "URL"),
        ({"URL": "http://localhost"}, "starts with redis://"),
        ({"URL": "redis://:x@localhost:port/0"}, "cannot read the URL"),
        ({"URL": URL, "IDLE_TIMOUT": 1}, "did you mean 'IDLE_TIMEOUT'"),
        ({"URL": URL, "prefix": "a"}, "did you mean 'PREFIX'"),
        ({"URL": URL, "ZZZ": 1}, "there are ABSOLUTE_TIMEOUT, CACHE_BYTES, CONNECTIONS"),
        ({"URL": URL, "TIMEOUT": 99}, "TIMEOUT: more than 0"),
        ({"URL": URL, "TIMEOUT": "5"}, "TIMEOUT: more than 0"),
        (
            {"URL": URL, "MIN_REPLICAS": 1, "DURABILITY_TIMEOUT": 9},
            "DURABILITY_TIMEOUT: at most `TIMEOUT`",
        ),
        ({"URL": URL, "MERGE": ["cart"]}, "MERGE: a dict"),
        ({"URL": URL, "MERGE": {"cart": "asyncsession.merge.onion"}}, r"MERGE\['cart'\].*onion"),
        ({"URL": URL, "MERGE": {"cart": 5}}, "policy"),
        ({"URL": URL, "DEFAULT_MERGE": "nowhere.at_all"}, "DEFAULT_MERGE.*nowhere"),
        ({"URL": URL, "PRINCIPAL": 5}, "PRINCIPAL"),
        ({"URL": URL, "READ_THROUGH": "json.dumps"}, "READ_THROUGH"),
        ({"URL": URL, "READ_THROUGH": "asyncsession.migration.DjangoRedis"}, "READ_THROUGH"),
        (
            {"URL": URL, "READ_THROUGH": "django.contrib.sessions.backends.signed_cookies"},
            "READ_THROUGH: .*backends.db, ",
        ),
        ({"URL": URL, "LANES": 0}, "LANES: a number"),
        ({"URL": URL, "CONNECTIONS": 0}, "CONNECTIONS: a number"),
    ],
)
def test_what_cannot_be_meant(declared: Any, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=f"ASYNCSESSION.*{reason}") as caught:
        Config.of(declared)
    assert ":x@" not in str(caught.value)


def test_a_source_may_be_given_as_such() -> None:
    source = DjangoRedis(URL)
    assert Config.of({"URL": URL, "READ_THROUGH": source}).source is source


def test_managers_last_until_the_settings_change() -> None:
    with engine(URL):
        first = current()
        assert current() is first
        with override_settings(SESSION_COOKIE_AGE=99):
            assert current().blocking.settings.idle_timeout == 99
        assert current() is not first


def ids(**settings: Any) -> list[str]:
    with engine(settings.pop("url", URL), overrides=settings):
        return [str(message.id).removeprefix("asyncsession.") for message in check_settings()]


def test_the_checks() -> None:
    assert ids() == []
    assert ids(url="http://x") == ["E001"]
    assert ids(MIDDLEWARE=[name for name in MIDDLEWARE if ENGINE not in name]) == ["W001"]
    assert ids(MIDDLEWARE=[MIDDLEWARE[0], MIDDLEWARE[2], MIDDLEWARE[1]]) == ["W001"]
    assert ids(MIDDLEWARE=[]) == [], "no sessions at all"
    assert ids(SESSION_SERIALIZER="django.core.signing.JSONSerializer") == ["W002"]
    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.db"):
        assert check_settings() == []
    for backend, found in ("db", ["E002"]), ("cached_db", ["E002"]), ("cache", []):
        former = f"django.contrib.sessions.backends.{backend}"
        with engine(URL, READ_THROUGH=former, overrides={"INSTALLED_APPS": [ENGINE]}):
            assert [message.id[-4:] for message in check_settings()] == found
        with engine(URL, READ_THROUGH=former):
            assert check_settings() == []


class Wider(SessionMiddleware):  # type: ignore[misc]  # Django has no types
    pass


class Own(CommitMiddleware):
    pass


def test_the_check_knows_subclasses_of_the_middleware() -> None:
    wider, own = "test_django_settings.Wider", "test_django_settings.Own"
    function = "django.contrib.auth.decorators.login_not_required"  # what is no class at all
    for inner in (MIDDLEWARE[1], own):
        assert ids(MIDDLEWARE=[function, wider, inner, *MIDDLEWARE[2:]]) == []
    assert ids(MIDDLEWARE=[wider, *MIDDLEWARE[2:]]) == ["W001"]
    assert ids(MIDDLEWARE=[wider]) == ["W001"]
    assert ids(MIDDLEWARE=[wider, "nowhere.AtAll", MIDDLEWARE[1]]) == ["W001"]


def test_django_runs_the_checks() -> None:
    with engine("http://x"):
        (found,) = checks.run_checks(tags=[checks.Tags.security])
    assert found.id == "asyncsession.E001"
    assert found.level == checks.ERROR


@pytest.mark.parametrize("installed", [True, False])
def test_nothing_is_needed_but_the_engine(installed: bool) -> None:
    """Also where `django.contrib.auth` and `sessions` are not installed, or not set up yet."""
    script = (
        "import django; from django.conf import settings\n"
        f"settings.configure(SESSION_ENGINE={ENGINE!r}, ASYNCSESSION={{'URL': 'memory://x'}},\n"
        f"    INSTALLED_APPS={[ENGINE] if installed else []})\n"
        f"import {ENGINE}; django.setup()\n"
        f"store = {ENGINE}.SessionStore(); store['a'] = 1; store.save()\n"
        "from django.core.management import get_commands, call_command\n"
        f"assert ('endsessions' in get_commands()) is {installed}\n"
        "call_command('check')"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, capture_output=True)
