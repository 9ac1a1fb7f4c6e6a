"""URLs with several addresses: those of a Redis Cluster's nodes, or of Sentinels.

redis-py reads the credentials and options, and each address; no part of a URL is ever repeated in
an error, since a password that is not percent-encoded may be anywhere in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from redis.cluster import ClusterNode

from asyncsession.errors import ConfigurationError
from asyncsession.transport.options import Options, check, read_url

__all__ = [
    "Address",
    "Remap",
    "SentinelUrl",
    "read_cluster_url",
    "read_sentinel_url",
    "remap_from",
]

Address = tuple[str, int]
Remap = Callable[[Address], Address]

Parse = Callable[[str], Mapping[str, Any]]
Make = Callable[[Options], object]

_CLUSTER = "redis+cluster://user:password@host:6379,host:6379"
_SENTINEL = "redis+sentinel://user:password@host:26379,host:26379/service/0"
_FORM = re.compile(r"(rediss?)\+\w+://(?:([^/?#]*)@)?([^@/?#]*)(?:/([^?#]*))?(?:\?([^#]*))?")


class SentinelUrl(NamedTuple):
    """What a URL says about a master that Sentinels watch.

    Attributes:
        sentinels: their addresses.
        service: the name by which they know the master.
        options: for connections to the master.
        asking: the options for clients of the Sentinels, as `redis.Redis` takes them.
    """

    sentinels: list[Address]
    service: str
    options: Options
    asking: Options


def read_cluster_url(url: str, parse: Parse, make: Make) -> tuple[list[Address], Options]:
    """Return the addresses of a cluster's nodes, and the options for connections to them.

    Args:
        url: `redis+cluster://` or `rediss+cluster://`.
        parse: redis-py's own function for URLs, that for asyncio or the other one.
        make: makes a connection out of options.

    Raises:
        ConfigurationError: it cannot be read; the message says what is wrong.
    """
    nodes, path, options = _read(url, parse, 6379, _CLUSTER)
    check(options, make)
    if path not in ("", "0") or options.pop("db", 0):
        raise ConfigurationError(f"a Redis Cluster has database 0 and no other: {_CLUSTER}")
    # redis-py looks up "localhost" when it makes a node, and no other name: now, not on a loop.
    return [(node.host, node.port) for node in map(ClusterNode, *zip(*nodes, strict=True))], options


def read_sentinel_url(url: str, parse: Parse, make: Make) -> SentinelUrl:
    """Return what a URL says about a master that Sentinels watch.

    Args:
        url: `redis+sentinel://` or `rediss+sentinel://`.
        parse: redis-py's own function for URLs, that for asyncio or the other one.
        make: makes a connection out of options.

    Raises:
        ConfigurationError: it cannot be read; the message says what is wrong.
    """
    sentinels, path, options = _read(url, parse, 26_379, _SENTINEL)
    service, _, database = path.partition("/")
    service = unquote(service)
    if not re.fullmatch(r"[\w.-]+", service) or not re.fullmatch(r"[0-9]*", database):
        raise ConfigurationError(
            "the URL names the service that the Sentinels watch, and may give the number of a"
            f" database: {_SENTINEL}"
        )
    options.setdefault("db", int(database or 0))
    asking = {name: value for name, value in options.items() if name.startswith("ssl_")}
    asking["ssl"] = url.startswith("rediss")
    for name in ("username", "password"):
        if f"sentinel_{name}" in options:
            asking[name] = options.pop(f"sentinel_{name}")
    check(options, make)
    return SentinelUrl(sentinels, service, options, asking)


def _read(
    url: str, parse: Parse, default_port: int, example: str
) -> tuple[list[Address], str, Options]:
    """Return addresses, the path without its first slash, and connection options."""
    found = _FORM.fullmatch(url)
    if found is None:
        raise ConfigurationError(
            f"the URL of the store is not of the form {example}: special characters of a password"
            " are percent-encoded"
        )
    scheme, user, hosts, path, query = (part or "" for part in found.groups())
    addresses = []
    for number, host in enumerate(hosts.split(","), 1):
        try:
            address = parse(f"redis://{host}")
        except ValueError:
            address = {}
        if "host" not in address or not _is_plain(host):
            raise ConfigurationError(
                f"address {number} in the URL of the store is not host:port, host, [IPv6]:port or"
                f" [IPv6] (special characters of a password are percent-encoded): {example}"
            )
        addresses.append((str(address["host"]), int(address.get("port", default_port))))
    options = read_url(f"{scheme}://{user}@/?{query}", parse)
    if "host" in options or "port" in options or "path" in options:
        raise ConfigurationError(f"hosts and ports stand before the path: {example}")
    return addresses, path, options


def _is_plain(host: str) -> bool:
    """Tell whether an IPv6 address is in brackets, and whether the port is one if there is any."""
    return re.fullmatch(r"(\[[^\[\]]+\]|[^:\[\]\s]+)(:[1-9]\d*)?", host) is not None


def remap_from(told_by: Address, remap: Remap | None) -> Remap:
    """Return a function for the addresses that a node names; without a host, it means its own."""

    def reached(address: Address) -> Address:
        host, port = address[0] or told_by[0], int(address[1])
        return remap((host, port)) if remap is not None else (host, port)

    return reached
