"""The application, for `INSTALLED_APPS`: it brings the management commands and the checks."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["SessionsConfig"]


class SessionsConfig(AppConfig):  # type: ignore[misc]  # Django has no types
    """Needed for `listsessions`, `endsessions` and the system checks only."""

    name = "asyncsession.integrations.django"
    label = "asyncsession"
    verbose_name = "Sessions"

    def ready(self) -> None:
        """See to it that the checks are registered."""
        from asyncsession.integrations.django import checks  # noqa: F401
