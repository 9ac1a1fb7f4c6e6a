"""TLS to Sentinels and what they watch, and IPv6 addresses of nodes and Sentinels: end to end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.cluster import wait_until
from support.sentinel import SERVICE
from support.servers import Server, available, tls_flavour
from test_sentinel import made, new_session

from asyncsession import StoreUnavailable

KINDS = ("asyncio", "blocking")
_MADE = {"asyncio": "sentinel", "blocking": "sync-sentinel"}


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


@pytest.fixture(scope="module")
def encrypted(stack: ExitStack) -> tuple[str, Server]:
    """The URL of a master that speaks TLS and of the Sentinel that watches it, and the master."""
    flavour = tls_flavour()
    if flavour is None:
        pytest.skip("no server here was built with TLS")
    import trustme

    authority = trustme.CA()
    options: dict[str, Any] = {"tls": True, "authority": authority, "tls_replication": "yes"}
    master = stack.enter_context(Server(flavour, requirepass="s", **options))
    sentinel = stack.enter_context(Server(flavour, sentinel=True, requirepass="g", **options))
    sentinel.run("SENTINEL", "MONITOR", SERVICE, "127.0.0.1", master.tls_port, 1)
    sentinel.run("SENTINEL", "SET", SERVICE, "auth-pass", "s")
    at = f"127.0.0.1:{sentinel.tls_port}/{SERVICE}?sentinel_password=g"
    return f"rediss+sentinel://:s@{at}", master


def is_connected(server: Server) -> bool:
    with server.admin() as client:
        return any(one["name"] == "app" for one in client.client_list())


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


def cluster_by_ipv6(stack: ExitStack) -> str:
    """Return the URL of a cluster of two nodes that know each other by IPv6 addresses alone."""
    options: dict[str, Any] = {"bind": "::1", "cluster_enabled": "yes"}
    first, second = (stack.enter_context(Server(available()[0], **options)) for _ in range(2))
    first.run("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
    second.run("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
    first.run("CLUSTER", "MEET", "::1", second.port, second.cluster_port)

    def are_joined() -> bool:
        states = [node.run("CLUSTER INFO") for node in (first, second)]
        return all(state["cluster_state"] == "ok" for state in states)

    wait_until(are_joined, "two nodes that have met")
    assert {entry[2][0] for entry in first.run("CLUSTER", "SLOTS")} == {"::1"}
    return f"redis+cluster://[::1]:{first.port}"


def sentinel_by_ipv6(stack: ExitStack) -> str:
    """Return the URL of a Sentinel that watches a master; both have IPv6 addresses alone."""
    flavour = available()[0]
    master = stack.enter_context(Server(flavour, bind="::1"))
    sentinel = stack.enter_context(Server(flavour, bind="::1", sentinel=True))
    sentinel.run("SENTINEL", "MONITOR", SERVICE, "::1", master.port, 1)
    return f"redis+sentinel://[::1]:{sentinel.port}/{SERVICE}"


@pytest.fixture(scope="module", params=[cluster_by_ipv6, sentinel_by_ipv6])
def ipv6_url(request: pytest.FixtureRequest, stack: ExitStack) -> str:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    url: str = request.param(stack)
    return url


@pytest.mark.parametrize("kind", KINDS)
async def test_tls_to_sentinels_and_master(kind: str, encrypted: tuple[str, Server]) -> None:
    url, master = encrypted
    manager = made(_MADE[kind], f"{url}&ssl_ca_certs={master.ca_file}&client_name=app")
    session = await new_session(manager, a=1)
    assert dict(await manager.load(session.id)) == {"a": 1}
    assert await asyncio.to_thread(is_connected, master)
    await manager.aclose()
    # TLS says goodbye before it closes, and the loop would end before that.
    await asyncio.to_thread(wait_until, lambda: not is_connected(master), "the connection's end")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_sentinel_whose_certificate_nobody_vouches_for(
    kind: str, encrypted: tuple[str, Server]
) -> None:
    url, _ = encrypted
    manager = made(_MADE[kind], url, timeout=10)
    with pytest.raises(StoreUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        await asyncio.wait_for(manager.load("abc." + "x" * 32), 3)  # not tried again
    await manager.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_ipv6_addresses(kind: str, ipv6_url: str) -> None:
    manager = made(_MADE[kind], ipv6_url)
    sessions = [await new_session(manager, a=number) for number in range(10)]
    assert [(await manager.load(one.id))["a"] for one in sessions] == list(range(10))
    await manager.aclose()
