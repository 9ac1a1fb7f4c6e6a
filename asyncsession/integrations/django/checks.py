"""System checks of the settings. They run with `manage.py check`, and before the server starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.sessions.middleware import SessionMiddleware
from django.core import checks
from django.utils.module_loading import import_string

from asyncsession.errors import ConfigurationError
from asyncsession.integrations.django.config import SETTING, Config
from asyncsession.integrations.django.middleware import CommitMiddleware
from asyncsession.integrations.django.sources import DatabaseSource

__all__ = ["check_settings"]

_ENGINE = "asyncsession.integrations.django"
_OUTER = "django.contrib.sessions.middleware.SessionMiddleware"
_INNER = f"{_ENGINE}.CommitMiddleware"
_TABLE = "django.contrib.sessions"
_SERIALIZER = "django.contrib.sessions.serializers.JSONSerializer"


@checks.register(checks.Tags.security)  # type: ignore[untyped-decorator]
def check_settings(
    app_configs: Sequence[Any] | None = None,  # noqa: ARG001
    **kwargs: Any,  # noqa: ARG001
) -> list[checks.CheckMessage]:
    """Return what is wrong with the settings of the session engine, if it is ours."""
    if settings.SESSION_ENGINE != _ENGINE:
        return []
    messages: list[checks.CheckMessage] = []
    try:
        source = Config.of(getattr(settings, SETTING, None)).source
    except ConfigurationError as error:
        messages.append(checks.Error(str(error), id="asyncsession.E001"))
    else:
        if isinstance(source, DatabaseSource) and not apps.is_installed(_TABLE):
            messages.append(
                checks.Error(
                    "ASYNCSESSION: READ_THROUGH: the table of the former sessions cannot be read.",
                    hint=f"Keep {_TABLE!r} in INSTALLED_APPS.",
                    id="asyncsession.E002",
                )
            )
    if not _is_committed(settings.MIDDLEWARE):
        messages.append(
            checks.Warning(
                "The session is not committed before the response is made, so conflicts and "
                "outages are answered with a bare 400 or 500.",
                hint=f"Put {_INNER!r} directly after {_OUTER!r}, or what takes the place of that, "
                "in MIDDLEWARE.",
                id="asyncsession.W001",
            )
        )
    if settings.SESSION_SERIALIZER != _SERIALIZER:
        messages.append(
            checks.Warning(
                "SESSION_SERIALIZER has no effect: sessions are kept in a format of their own.",
                hint="Remove it; for the types that are kept see docs/django.md.",
                id="asyncsession.W002",
            )
        )
    return messages


def _is_committed(middleware: Sequence[str]) -> bool:
    """Tell whether our middleware, if there is one for sessions at all, is directly inside that."""
    for outer, inner in zip(middleware, [*middleware[1:], ""], strict=False):
        if _is_kind_of(outer, SessionMiddleware):
            return _is_kind_of(inner, CommitMiddleware)
    return True


def _is_kind_of(path: str, kind: type) -> bool:
    """Tell whether a dotted path leads to a class or a subclass of it."""
    try:
        found = import_string(path)
    except ImportError:
        return False  # Django says so itself when it makes its handler
    return isinstance(found, type) and issubclass(found, kind)
