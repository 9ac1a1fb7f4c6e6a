"""Addresses of clusters and Sentinels, and client objects in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.asyncio.connection import parse_url

from asyncsession import ConfigurationError, SessionManager, SyncSessionManager
from asyncsession.transport import connect, connect_blocking, lanes
from asyncsession.transport.addresses import read_cluster_url, read_sentinel_url

BOTH = pytest.mark.parametrize("manager", [SessionManager, SyncSessionManager])


@pytest.mark.parametrize(
    ("hosts", "nodes"),
    [
        ("h", [("h", 6379)]),
        ("h:1,i", [("h", 1), ("i", 6379)]),
        ("[::1]", [("::1", 6379)]),
        ("[2001:db8::2]:7000,h.example:7001", [("2001:db8::2", 7000), ("h.example", 7001)]),
        ("localhost:3", [("127.0.0.1", 3)]),
    ],
)
def test_addresses_of_a_cluster(hosts: str, nodes: list[tuple[str, int]]) -> None:
    read, options = read_cluster_url(f"redis+cluster://{hosts}", parse_url, lanes.make)
    assert read == nodes
    assert options == {}


def test_options_of_a_cluster() -> None:
    url = "rediss+cluster://me:p%40ss@h,i:1/0?ssl_cert_reqs=none&client_name=app"
    nodes, options = read_cluster_url(url, parse_url, lanes.make)
    assert nodes == [("h", 6379), ("i", 1)]
    assert options.pop("connection_class") is redis.asyncio.SSLConnection
    assert options == {
        "username": "me", "password": "p@ss", "ssl_cert_reqs": "none", "client_name": "app",
    }  # fmt: skip


def test_a_url_of_sentinels() -> None:
    url = "redis+sentinel://me:p@h,[::1]:2/my.service-1/3?sentinel_username=s&sentinel_password=%3F"
    read = read_sentinel_url(url, parse_url, lanes.make)
    assert read.sentinels == [("h", 26379), ("::1", 2)]
    assert read.service == "my.service-1"
    assert read.options == {"username": "me", "password": "p", "db": 3}
    assert read.asking == {"username": "s", "password": "?", "ssl": False}


def test_sentinels_speak_tls_if_the_servers_do() -> None:
    read = read_sentinel_url(
        "rediss+sentinel://h/s?ssl_cert_reqs=none&sentinel_password=x", parse_url, lanes.make
    )
    assert read.asking == {"password": "x", "ssl": True, "ssl_cert_reqs": "none"}
    assert (read.options["ssl_cert_reqs"], read.options["db"]) == ("none", 0)


@BOTH
@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("cluster://", "address 1"),
        ("cluster://h,", "address 2"),
        ("cluster://h:port", "address 1"),
        ("cluster://h,h:70000", "address 2"),
        ("cluster://h:0", "address 1"),
        ("cluster://::1:6379", "address 1"),
        ("cluster://[::1", "address 1"),
        ("cluster://h/1", "database 0"),
        ("cluster://h/?db=2", "database 0"),
        ("cluster://h/?socket_timeout=x", "check its port, database and options"),
        ("cluster://h/?colour=red", "option .colour."),
        ("cluster://h/?host=i", "before the path"),
        ("cluster:h", "starts with"),
        ("clusters://h", "starts with"),
        ("cluster://:SECRET/x@h", "percent-encoded"),
        ("cluster://:SEC?RET@h", "percent-encoded"),
        ("sentinel://h", "names the service"),
        ("sentinel://h/", "names the service"),
        ("sentinel://h/s/x", "names the service"),
        ("sentinel://h/s/0/1", "names the service"),
        ("sentinel://:SECRET/x@h/s", "percent-encoded"),
        ("sentinel://h:x/s/0", "address 1"),
        ("sentinel://h/s/0?colour=red", "option .colour."),
    ],
)
def test_urls_that_cannot_work(manager: Callable[[str], Any], rest: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        manager(f"redis+{rest}")
    assert "SEC" not in str(caught.value)
    assert "RET" not in str(caught.value)


@BOTH
def test_no_password_is_shown(manager: Callable[[str], Any]) -> None:
    for kind in ("cluster://u:SECRET@h", "sentinel://u:SECRET@h/s?sentinel_password=SECRET"):
        for scheme in ("redis", "rediss"):
            made = manager(f"{scheme}+{kind}")
            assert "SECRET" not in repr(made) + repr(made._transport)


def sentinel_client(package: Any, role: str) -> Any:
    sentinel = package.Sentinel([("h", 1)], sentinel_kwargs={"password": "x"}, password="y")
    return getattr(sentinel, role)("s")


def test_clients_of_the_wrong_kind() -> None:
    blocking, on_loops = (
        sentinel_client(redis, "master_for"),
        sentinel_client(redis.asyncio, "master_for"),
    )
    with pytest.raises(ConfigurationError, match="without asyncio"):
        connect(blocking)
    with pytest.raises(ConfigurationError, match="on asyncio"):
        connect_blocking(on_loops, 1)
    with pytest.raises(ConfigurationError, match="RedisCluster"):
        connect_blocking(redis.asyncio.RedisCluster("h"), 1)


def test_sessions_are_not_read_from_replicas() -> None:
    with pytest.raises(ConfigurationError, match="master_for"):
        connect(sentinel_client(redis.asyncio, "slave_for"))
    with pytest.raises(ConfigurationError, match="master_for"):
        connect_blocking(sentinel_client(redis, "slave_for"), 1)
