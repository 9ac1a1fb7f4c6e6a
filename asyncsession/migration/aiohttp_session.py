"""Sessions of aiohttp-session in Redis: JSON under `cookie name + "_" + id`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from asyncsession.migration.source import Principal, Source, mapping, read_json

__all__ = ["AiohttpSession"]


class AiohttpSession(Source):
    """Sessions of aiohttp-session's `RedisStorage` with its default `encoder`.

    Args:
        url: see `Source`.
        cookie_name: of its `RedisStorage`; the keys begin with it as well.
        principal: see `Source`.
    """

    name = "aiohttp-session"
    id_form = re.compile(r"[0-9A-Za-z_-]{22,128}", re.ASCII)  # by a function of the application's

    def __init__(
        self,
        url: Any,
        *,
        cookie_name: str = "AIOHTTP_SESSION",
        principal: Principal | None = None,
    ) -> None:
        super().__init__(
            url, prefix=f"{cookie_name}_", cookie_name=cookie_name, principal=principal
        )

    def decode(self, stored: bytes, limit: int) -> Mapping[str, Any]:  # noqa: ARG002
        """Return a session's content; nothing for one that was invalidated, which is stored so."""
        return mapping(read_json(stored).get("session", {}))
