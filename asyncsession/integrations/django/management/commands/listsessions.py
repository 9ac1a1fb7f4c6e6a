"""`manage.py listsessions USERNAME`."""

from __future__ import annotations

from typing import Any

from asyncsession.integrations.django.devices import sessions_of
from asyncsession.integrations.django.management.user import UserCommand

__all__ = ["Command"]


class Command(UserCommand):
    """Lists the sessions of a user by their handles, which are of no use as session keys."""

    help = "Lists the live sessions of a user, last seen first."

    def handle(self, *_: Any, username: str, **__: Any) -> None:
        """Print one line for each session."""
        for session in sessions_of(self.user(username)):
            if session.last_seen is None or session.created_at is None:
                self.stdout.write(f"{session.handle}  unreadable")
            else:
                self.stdout.write(
                    f"{session.handle}  since {session.created_at:%Y-%m-%d %H:%M:%S}"
                    f"  last seen {session.last_seen:%Y-%m-%d %H:%M:%S} UTC"
                )
