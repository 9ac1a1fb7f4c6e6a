"""Calls on fakeredis, for tests and development without any server.

It has no connections to lose; a call is one `execute_command`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.client import NEVER_DECODE
from redis.exceptions import NoScriptError, RedisError

from asyncsession.errors import ConfigurationError
from asyncsession.protocol import BlockingTransport, Call, Transport
from asyncsession.scripts import SCRIPTS
from asyncsession.transport.faults import after_sending

if TYPE_CHECKING:
    from fakeredis import FakeServer

__all__ = [
    "BlockingFakeTransport",
    "FakeTransport",
    "blocking_of_client",
    "blocking_of_url",
    "is_fake",
    "of_client",
    "of_url",
]

_RAW: dict[str, Any] = {NEVER_DECODE: True}

_servers: dict[str, FakeServer] = {}
"""By the name in `memory://name`, so that the managers of one process share them."""


def is_fake(client: object) -> bool:
    """Tell whether `client` is one of fakeredis, without importing that."""
    return any(base.__module__.partition(".")[0] == "fakeredis" for base in type(client).__mro__)


def of_client(client: Any) -> Transport:
    """Return a transport on a client of fakeredis.

    Raises:
        ConfigurationError: it is not one for asyncio.
    """
    if isinstance(client, Redis):
        raise ConfigurationError(
            f"a store is a URL or a redis.asyncio.Redis client, not {type(client).__qualname__}"
        )
    return FakeTransport(client, owned=False)


def of_url(url: str) -> Transport:
    """Return a transport on the server that `memory://name` names; it starts out empty.

    Raises:
        ConfigurationError: fakeredis is not installed.
    """
    server = _server(url)
    from fakeredis import FakeAsyncRedis

    return FakeTransport(FakeAsyncRedis(server=server), owned=True)


def blocking_of_client(client: Any) -> BlockingTransport:
    """Return a blocking transport on a client of fakeredis.

    Raises:
        ConfigurationError: it is one for asyncio.
    """
    if not isinstance(client, Redis):
        raise ConfigurationError(
            f"a store is a URL or a redis.Redis client, not {type(client).__qualname__}"
        )
    return BlockingFakeTransport(client, owned=False)


def blocking_of_url(url: str) -> BlockingTransport:
    """Return a blocking transport on the server that `memory://name` names.

    Raises:
        ConfigurationError: fakeredis is not installed.
    """
    server = _server(url)
    from fakeredis import FakeRedis

    return BlockingFakeTransport(FakeRedis(server=server), owned=True)


def _server(url: str) -> FakeServer:
    try:
        from fakeredis import FakeServer  # an optional extra
    except ImportError:
        raise ConfigurationError(
            "memory:// needs fakeredis: pip install 'asyncsession[memory]'"
        ) from None
    return _servers.setdefault(url.partition("://")[2], FakeServer())


class FakeTransport:
    """Calls on a client of fakeredis."""

    def __init__(self, client: Any, *, owned: bool) -> None:
        self._client = client
        self._owned = owned

    async def call(self, call: Call) -> Any:
        """Run a script and return its reply."""
        script, arguments = SCRIPTS[call.script], _arguments(call)
        try:
            try:
                reply: Any = await self._client.execute_command(
                    "EVALSHA", script.sha, *arguments, **_RAW
                )
            except NoScriptError:
                reply = await self._client.execute_command(
                    "EVAL", script.source, *arguments, **_RAW
                )
        except RedisError as error:
            raise after_sending(error) from error
        return reply

    async def aclose(self) -> None:
        """Close the client if it is ours."""
        if self._owned:
            await self._client.aclose()

    def __repr__(self) -> str:
        return "fakeredis"


class BlockingFakeTransport:
    """Calls on a blocking client of fakeredis."""

    def __init__(self, client: Any, *, owned: bool) -> None:
        self._client = client
        self._owned = owned

    def call(self, call: Call) -> Any:
        """Run a script and return its reply."""
        script, arguments = SCRIPTS[call.script], _arguments(call)
        try:
            try:
                reply: Any = self._client.execute_command("EVALSHA", script.sha, *arguments, **_RAW)
            except NoScriptError:
                reply = self._client.execute_command("EVAL", script.source, *arguments, **_RAW)
        except RedisError as error:
            raise after_sending(error) from error
        return reply

    def close(self) -> None:
        """Close the client if it is ours."""
        if self._owned:
            self._client.close()

    def __repr__(self) -> str:
        return "fakeredis"


def _arguments(call: Call) -> tuple[bytes | str | int, ...]:
    return (len(call.keys), *call.keys, *call.args)
