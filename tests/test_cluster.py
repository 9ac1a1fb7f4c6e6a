"""Redis Cluster as it is most of the time: where calls go, and how they get there."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import redis
from redis.crc import key_slot
from support.backends import Backend
from support.cluster import Cluster, wait_until
from support.servers import Server, available

from asyncsession import (
    Session,
    SessionManager,
    StoreUnavailable,
    SyncSessionManager,
    merge,
)
from asyncsession.ids import store_key
from asyncsession.protocol import Call
from asyncsession.transport import blocking_cluster
from asyncsession.transport import cluster as cluster_module
from asyncsession.transport.routing import Route, View, route

STORES = ("cluster", "sync-cluster")


async def new_session(manager: Any, **values: Any) -> Session:
    session: Session = await manager.load()
    session.update(values)
    await manager.save(session)
    return session


def slot_of(session: Session) -> int:
    return key_slot(store_key("", session.handle).encode())


def errors(node: Server, name: str) -> int:
    """Return how often a node has answered with this error."""
    found = node.run("INFO", "errorstats").get(f"errorstat_{name}", {"count": 0})
    return int(found["count"])


async def elsewhere(cluster: Cluster, session: Session) -> tuple[Server, Server]:
    """Return the master of a session and another one."""
    owner = await asyncio.to_thread(cluster.owner, slot_of(session))
    return owner, next(node for node in cluster.nodes if node is not owner)


async def test_no_script_has_keys_of_two_slots(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spy(view: View, call: Call) -> Route:
        slots.append((call.script, len(call.keys), {key_slot(key.encode()) for key in call.keys}))
        return route(view, call)

    slots: list[tuple[str, int, set[int]]] = []
    for module in (cluster_module, blocking_cluster):
        monkeypatch.setattr(module, "route", spy)
    manager = backend.manager(max_sessions=2, merge={"n": merge.counter})
    others = [await new_session(manager, n=1) for _ in range(3)]
    for session in others:
        session.principal = "user:42"
        await manager.rotate(session)
    session = others[-1]
    await manager.update(session.id, lambda found: found.update(n=5))
    await manager.refresh(session)
    await manager.touch(session)
    await manager.sessions_of("user:42")
    await manager.destroy(others[1])
    await manager.destroy_all("user:42")
    assert {len(used) for _, _, used in slots} == {1}
    assert {script for script, _, _ in slots} == {"commit", "load", "touch", "index", "destroy"}
    assert max(count for _, count, _ in slots) == 2, "a rotation has two keys"
    assert len({tuple(used) for _, _, used in slots}) > 3, "sessions and index are spread"


async def test_sessions_are_spread_over_the_nodes(backend: Backend, cluster: Cluster) -> None:
    manager = backend.manager()
    await asyncio.gather(*(new_session(manager, n=number) for number in range(30)))
    keys = await asyncio.to_thread(
        cluster.each_master, lambda client: client.keys(f"{backend.prefix}:*")
    )
    assert sum(map(len, keys)) == 30
    assert all(keys)


async def test_moved_costs_one_hop_and_is_learnt(backend: Backend, cluster: Cluster) -> None:
    manager = backend.manager()
    session = await new_session(manager, a=0)
    before, after = await elsewhere(cluster, session)
    await asyncio.to_thread(cluster.move_slot, slot_of(session), after)
    told = await asyncio.to_thread(errors, before, "MOVED")
    for number in range(3):
        session["a"] = number + 1
        assert (await manager.save(session)).attempts == 1
    assert await asyncio.to_thread(errors, before, "MOVED") == told + 1
    assert dict(await manager.load(session.id)) == {"a": 3}
    await asyncio.to_thread(cluster.move_slot, slot_of(session), before)


async def test_ask_while_a_slot_moves(backend: Backend, cluster: Cluster) -> None:
    """Many at once: if anything came between ASKING and the call, the node would say MOVED."""
    manager = backend.manager(merge={"n": merge.counter})
    session = await new_session(manager, n=0)
    source, target = await elsewhere(cluster, session)
    busy = [s for s in [await new_session(manager, n=0) for _ in range(12)]
            if await asyncio.to_thread(cluster.owner, slot_of(s)) is target]  # fmt: skip
    slot = slot_of(session)
    await asyncio.to_thread(cluster.begin_move, slot, target)
    session["n"] += 1
    assert (await manager.save(session)).attempts == 1, "its key has not moved yet"
    assert await asyncio.to_thread(cluster.move_keys, slot, target) == 1
    asked, moved = errors(source, "ASK"), errors(target, "MOVED")

    async def write(session_id: str) -> None:
        for _ in range(5):
            async with manager.session(session_id) as mine:
                mine["n"] += 1

    await asyncio.gather(*(write(s.id) for s in [*[session] * 6, *busy * 2]))
    # Of 30 loads and 30 commits those that meet go in one call, but not the five of one writer.
    assert asked + 10 <= errors(source, "ASK") <= asked + 60
    assert errors(target, "MOVED") == moved
    await asyncio.to_thread(cluster.end_move, slot, target)
    assert (await manager.load(session.id))["n"] == 31
    await asyncio.to_thread(cluster.move_slot, slot, source)


async def test_a_rotation_waits_for_its_slot(backend: Backend, cluster: Cluster) -> None:
    """Its second key is on neither node (TRYAGAIN): refused, and tried again for a while."""
    manager, hasty = backend.manager(), backend.manager(timeout=0.8)
    session = await new_session(manager, a=1)
    old_id, slot = session.id, slot_of(session)
    source, target = await elsewhere(cluster, session)
    await asyncio.to_thread(cluster.begin_move, slot, target)
    with pytest.raises(StoreUnavailable, match="TRYAGAIN"):
        await hasty.rotate(session)
    told = errors(source, "TRYAGAIN")
    rotation = asyncio.create_task(manager.rotate(session))
    await asyncio.to_thread(
        wait_until, lambda: errors(source, "TRYAGAIN") > told, "a rotation that is refused"
    )
    await asyncio.to_thread(cluster.move_keys, slot, target)
    await asyncio.to_thread(cluster.end_move, slot, target)
    await rotation
    assert session.id != old_id
    assert (await manager.load(old_id)).is_new
    assert dict(await manager.load(session.id)) == {"a": 1}
    await asyncio.to_thread(cluster.move_slot, slot, source)


async def test_after_script_flush(backend: Backend, cluster: Cluster) -> None:
    manager = backend.manager()
    session = await new_session(manager, a=1)
    await asyncio.to_thread(cluster.each_master, lambda client: client.script_flush())
    session["a"] = 2
    await manager.save(session)
    assert dict(await manager.load(session.id)) == {"a": 2}


async def test_a_start_while_a_node_of_the_url_is_away(backend: Backend) -> None:
    url = backend.url.replace("//", "//127.0.0.1:1,127.0.0.1:2,")
    for _ in range(3):  # another one is asked first each time
        manager = backend.manager(url)
        assert not (await new_session(manager, a=1)).is_new
    gone = backend.manager("redis+cluster://127.0.0.1:1", timeout=0.8)
    with pytest.raises(StoreUnavailable, match="refused"):
        await new_session(gone, a=1)


async def test_a_node_of_the_url_that_has_not_joined_yet(backend: Backend) -> None:
    lone = Server(available()[0], cluster_enabled="yes")
    await asyncio.to_thread(lone.start)
    try:
        hosts = backend.url.removeprefix("redis+cluster://")
        for order in (f"127.0.0.1:{lone.port},{hosts}", f"{hosts},127.0.0.1:{lone.port}"):
            manager = backend.manager(f"redis+cluster://{order}")
            assert not (await new_session(manager, a=1)).is_new
        alone = backend.manager(f"redis+cluster://127.0.0.1:{lone.port}", timeout=0.8)
        with pytest.raises(StoreUnavailable, match="knows of no master"):
            await new_session(alone, a=1)
    finally:
        await asyncio.to_thread(lone.close)


async def test_a_server_without_cluster_mode_says_so(
    backend: Backend, get_server: Callable[[str], Any]
) -> None:
    port = (await asyncio.to_thread(get_server, available()[0])).port
    manager = backend.manager(f"redis+cluster://127.0.0.1:{port}")
    with pytest.raises(StoreUnavailable, match="cluster support disabled"):
        await asyncio.wait_for(new_session(manager, a=1), 3)  # at once, since it will not pass


@pytest.mark.parametrize("named", ["unknown-endpoint", "hostname"])
async def test_nodes_that_are_not_named_by_their_address(
    backend: Backend, cluster: Cluster, named: str
) -> None:
    """Without a host, a node means the one through which it is asked; names are looked up."""

    def announce(kind: str, hostname: str) -> None:
        for node in cluster.nodes:
            node.run("CONFIG", "SET", "cluster-announce-hostname", hostname)
            node.run("CONFIG", "SET", "cluster-preferred-endpoint-type", kind)
        hosts = {"ip": "127.0.0.1", "unknown-endpoint": None, "hostname": "localhost"}
        wait_until(lambda: hosts_named(cluster) == {hosts[kind]}, f"nodes named by {kind}")

    await asyncio.to_thread(announce, named, "localhost")
    try:
        manager = backend.manager()
        session = await new_session(manager, a=1)
        source, target = await elsewhere(cluster, session)
        for node in (target, source):
            await asyncio.to_thread(cluster.move_slot, slot_of(session), node)
            assert dict(await manager.load(session.id)) == {"a": 1}
    finally:
        await asyncio.to_thread(announce, "ip", "")


def hosts_named(cluster: Cluster) -> set[str | None]:
    """Return the hosts that the nodes name in what they say of each other."""
    slots = [entry for node in cluster.nodes for entry in node.run("CLUSTER", "SLOTS")]
    return {entry[2][0] for entry in slots}


async def test_lanes_of_each_loop_and_node(cluster: Cluster) -> None:
    """All tasks share one connection to each node; another event loop has its own."""
    manager = SessionManager(cluster.url, prefix="lanes")

    async def use() -> list[int]:
        sessions = await asyncio.gather(*(new_session(manager, a=n) for n in range(40)))
        await asyncio.gather(*(manager.load(session.id) for session in sessions))
        found = await asyncio.to_thread(cluster.each_master, ours)
        for session in sessions:
            await manager.destroy(session)
        return found

    def ours(client: redis.Redis) -> int:
        return sum("asyncsession" in one["lib-name"] for one in client.client_list())

    before = await asyncio.to_thread(cluster.each_master, ours)
    mine = await use()
    assert [now - then for now, then in zip(mine, before, strict=True)] == [1, 1, 1]

    def other_loop() -> None:
        async def there() -> None:
            theirs.extend(await use())
            await manager.aclose()

        asyncio.run(there())

    theirs: list[int] = []
    thread = threading.Thread(target=other_loop)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert [now - then for now, then in zip(theirs, before, strict=True)] == [2, 2, 2]
    await manager.aclose()


def test_loops_that_ended_are_let_go(cluster: Cluster) -> None:
    manager = SessionManager(cluster.url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # asyncio's, of loops nobody cleaned up
        for _ in range(3):
            asyncio.run(manager.load("abc." + "x" * 32))
        assert len(manager._transport._clusters) == 1  # type: ignore[attr-defined]
        asyncio.run(manager.aclose())
        manager._transport._clusters.clear()  # type: ignore[attr-defined]
        gc.collect()


@pytest.mark.skipif(
    not hasattr(os, "fork") or sys.version_info >= (3, 12), reason="fork in a thread"
)
def test_a_forked_child_opens_its_own_connections(cluster: Cluster) -> None:
    with SyncSessionManager(cluster.url) as manager:
        with manager.session() as session:
            session["a"] = 1

        def ports() -> set[str]:
            found = cluster.each_master(lambda client: client.client_list())
            return {one["addr"] for node in found for one in node if one["lib-name"]}

        before = ports()
        if not (child := os.fork()):
            guard = manager._transport._guard  # type: ignore[attr-defined]
            same = dict(manager.load(session.id)) == {"a": 1}
            is_own = manager._transport._guard is not guard  # type: ignore[attr-defined]
            os._exit(0 if same and is_own else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert dict(manager.load(session.id)) == {"a": 1}
        assert before <= ports(), "the child has closed none of them"
        manager.destroy(session)
