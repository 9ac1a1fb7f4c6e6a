"""A Django project whose settings are built here, served by real servers.

Whoever imports Django in this process imports this first: its settings can be made only once, and
tests override them from here.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import django
import httpx
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management import call_command
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.core.wsgi import get_wsgi_application
from django.db import connections
from django.test import override_settings

from support.web import serve

__all__ = [
    "COOKIE",
    "ENGINE",
    "MIDDLEWARE",
    "PATIENCE",
    "database",
    "engine",
    "in_thread",
    "serve_asgi",
    "serve_wsgi",
    "session_id",
]

ENGINE = "asyncsession.integrations.django"
COOKIE = "sessionid"
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    f"{ENGINE}.CommitMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
T = TypeVar("T")

_APPS = ["admin", "auth", "contenttypes", "messages", "sessions"]
PATIENCE = 20.0  # seconds after which a test gives up; none waits so long

_home = tempfile.TemporaryDirectory(prefix="asyncsession-django-")
if not settings.configured:
    settings.configure(
        SECRET_KEY="a secret key of Django's",
        ALLOWED_HOSTS=["*"],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(Path(_home.name) / "db.sqlite3"),
                "ATOMIC_REQUESTS": True,
                "OPTIONS": {"timeout": 10},
            }
        },
        INSTALLED_APPS=[*(f"django.contrib.{app}" for app in _APPS), ENGINE],
        MESSAGE_STORAGE="django.contrib.messages.storage.session.SessionStorage",
        MIDDLEWARE=MIDDLEWARE,
        MIGRATION_MODULES=dict.fromkeys(_APPS),
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],  # it is fast
        ROOT_URLCONF="support.django_site",
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        USE_TZ=True,
    )
    django.setup()


class _Quiet(WSGIRequestHandler):  # type: ignore[misc]  # Django has no types
    """Django's own handler, which otherwise prints each request."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Print nothing."""


@cache
def database() -> int:
    """Make the tables and the user `ada`, an admin; return the process that has them."""
    from django.contrib.auth.models import User

    call_command("migrate", run_syncdb=True, verbosity=0)
    User.objects.create_superuser("ada", password="lovelace")
    User.objects.create_user("bob", password="builder")
    connections.close_all()
    return os.getpid()


async def in_thread(function: Callable[..., T], *args: Any, **options: Any) -> T:
    """Call what uses the database, in a thread that leaves no connection open."""

    def call() -> T:
        try:
            return function(*args, **options)
        finally:
            connections.close_all()

    return await asyncio.to_thread(call)


@contextmanager
def engine(url: str, *, overrides: dict[str, Any] | None = None, **options: Any) -> Iterator[None]:
    """Have Django keep its sessions in a store, under a prefix of the test's own.

    Args:
        url: of the store.
        overrides: other settings.
        options: for `ASYNCSESSION`.
    """
    merge = {"views": "asyncsession.merge.counter", "seat": "asyncsession.merge.reject"}
    declared = {"URL": url, "PREFIX": secrets.token_hex(6), "MERGE": merge, **options}
    with override_settings(SESSION_ENGINE=ENGINE, ASYNCSESSION=declared, **(overrides or {})):
        yield


@asynccontextmanager
async def serve_wsgi() -> AsyncIterator[httpx.AsyncClient]:
    """Serve the project by a thread for each connection; yield a browser that keeps cookies."""
    server = ThreadedWSGIServer(("127.0.0.1", 0), _Quiet, allow_reuse_address=False)
    server.set_app(get_wsgi_application())
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as browser:
            yield browser
    finally:
        await asyncio.to_thread(server.shutdown)
        await asyncio.to_thread(server.server_close)  # which waits for its threads
        thread.join()


@asynccontextmanager
async def serve_asgi() -> AsyncIterator[httpx.AsyncClient]:
    """Serve the project by uvicorn in this event loop; yield a browser that keeps cookies."""
    from asyncsession.integrations.django import aclose

    async with serve(get_asgi_application()) as browser:
        browser.timeout = httpx.Timeout(PATIENCE)
        yield browser
    await aclose()


def session_id(browser: httpx.AsyncClient) -> str | None:
    """Return the id that a browser has."""
    return browser.cookies.get(COOKIE)
