"""Sessions of starsessions in Redis: JSON under `prefix + id`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asyncsession.migration.source import Principal, Source, read_json

__all__ = ["Starsessions"]


class Starsessions(Source):
    """Sessions of starsessions' `RedisStore` with its `JsonSerializer`.

    Args:
        url: see `Source`.
        prefix: of its `RedisStore`.
        cookie_name: of its `SessionMiddleware`.
        principal: see `Source`.
    """

    name = "starsessions"

    def __init__(
        self,
        url: Any,
        *,
        prefix: str = "starsessions.",
        cookie_name: str = "session",
        principal: Principal | None = None,
    ) -> None:
        super().__init__(url, prefix=prefix, cookie_name=cookie_name, principal=principal)

    def decode(self, stored: bytes, limit: int) -> Mapping[str, Any]:  # noqa: ARG002
        """Return a session's content, without starsessions' times."""
        data = read_json(stored)
        data.pop("__metadata__", None)
        return data
