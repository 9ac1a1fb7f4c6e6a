"""A master that Sentinels watch: how it is found, followed and left."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
import redis.asyncio
from support.backends import Backend
from support.cluster import wait_until
from support.sentinel import SERVICE, SentinelGroup
from support.servers import Server, available
from support.threads import InThreads
from test_cluster_clients import rights

from asyncsession import Session, SessionManager, StoreUnavailable, SyncSessionManager

STORES = ("sentinel", "sync-sentinel")


@pytest.fixture
def group(get_server: Callable[[str], Any]) -> SentinelGroup:
    found: SentinelGroup = get_server("sentinel")
    return found


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Server, Server, Server]]:
    """A master, its replica and a Sentinel that nobody asks to fail over; passwords for all."""
    config = {"requirepass": "server", "masterauth": "server", "repl_diskless_sync_delay": 0}
    flavour = available()[0]
    with (
        Server(flavour, **config) as master,  # type: ignore[arg-type]
        Server(flavour, **config) as replica,  # type: ignore[arg-type]
        Server(flavour, sentinel=True, requirepass="guard") as sentinel,
    ):
        yield master, replica, sentinel


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """Have a server neither answer nor refuse."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def follow(replica: Server, master: Server | None) -> None:
    """Make a server the replica of another, or a master."""
    where = ("127.0.0.1", master.port) if master is not None else ("NO", "ONE")
    replica.run("REPLICAOF", *where)
    if master is not None:
        wait_until(lambda: replica.run("ROLE")[3] == "connected", "a replica that is connected")


def name(sentinel: Server, master: Server) -> None:
    """Tell a Sentinel which server is the master."""
    if sentinel.run("SENTINEL", "MASTERS"):
        sentinel.run("SENTINEL", "REMOVE", SERVICE)
    sentinel.run("SENTINEL", "MONITOR", SERVICE, "127.0.0.1", master.port, 1)
    sentinel.run("SENTINEL", "SET", SERVICE, "auth-pass", "server")


def addresses(server: Server) -> set[str]:
    """Return the addresses of the library's connections to a server."""
    with server.admin() as client:
        return {one["addr"] for one in client.client_list() if "asyncsession" in one["lib-name"]}


async def new_session(manager: Any, **values: Any) -> Session:
    session: Session = await manager.load()
    session.update(values)
    await manager.save(session)
    return session


def made(kind: str, target: Any, **options: Any) -> Any:
    if kind == "sentinel":
        return SessionManager(target, **options)
    return InThreads(SyncSessionManager(target, **options))


def urls(sentinel: Server) -> str:
    address = f":server@127.0.0.1:{sentinel.port}/{SERVICE}"
    return f"redis+sentinel://{address}?sentinel_password=guard"


@pytest.mark.parametrize("kind", STORES)
async def test_a_demoted_master_is_left(kind: str, pair: tuple[Server, Server, Server]) -> None:
    """READONLY is definite, though redis-py's connections for Sentinel say it was broken."""
    master, replica, sentinel = pair
    await asyncio.to_thread(follow, replica, master)
    await asyncio.to_thread(name, sentinel, master)
    manager = made(kind, urls(sentinel), timeout=1.5)
    session = await new_session(manager, a=1)
    assert await asyncio.to_thread(addresses, master)
    await asyncio.to_thread(follow, replica, None)
    await asyncio.to_thread(follow, master, replica)  # Sentinel does not know it yet
    session["a"] = 2
    with pytest.raises(StoreUnavailable, match="READONLY"):
        await manager.save(session)
    wait_until(lambda: not addresses(master), "the demoted master is left alone")
    with pytest.raises(StoreUnavailable, match="is a replica"):
        await manager.load(session.id)  # what it holds may be out of date
    await asyncio.to_thread(name, sentinel, replica)
    await manager.save(session)
    assert (session.version, dict(await manager.load(session.id))) == (2, {"a": 2})
    await manager.aclose()
    await asyncio.to_thread(follow, master, None)


@pytest.mark.parametrize("kind", STORES)
async def test_wrong_passwords_are_named_at_once(
    kind: str, pair: tuple[Server, Server, Server]
) -> None:
    master, _, sentinel = pair
    await asyncio.to_thread(name, sentinel, master)
    right = urls(sentinel)
    for wrong, says in [
        (right.replace("guard", "SECRET"), r"no Sentinel names.*(WRONGPASS|invalid username)"),
        (right.replace(":server@", ":SECRET@"), r"WRONGPASS|invalid username"),
        (right.split("?")[0], r"no Sentinel names.*Authentication required"),
    ]:
        manager = made(kind, wrong)
        with pytest.raises(StoreUnavailable, match=says) as caught:
            await asyncio.wait_for(manager.load("abc." + "x" * 32), 3)
        assert "SECRET" not in str(caught.value)
        await manager.aclose()


@pytest.mark.parametrize("kind", STORES)
async def test_a_client_object_is_used_as_it_asks(
    kind: str, pair: tuple[Server, Server, Server]
) -> None:
    master, _, sentinel = pair
    await asyncio.to_thread(name, sentinel, master)
    package: Any = redis.asyncio if kind == "sentinel" else redis
    client = package.Sentinel(
        [("127.0.0.1", 1), ("127.0.0.1", sentinel.port)],
        sentinel_kwargs={"password": "guard"}, password="server", protocol=3,
        decode_responses=True,
    ).master_for(SERVICE, db=2)  # fmt: skip
    manager = made(kind, client)
    session = await new_session(manager, a=1)
    assert dict(await manager.load(session.id)) == {"a": 1}
    with master.admin() as plain:
        assert "db2" in plain.info("keyspace")
    await manager.aclose()


@pytest.mark.parametrize("kind", STORES)
async def test_the_rights_that_the_docs_name_are_enough(
    kind: str, pair: tuple[Server, Server, Server]
) -> None:
    master, _, sentinel = pair
    await asyncio.to_thread(name, sentinel, master)
    needed = [*rights("deploying.md", 0), *rights("topologies.md", 1)]
    master.run("ACL", "SETUSER", "app", "on", ">s", "resetkeys", "~session:*", "-@all", *needed)
    guard = rights("topologies.md", 2)
    sentinel.run("ACL", "SETUSER", "app", "on", ">s", "-@all", *guard)
    address = f"app:s@127.0.0.1:{sentinel.port}/{SERVICE}"
    manager = made(kind, f"redis+sentinel://{address}?sentinel_username=app&sentinel_password=s")
    session = await new_session(manager, a=1)
    await manager.rotate(session)
    await manager.destroy(session)
    await manager.aclose()


async def test_an_unknown_service_is_named(backend: Backend) -> None:
    manager = backend.manager(backend.url.replace(SERVICE, "other"), timeout=1)
    with pytest.raises(StoreUnavailable, match=r"'other' \(they do not know it"):
        await manager.load("abc." + "x" * 32)


async def test_sentinels_that_are_down_or_silent(backend: Backend, group: SentinelGroup) -> None:
    """The address of one that is gone, one that hangs, and two that answer."""
    url = backend.url.replace("127.0.0.1", "127.0.0.1:1,127.0.0.1", 1)
    with stopped(group.sentinels[0]):
        # One call is given less time than the silent one; the next asks another first.
        manager = backend.manager(url, timeout=1.6)
        session = await new_session(manager, a=1)
        assert dict(await manager.load(session.id)) == {"a": 1}
    await asyncio.to_thread(group.wait_ready)


async def test_a_start_while_all_sentinels_are_away(backend: Backend) -> None:
    manager = backend.manager(f"redis+sentinel://127.0.0.1:1,127.0.0.1:2/{SERVICE}", timeout=1)
    with pytest.raises(StoreUnavailable, match=r"no Sentinel names.*\(ConnectionError\)"):
        await manager.load("abc." + "x" * 32)


async def test_one_connection_for_all_tasks(group: SentinelGroup) -> None:
    async with SessionManager(group.url, prefix="one") as manager:
        master = await asyncio.to_thread(group.master)
        before = await asyncio.to_thread(addresses, master)
        session = await new_session(manager, a=1)
        await asyncio.gather(*(manager.load(session.id) for _ in range(30)))
        assert len(await asyncio.to_thread(addresses, master) - before) == 1
        await manager.destroy(session)
