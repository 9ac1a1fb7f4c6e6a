"""Transports: how calls reach Redis. The only part of the library that knows redis-py."""

from __future__ import annotations

from typing import Any

from redis import Redis, RedisCluster
from redis.asyncio import RedisCluster as AsyncRedisCluster

from asyncsession.errors import ConfigurationError
from asyncsession.protocol import BlockingTransport, Transport
from asyncsession.transport import (
    blocking,
    blocking_cluster,
    cluster,
    fake,
    lanes,
    sentinel,
)

__all__ = ["connect", "connect_blocking", "is_blocking"]


def connect(target: Any, lanes_each: int = 1, *, replicated: bool = False) -> Transport:
    """Return the transport for a URL or a client of `redis.asyncio`; nothing is opened yet.

    Args:
        target: the URL or client.
        lanes_each: connections for each event loop and server, where there are any.
        replicated: whether there have to be replicas.

    Raises:
        ConfigurationError: a scheme, an option or a client that is not supported, or a store that
            never has replicas.
    """
    if replicated:
        _check_replicas(target)
    if not isinstance(target, str):
        if fake.is_fake(target):
            return fake.of_client(target)
        if isinstance(target, (RedisCluster, AsyncRedisCluster)):
            return cluster.of_client(target, lanes_each)
        if sentinel.asks_sentinel(target):
            return sentinel.of_client(target, lanes_each)
        return lanes.of_client(target, lanes_each)
    match _scheme(target):
        case "redis" | "rediss" | "unix":
            return lanes.of_url(target, lanes_each)
        case "redis+cluster" | "rediss+cluster":
            return cluster.of_url(target, lanes_each)
        case "redis+sentinel" | "rediss+sentinel":
            return sentinel.of_url(target, lanes_each)
        case "embedded":
            return lanes.of_embedded(target, lanes_each)
        case "memory":
            return fake.of_url(target)
    raise ConfigurationError(_WRONG_SCHEME)


def connect_blocking(target: Any, size: int, *, replicated: bool = False) -> BlockingTransport:
    """Return the blocking transport for a URL or a client of redis-py; nothing is opened yet.

    Args:
        target: the URL or client.
        size: connections to each server at the most, where there are any.
        replicated: whether there have to be replicas.

    Raises:
        ConfigurationError: a scheme, an option or a client that is not supported, or a store that
            never has replicas.
    """
    if replicated:
        _check_replicas(target)
    if not isinstance(target, str):
        if fake.is_fake(target):
            return fake.blocking_of_client(target)
        if isinstance(target, (RedisCluster, AsyncRedisCluster)):
            return blocking_cluster.of_client(target, size)
        if sentinel.asks_sentinel(target):
            return sentinel.blocking_of_client(target, size)
        return blocking.of_client(target, size)
    match _scheme(target):
        case "redis" | "rediss" | "unix":
            return blocking.of_url(target, size)
        case "redis+cluster" | "rediss+cluster":
            return blocking_cluster.of_url(target, size)
        case "redis+sentinel" | "rediss+sentinel":
            return sentinel.blocking_of_url(target, size)
        case "embedded":
            return blocking.of_embedded(target, size)
        case "memory":
            return fake.blocking_of_url(target)
    raise ConfigurationError(_WRONG_SCHEME)


def is_blocking(target: object) -> bool:
    """Tell whether `target` is a client that only `connect_blocking` takes."""
    return isinstance(target, (Redis, RedisCluster))


_WRONG_SCHEME = (
    "the URL of a store starts with redis://, rediss://, unix://, redis+cluster://,"
    " rediss+cluster://, redis+sentinel://, rediss+sentinel://, embedded:// or memory://"
)


def _check_replicas(target: Any) -> None:
    if isinstance(target, str):
        is_alone = _scheme(target) in ("embedded", "memory")
    else:
        is_alone = fake.is_fake(target)
    if is_alone:
        raise ConfigurationError(
            "min_replicas: embedded:// servers and fakeredis have no replicas; leave it at 0"
        )


def _scheme(url: str) -> str | None:
    scheme, separator, _rest = url.partition("://")
    return scheme if separator else None
