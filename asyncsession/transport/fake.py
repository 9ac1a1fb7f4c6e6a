"""Calls on fakeredis, for tests and development without any server.

It has no connections to lose; a call is one `execute_command`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.client import NEVER_DECODE
from redis.exceptions import NoScriptError, RedisError

from asyncsession.errors import ConfigurationError
from asyncsession.protocol import Call, Transport
from asyncsession.scripts import SCRIPTS
from asyncsession.transport.faults import after_sending

if TYPE_CHECKING:
    from fakeredis import FakeServer

__all__ = ["FakeTransport", "is_fake", "of_client", "of_url"]

_servers: dict[str, FakeServer] = {}
"""By the name in `memory://name`, so that the managers of one process share them."""


def is_fake(client: object) -> bool:
    """Tell whether `client` is one of fakeredis, without importing that."""
    return any(base.__module__.partition(".")[0] == "fakeredis" for base in type(client).__mro__)


def of_client(client: Any) -> Transport:
    """Return a transport on a client of fakeredis."""
    return FakeTransport(client, owned=False)


def of_url(url: str) -> Transport:
    """Return a transport on the server that `memory://name` names; it starts out empty.

    Raises:
        ConfigurationError: fakeredis is not installed.
    """
    try:
        from fakeredis import FakeAsyncRedis, FakeServer  # an optional extra
    except ImportError:
        raise ConfigurationError(
            "memory:// needs fakeredis: pip install 'asyncsession[memory]'"
        ) from None
    server = _servers.setdefault(url.partition("://")[2], FakeServer())
    return FakeTransport(FakeAsyncRedis(server=server), owned=True)


class FakeTransport:
    """Calls on a client of fakeredis."""

    def __init__(self, client: Any, *, owned: bool) -> None:
        self._client = client
        self._owned = owned

    async def call(self, call: Call) -> list[Any]:
        """Run a script and return its reply."""
        script = SCRIPTS[call.script]
        arguments = (len(call.keys), *call.keys, *call.args)
        raw: dict[str, Any] = {NEVER_DECODE: True}
        try:
            try:
                reply: list[Any] = await self._client.execute_command(
                    "EVALSHA", script.sha, *arguments, **raw
                )
            except NoScriptError:
                reply = await self._client.execute_command("EVAL", script.source, *arguments, **raw)
        except RedisError as error:
            raise after_sending(error) from error
        return reply

    async def aclose(self) -> None:
        """Close the client if it is ours."""
        if self._owned:
            await self._client.aclose()

    def __repr__(self) -> str:
        return "fakeredis"
