"""Transports: how calls reach Redis. The only part of the library that knows redis-py."""

from __future__ import annotations

from typing import Any

from asyncsession.errors import ConfigurationError
from asyncsession.protocol import Transport
from asyncsession.transport import fake, lanes

__all__ = ["connect"]


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
    scheme, separator, _rest = target.partition("://")
    match scheme if separator else None:
        case "redis" | "rediss" | "unix":
            return lanes.of_url(target, lanes_each)
        case "embedded":
            return lanes.of_embedded(target, lanes_each)
        case "memory":
            return fake.of_url(target)
    raise ConfigurationError(
        "the URL of a store starts with redis://, rediss://, unix://, embedded:// or memory://"
    )
