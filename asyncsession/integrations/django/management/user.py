"""What the commands have in common: whom they are about."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser

__all__ = ["UserCommand"]


class UserCommand(BaseCommand):  # type: ignore[misc]  # Django has no types
    """A command about one user."""

    def add_arguments(self, parser: CommandParser) -> None:
        """Ask for the user, as `changepassword` does."""
        parser.add_argument("username", help="The user's name, as for logging in.")

    def user(self, username: str) -> Any:
        """Return the user of this name.

        Raises:
            CommandError: there is none.
        """
        model = get_user_model()
        try:
            return model._default_manager.get_by_natural_key(username)  # noqa: SLF001
        except model.DoesNotExist:
            raise CommandError(f"user {username!r} does not exist") from None
