"""The Django project as gunicorn serves it, after it has used its sessions before the fork."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from django.conf import settings
from django.core.wsgi import get_wsgi_application

from support.django import ENGINE

__all__ = ["create_app"]


def create_app(store: str, prefix: str) -> Callable[..., Iterable[bytes]]:
    """Return the project as a WSGI application, whose responses name their process."""
    settings.SESSION_ENGINE = ENGINE
    settings.ASYNCSESSION = {
        "URL": store,
        "PREFIX": prefix,
        "MERGE": {"views": "asyncsession.merge.counter"},
    }
    from asyncsession.integrations.django import SessionStore

    before = SessionStore()
    before["before"] = "the fork"
    before.save()  # so that there is a connection, which the children must not share
    project = get_wsgi_application()

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            return start_response(status, [*headers, ("X-Process", str(os.getpid()))], *error)

        return project(environ, start)

    return application
