"""Sessions of Django in a Redis cache: JSON, perhaps compressed, under a key of the cache's."""

from __future__ import annotations

import lzma
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from asyncsession.errors import ConfigurationError, InvalidSessionData
from asyncsession.migration.source import Principal, Source, read_json

__all__ = ["DjangoRedis"]


class DjangoRedis(Source):
    """Sessions of Django's `cache` engine on django-redis with its `JSONSerializer`.

    The default serializers of django-redis and of Django's own Redis cache are pickle, which is
    not read: set `JSONSerializer` some weeks before the switch.

    Args:
        url: see `Source`.
        prefix: `"{KEY_PREFIX}:{VERSION}:django.contrib.sessions.cache"` with those of the cache;
            of the engine `cached_db`, `"...:django.contrib.sessions.cached_db"`.
        cookie_name: Django's `SESSION_COOKIE_NAME`.
        compressor: "zlib", "gzip" or "lzma" if the cache has the `COMPRESSOR` of that name.
        principal: see `Source`. Who has logged in is under `"_auth_user_id"`.
    """

    name = "django-redis"
    id_form = re.compile(r"[0-9a-z]{32}", re.ASCII)

    def __init__(
        self,
        url: Any,
        *,
        prefix: str = ":1:django.contrib.sessions.cache",
        cookie_name: str = "sessionid",
        compressor: Literal["zlib", "gzip", "lzma"] | None = None,
        principal: Principal | None = None,
    ) -> None:
        super().__init__(url, prefix=prefix, cookie_name=cookie_name, principal=principal)
        if compressor is not None and compressor not in _DECOMPRESSORS:
            raise ConfigurationError(f"compressor: one of {', '.join(_DECOMPRESSORS)}, or None")
        self._decompressor = None if compressor is None else _DECOMPRESSORS[compressor]

    def decode(self, stored: bytes, limit: int) -> Mapping[str, Any]:
        """Return a session's content, Django's own keys for who has logged in included."""
        # What is short is stored as it is. No compressed data begins as a JSON object does.
        if self._decompressor is not None and not stored.startswith(b"{"):
            stored = _decompress(self._decompressor(), stored, limit)
        data = read_json(stored)
        data.pop("_session_expiry", None)  # what `set_expiry` keeps
        return data


_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "zlib": zlib.decompressobj,
    "gzip": lambda: zlib.decompressobj(zlib.MAX_WBITS + 16),
    "lzma": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2**26),
}


def _decompress(decompressor: Any, stored: bytes, limit: int) -> bytes:
    """Return what was compressed, if it is not larger than may be."""
    try:
        plain: bytes = decompressor.decompress(stored, limit)
    except (zlib.error, lzma.LZMAError):
        raise InvalidSessionData("it is not compressed as the cache was said to do") from None
    if not decompressor.eof:
        raise InvalidSessionData(f"it is cut short, or takes more than {limit} bytes unpacked")
    return plain
