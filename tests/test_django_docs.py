"""What docs/django.md shows is run, and what it states is so."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client, RequestFactory, override_settings
from support.django import database
from support.django_site import change
from support.servers import Server
from test_docs import ROOT, blocks

from asyncsession import errors
from asyncsession.integrations.answers import answer_to
from asyncsession.integrations.django import SessionStore, checks
from asyncsession.integrations.django.config import _NAMES, Config

PAGE = ROOT / "docs" / "django.md"
_SETTINGS = ("SESSION_ENGINE", "ASYNCSESSION", "MIDDLEWARE", "MESSAGE_STORAGE")


@pytest.fixture
def names(get_server: Callable[[str], Server]) -> dict[str, Any]:
    """What the page's Python blocks define, with the tests' store for the one they name."""
    found: dict[str, Any] = {}
    for block in blocks(PAGE, "python"):
        exec(block.replace("redis://localhost:6379/0", get_server("valkey9").url), found)
    return found


def test_the_settings_and_the_views(names: dict[str, Any]) -> None:
    from django.contrib.auth.models import AnonymousUser  # needs the settings

    database()
    shown = {name: names[name] for name in _SETTINGS}
    with override_settings(**shown):
        assert checks.check_settings() == []
        here, there = Client(), Client()
        for browser in (here, there):
            browser.post("/login/ada", {"password": "lovelace"})
        change["add"] = lambda request: names["add"](request, "apple")
        assert [here.post("/do/add").content for _ in range(2)] == [b"1", b"2"]
        change["order"] = names["order"]
        assert here.post("/do/order").content == b"ordered"
        request = RequestFactory().post("/")
        request.session = SessionStore(here.cookies["sessionid"].value)
        request.user = get_user_model().objects.get_by_natural_key("ada")
        assert len(names["devices"](request).content.splitlines()) == 2
        assert names["end_device"](request, "none").content == b"there is none"
        assert names["sign_out_elsewhere"](request).content == b"1"
        assert there.get("/who").content == b""
        for text in "ab":
            here.get(f"/tell/{text}")
            assert "messages" not in here.cookies
        assert here.get("/told").json() == ["a", "b"]
        request.user = AnonymousUser()
        for name in ("devices", "sign_out_elsewhere"):
            assert names[name](request).url.startswith("/accounts/login/")
        request.user = get_user_model().objects.get_by_natural_key("ada")
        assert request.session["views"] == 2
        assert names["sign_out_elsewhere"](request).content == b"0"
    assert Config.of(names["MOVED"]).source is not None


def test_every_option_is_listed() -> None:
    text = PAGE.read_text("utf-8")
    rows = re.findall(r"^\| (`[A-Z_`, ]+) \|", text, re.MULTILINE)
    assert sorted(set(re.findall(r"`([A-Z_]+)`", " ".join(rows)))) == _NAMES
    settings = Config.of({"URL": "redis://localhost"}).blocking.settings
    assert f"| `MAX_BYTES` | {settings.max_bytes:,} |" in text
    assert f"| `TIMEOUT` | {settings.timeout:g} |" in text
    assert f'| `PREFIX` | `"{settings.prefix}"` |' in text


def test_every_answer_is_listed() -> None:
    text = PAGE.read_text("utf-8")
    for error in errors.__all__:
        made = getattr(errors, error).__new__(getattr(errors, error))
        if error != "SessionGone" and (answer := answer_to(made)):
            assert re.search(rf"^\|.*`{error}`.*\| {answer.status}", text, re.MULTILINE), error
