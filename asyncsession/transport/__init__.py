"""Transports: how calls reach Redis. The only part of the library that knows redis-py."""

from __future__ import annotations

from typing import Any

from redis import Redis

from asyncsession.errors import ConfigurationError
from asyncsession.protocol import BlockingTransport, Transport
from asyncsession.transport import blocking, fake, lanes

__all__ = ["connect", "connect_blocking", "is_blocking"]


def connect(target: Any, lanes_each: int = 1) -> Transport:
    """Return the transport for a URL or a `redis.asyncio` client; nothing is opened yet.

    Args:
        target: the URL or client.
        lanes_each: connections for each event loop, where there are any.

    Raises:
        ConfigurationError: a scheme, an option or a client that is not supported.
    """
    if not isinstance(target, str):
        return (
            fake.of_client(target) if fake.is_fake(target) else lanes.of_client(target, lanes_each)
        )
    match _scheme(target):
        case "redis" | "rediss" | "unix":
            return lanes.of_url(target, lanes_each)
        case "embedded":
            return lanes.of_embedded(target, lanes_each)
        case "memory":
            return fake.of_url(target)
    raise ConfigurationError(_WRONG_SCHEME)


def connect_blocking(target: Any, size: int) -> BlockingTransport:
    """Return the blocking transport for a URL or a `redis.Redis` client; nothing is opened yet.

    Args:
        target: the URL or client.
        size: connections at the most, where there are any.

    Raises:
        ConfigurationError: a scheme, an option or a client that is not supported.
    """
    if not isinstance(target, str):
        if fake.is_fake(target):
            return fake.blocking_of_client(target)
        return blocking.of_client(target, size)
    match _scheme(target):
        case "redis" | "rediss" | "unix":
            return blocking.of_url(target, size)
        case "embedded":
            return blocking.of_embedded(target, size)
        case "memory":
            return fake.blocking_of_url(target)
    raise ConfigurationError(_WRONG_SCHEME)


def is_blocking(target: object) -> bool:
    """Tell whether `target` is a client that only `connect_blocking` takes."""
    return isinstance(target, Redis)


_WRONG_SCHEME = (
    "the URL of a store starts with redis://, rediss://, unix://, embedded:// or memory://"
)


def _scheme(url: str) -> str | None:
    scheme, separator, _rest = url.partition("://")
    return scheme if separator else None
