"""A Django site with the pages, given its settings. There is one to a process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import django
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command
from django.db import transaction
from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.urls import path

from bench.sites import pages
from bench.sites.pages import PAGES, Page

__all__ = [
    "ENGINES",
    "atomic",
    "create",
    "create_async",
    "for_update",
    "locked_view",
    "urlpatterns",
]

ENGINES = "django.contrib.sessions.backends."
_SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
_COMMON = "django.middleware.common.CommonMiddleware"

View = Callable[..., HttpResponseBase]
_lock = threading.Lock()


def _configure(
    url: str, before: Sequence[str] = (), after: Sequence[str] = (), **more: Any
) -> None:
    """Give Django its settings: those of `url`'s Redis server, and some more.

    `before` and `after` are middleware, around the session's and inside.
    """
    settings.configure(
        SECRET_KEY="bench",  # noqa: S106
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF="bench.sites.django_site",
        INSTALLED_APPS=["django.contrib.sessions"],
        CACHES={"default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": url}},
        MIDDLEWARE=[*before, _SESSIONS, *after, _COMMON],
        LOGGING_CONFIG=None,
        **more,
    )
    django.setup()


def create(url: str, *, migrate: bool = False, index: str = "page", **more: Any) -> WSGIHandler:
    """Return the site as a WSGI application.

    Args:
        url: of the Redis server.
        migrate: create the table of the sessions.
        index: the page at the root.
        more: settings, and `before` and `after`, middleware around the session's and inside.
    """
    urlpatterns.append(path("", _VIEWS[index]))
    _configure(url, **more)
    if migrate:
        call_command("migrate", verbosity=0)
    return WSGIHandler()


def create_async(url: str, **more: Any) -> ASGIHandler:
    """Return the site as an ASGI application; the page that is visited most is asynchronous."""
    urlpatterns.insert(0, path("visit/<argument>", _visit))
    urlpatterns.append(path("", _VIEWS["page"]))
    _configure(url, **more)
    return ASGIHandler()


def atomic(get_response: View) -> View:
    """Middleware: the whole request in one transaction, the save of the session included."""
    inside: View = transaction.atomic(get_response)
    return inside


def for_update(get_response: View) -> View:
    """Middleware: the same, and the session's row is locked before it is read."""

    def locked(request: HttpRequest) -> HttpResponseBase:
        # It needs the settings.
        from django.contrib.sessions.models import Session

        key = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
        with transaction.atomic():
            Session.objects.select_for_update().filter(session_key=key).first()
            return get_response(request)

    return locked


def locked_view(get_response: View) -> View:
    """Middleware that gives the pages what they look like with a lock in them."""

    def marked(request: HttpRequest) -> HttpResponseBase:
        request.META["bench.lock"] = True
        return get_response(request)

    return marked


def _view(page: Page) -> View:
    def view(request: HttpRequest, argument: str = "") -> HttpResponseBase:
        if "bench.lock" not in request.META:
            return JsonResponse(page(request.session, argument))
        with _lock:
            return JsonResponse(page(request.session, argument))

    return view


def _logout(request: HttpRequest, argument: str = "") -> HttpResponseBase:  # noqa: ARG001
    request.session.flush()
    return JsonResponse({})


async def _visit(request: HttpRequest, argument: str) -> HttpResponseBase:
    seen = await request.session.aget(pages.COUNT, 0)
    await asyncio.sleep(pages.WORK)
    pages.change(request.session, seen, argument)
    return JsonResponse({})


def _settle(request: HttpRequest, argument: str = "") -> HttpResponseBase:  # noqa: ARG001
    return JsonResponse({})


_VIEWS = {name: _view(page) for name, page in PAGES.items()}
_VIEWS |= {"logout": _logout, "settle": _settle}
urlpatterns = [
    pattern
    for name, view in _VIEWS.items()
    for pattern in (path(name, view), path(f"{name}/<argument>", view))
]
