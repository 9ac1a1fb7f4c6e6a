"""Sessions of Flask-Session in Redis: MessagePack or JSON under `prefix + id`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgpack

from asyncsession.errors import ConfigurationError, InvalidSessionData
from asyncsession.migration.source import Principal, Source, mapping, read_json

__all__ = ["FlaskSession", "flask_login_user"]


def flask_login_user(session: Mapping[str, Any]) -> str | None:
    """Return whom Flask-Login has logged in, as its `user_loader` knows them; None for nobody."""
    user_id = session.get("_user_id")
    return None if user_id is None else str(user_id)


class FlaskSession(Source):
    """Sessions of Flask-Session's `RedisSessionInterface`.

    Args:
        url: see `Source`.
        prefix: its `SESSION_KEY_PREFIX`.
        cookie_name: Flask's `SESSION_COOKIE_NAME`.
        serialization_format: its `SESSION_SERIALIZATION_FORMAT`. Flask-Session tries the others,
            and pickle, on what is not of that format; here that is not read.
        secret_key: Flask's `SECRET_KEY` if its `SESSION_USE_SIGNER` is on, else None.
        keep_permanent: keep the flag of permanent sessions, for the session interfaces of
            `asyncsession.integrations.flask` and `.quart`, whose cookie goes by it.
        principal: see `Source`. The default goes by what Flask-Login keeps, as that of the session
            interfaces does; None for an application that indexes nobody.

    Raises:
        ConfigurationError: an argument that cannot work; a `secret_key` without itsdangerous.
    """

    name = "Flask-Session"
    id_form = re.compile(r"[0-9A-Za-z_-]{22,128}", re.ASCII)  # its length is an option

    def __init__(
        self,
        url: Any,
        *,
        prefix: str = "session:",
        cookie_name: str = "session",
        serialization_format: Literal["msgpack", "json"] = "msgpack",
        secret_key: str | bytes | None = None,
        keep_permanent: bool = False,
        principal: Principal | None = flask_login_user,
    ) -> None:
        super().__init__(url, prefix=prefix, cookie_name=cookie_name, principal=principal)
        if serialization_format not in ("msgpack", "json"):
            raise ConfigurationError('serialization_format: "msgpack" or "json"')
        self._read = _read_msgpack if serialization_format == "msgpack" else read_json
        self._keep_permanent = keep_permanent
        self._signer = None if secret_key is None else _signer(secret_key)

    def decode(self, stored: bytes, limit: int) -> Mapping[str, Any]:  # noqa: ARG002
        """Return a session's content, flashed messages included."""
        data = self._read(stored)
        if not self._keep_permanent:
            data.pop("_permanent", None)  # how long Flask keeps the cookie
        return data

    def _unwrap(self, cookie_value: bytes) -> str | None:
        if self._signer is None:
            return super()._unwrap(cookie_value)
        if not self._signer.validate(cookie_value):
            return None
        return super()._unwrap(self._signer.unsign(cookie_value))


def _signer(secret_key: str | bytes) -> Any:
    if not isinstance(secret_key, (str, bytes)) or not secret_key:
        raise ConfigurationError("secret_key: Flask's SECRET_KEY, or None if ids are not signed")
    try:
        from itsdangerous import Signer  # an optional extra, which Flask itself brings
    except ImportError:
        raise ConfigurationError(
            "secret_key: signed ids need itsdangerous: pip install itsdangerous"
        ) from None
    return Signer(secret_key, salt="flask-session", key_derivation="hmac")


def _read_msgpack(stored: bytes) -> dict[Any, Any]:
    try:
        data = msgpack.unpackb(
            stored, strict_map_key=False, timestamp=3, ext_hook=_refuse_extension
        )
    except (ValueError, TypeError, ArithmeticError, msgpack.UnpackException):
        # Their words may quote the value.
        raise InvalidSessionData("it is not MessagePack as Flask-Session writes it") from None
    return mapping(data)


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} of {len(data)} bytes")
