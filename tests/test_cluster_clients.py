"""What a cluster asks of its clients: client objects, rights, passwords and TLS."""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.asyncio import RedisCluster
from support.backends import Backend
from support.cluster import Cluster
from support.servers import Server, available, tls_flavour
from support.threads import InThreads
from test_cluster import elsewhere, new_session, slot_of
from test_docs import ROOT, blocks

from asyncsession import (
    SessionManager,
    StoreUnavailable,
    SyncSessionManager,
)

STORES = ("cluster", "sync-cluster")


@pytest.mark.parametrize("kind", STORES)
async def test_a_client_object_is_used_as_it_connects(kind: str) -> None:
    """Its password, its address map, and not its wish to read from replicas."""
    flavour = available()[0]
    with await asyncio.to_thread(lambda: Cluster(flavour, masters=1, requirepass="x").start()) as c:
        (node,) = c.nodes

        def remap(address: tuple[str, int]) -> tuple[str, int]:
            seen.add(address)
            return "127.0.0.1", node.port

        makers = {"cluster": RedisCluster, "sync-cluster": redis.RedisCluster}
        seen: set[tuple[str, int]] = set()
        await asyncio.to_thread(node.run, "CONFIG", "SET", "cluster-announce-ip", "10.255.255.1")
        options: dict[str, Any] = {
            "host": "127.0.0.1", "port": node.port, "password": "x", "decode_responses": True,
            "protocol": 3, "address_remap": remap, "read_from_replicas": True,
        }  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            client: Any = await asyncio.to_thread(makers[kind], **options)
        manager: Any
        if kind == "cluster":
            await client.initialize()
            manager = SessionManager(client)
        else:
            manager = InThreads(SyncSessionManager(client))
        asked = await asyncio.to_thread(readonly, node)
        session = await new_session(manager, a=1)
        assert dict(await manager.load(session.id)) == {"a": 1}
        await manager.aclose()
        assert await asyncio.to_thread(readonly, node) == asked > 0
        assert ("10.255.255.1", node.port) in seen
        await (client.aclose() if kind == "cluster" else asyncio.to_thread(client.close))


def readonly(node: Server) -> int:
    """Return how often a connection wished to read from a replica."""
    found = node.run("INFO", "commandstats").get("cmdstat_readonly", {"calls": 0})
    return int(found["calls"])


def rights(page: str, number: int) -> list[str]:
    """Return the rights that the code block of this number in a page names."""
    blocks = (ROOT / "docs" / page).read_text("utf-8").split("## Rights")[1].split("```")[1::2]
    return [word for word in blocks[number].split() if word.startswith(("+", "-"))]


async def test_the_rights_that_the_docs_name_are_enough(backend: Backend, cluster: Cluster) -> None:
    needed = ["-@all", *rights("deploying.md", 0), *rights("topologies.md", 0)]
    for node in cluster.nodes:
        await asyncio.to_thread(
            node.run, "ACL", "SETUSER", "app", "on", ">s", "resetkeys", "~session:*", *needed
        )
    manager = backend.manager(backend.url.replace("//", "//app:s@"), prefix="session")
    session = await new_session(manager, a=1)
    source, target = await elsewhere(cluster, session)
    await asyncio.to_thread(cluster.begin_move, slot_of(session), target)
    await asyncio.to_thread(cluster.move_keys, slot_of(session), target)
    session["a"], session.principal = 2, "user:42"
    await manager.save(session)
    await asyncio.to_thread(cluster.end_move, slot_of(session), target)
    await manager.rotate(session)
    assert await manager.destroy_all("user:42") == 1
    await asyncio.to_thread(cluster.move_slot, slot_of(session), source)
    for node in cluster.nodes:
        await asyncio.to_thread(node.run, "ACL", "DELUSER", "app")


async def test_the_managers_of_the_docs(get_server: Callable[[str], Any]) -> None:
    (source,) = blocks(ROOT / "docs" / "topologies.md", "python")
    for kind in ("cluster", "sentinel"):
        store = await asyncio.to_thread(get_server, kind)
        source = re.sub(rf'"redis\+{kind}://[^"]*"', repr(store.url), source)
    names: dict[str, Any] = {}
    exec(source, names)
    for manager in (names["cluster"], names["watched"]):
        session = await new_session(manager, a=1)
        assert dict(await manager.load(session.id)) == {"a": 1}
        await manager.destroy(session)
        await manager.aclose()


@pytest.fixture
def private() -> Iterator[Callable[..., Cluster]]:
    """Start clusters of the test's own."""
    made: list[Cluster] = []

    def start(flavour: str = available()[0], **options: Any) -> Cluster:
        made.append(Cluster(flavour, **options))
        return made[-1].start()

    yield start
    for one in made:
        one.close()


async def test_tls_and_password(private: Callable[..., Cluster]) -> None:
    flavour = tls_flavour()
    if flavour is None:
        pytest.skip("no server here was built with TLS")
    cluster = await asyncio.to_thread(private, flavour, tls=True, requirepass="p@ss")
    url = f"{cluster.rediss_url}?ssl_ca_certs={cluster.nodes[0].ca_file}"
    async with SessionManager(url) as manager:
        sessions = [await new_session(manager, a=number) for number in range(10)]
        assert [(await manager.load(s.id))["a"] for s in sessions] == list(range(10))
    async with SessionManager(cluster.rediss_url) as manager:
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
            await asyncio.wait_for(manager.load(sessions[0].id), 3)
    async with SessionManager(cluster.url.replace("p%40ss", "wrong")) as manager:
        with pytest.raises(StoreUnavailable, match=r"WRONGPASS|invalid username"):
            await asyncio.wait_for(manager.load(sessions[0].id), 3)

    def threads() -> list[int]:
        with SyncSessionManager(url) as manager:
            return [manager.load(session.id)["a"] for session in sessions]

    assert await asyncio.to_thread(threads) == list(range(10))
