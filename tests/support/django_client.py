"""Browsers of Django's test client, and what others do to their sessions meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.test import Client

from asyncsession.integrations.django import SessionStore
from support.django import COOKIE
from support.django_site import change

__all__ = ["do", "end", "is_cleared", "put", "rotate", "shown", "stored", "with_cookie"]


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
