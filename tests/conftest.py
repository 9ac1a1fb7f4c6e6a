"""Fixtures for all tests. Session fixtures are per xdist worker, and so are the servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from support.backends import BACKENDS, REAL, Backend, open_backend
from support.cluster import Cluster
from support.flask import open_manager
from support.replicas import Pair
from support.sentinel import SentinelGroup
from support.servers import Server, available

from asyncsession import SyncSessionManager


@pytest.fixture(scope="session")
def get_server() -> Iterator[Callable[[str], Any]]:
    """A function that returns the one running server of a flavour, started on first use.

    "cluster" and "sentinel" are flavours of several servers, without fail-over.
    The test is skipped where the flavour is not installed. Data is shared between tests: give each
    its own prefix. A test that stops or configures a server makes a `Server` of its own.
    """
    servers: dict[str, Server | Cluster | SentinelGroup] = {}
    several = {"cluster": Cluster, "sentinel": SentinelGroup}

    def get(flavour: str) -> Server | Cluster | SentinelGroup:
        if flavour not in available() and (flavour not in several or not available()):
            pytest.skip(f"{flavour} is not installed")
        if flavour not in servers:
            make = several.get(flavour)
            servers[flavour] = make(available()[0]) if make else Server(flavour)
        server = servers[flavour]
        return server if server.running else server.start()

    yield get
    for server in servers.values():
        server.close()


@pytest.fixture(scope="session")
def get_pair() -> Iterator[Callable[[str], Pair]]:
    """A function that returns the one primary and replica of a flavour, started on first use."""
    pairs: dict[str, Pair] = {}

    def get(flavour: str) -> Pair:
        if flavour not in available():
            pytest.skip(f"{flavour} is not installed")
        if flavour not in pairs:
            pairs[flavour] = Pair(flavour)
        return pairs[flavour]

    yield get
    for pair in pairs.values():
        pair.close()


@pytest.fixture
def pair(request: pytest.FixtureRequest, get_pair: Callable[[str], Pair]) -> Pair:
    """A primary and its replica; of the flavour that is asked for by indirect parameter."""
    return get_pair(getattr(request, "param", "valkey9"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests on every store, and those of a module with `STORES` on what that names."""
    if "backend" in metafunc.fixturenames:
        stores = getattr(metafunc.module, "STORES", BACKENDS)
        metafunc.parametrize("backend", stores, indirect=True)


@pytest.fixture
async def backend(
    request: pytest.FixtureRequest, get_server: Callable[[str], Server]
) -> AsyncIterator[Backend]:
    """Every store in turn."""
    async with open_backend(request.param, get_server) as opened:
        yield opened


@pytest.fixture(params=REAL)
async def real_backend(
    request: pytest.FixtureRequest, get_server: Callable[[str], Server]
) -> AsyncIterator[Backend]:
    """Every real server in turn: on fakeredis nothing ever yields, so races prove nothing there."""
    async with open_backend(request.param, get_server) as opened:
        yield opened


@pytest.fixture
def cluster(get_server: Callable[[str], Any]) -> Cluster:
    """The shared cluster of masters."""
    found: Cluster = get_server("cluster")
    return found


@pytest.fixture
def manager() -> Iterator[SyncSessionManager]:
    """A blocking manager on a real server; what a web framework without `await` works with."""
    with open_manager() as opened:
        yield opened


@pytest.fixture
async def valkey(get_server: Callable[[str], Server]) -> AsyncIterator[Backend]:
    """One real server, over TCP."""
    async with open_backend("valkey9", get_server) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> Iterator[None]:
    """A call of ours that blocks the event loop fails the test."""
    with blockbuster_ctx("asyncsession"):
        yield
