"""How large a session may become, and the error that says what makes it so large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from asyncsession.blob import HEADER_BYTES
from asyncsession.errors import SessionTooLarge
from asyncsession.log import Log
from asyncsession.session import PRINCIPAL

__all__ = ["HEADROOM", "public_name", "room_for", "too_large"]

HEADROOM: Final = 4
"""The log may be this many times as large as the session until a commit folds it."""


def room_for(
    frame: bytes, log: Log | None, limit: int, after: Callable[[], Log]
) -> tuple[int, bool]:
    """Return the bytes that the session may take, and whether its log has to be folded for this.

    Args:
        frame: what a commit adds, without its trailer.
        log: what it adds that to.
        limit: `max_bytes`.
        after: returns the log with the frame in it.

    Raises:
        SessionTooLarge: the session itself would be, folded or not.
    """
    length = HEADER_BYTES + (log.length if log else 0) + len(frame)
    if length <= limit:
        return limit, False
    before = HEADER_BYTES + sum(log.sizes().values()) if log else 0
    sizes = after().sizes()
    size = HEADER_BYTES + sum(sizes.values())
    room = max(limit, before)  # a session above the limit may still get smaller
    if size > room:
        raise too_large(size, sizes, limit)
    return room, length > room * HEADROOM


def too_large(size: int, sizes: Mapping[str, int], limit: int) -> SessionTooLarge:
    """Return the error that names the largest keys of a session of `size` bytes."""
    by_size = sorted(sizes.items(), key=lambda item: -item[1])
    return SessionTooLarge(size, limit, [(public_name(key), size) for key, size in by_size[:5]])


def public_name(key: str) -> str:
    """Return the name under which users know a key."""
    return "principal" if key == PRINCIPAL else key
