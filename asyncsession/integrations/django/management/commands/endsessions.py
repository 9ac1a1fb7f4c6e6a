"""`manage.py endsessions USERNAME [--keep HANDLE]`."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from asyncsession.integrations.django.devices import end_sessions, sessions_of
from asyncsession.integrations.django.management.user import UserCommand

__all__ = ["Command"]


class Command(UserCommand):
    """Signs a user out everywhere."""

    help = "Ends all sessions of a user, those just logging in included."

    def add_arguments(self, parser: CommandParser) -> None:
        """Ask for the user, and for what to spare."""
        super().add_arguments(parser)
        parser.add_argument(
            "--keep", metavar="HANDLE", help="A session to leave alone, as listsessions names it."
        )

    def handle(self, *_: Any, username: str, keep: str | None, **__: Any) -> None:
        """End the sessions, and print how many.

        Raises:
            CommandError: there is no such user; or no session to keep, and then none is ended.
        """
        user, kept = self.user(username), None
        if keep is not None:
            kept = next((one for one in sessions_of(user) if one.handle == keep), None)
            if kept is None:
                raise CommandError(f"user {username!r} has no session {keep!r}; nothing was ended")
        self.stdout.write(f"sessions ended: {end_sessions(user, keep=kept)}")
