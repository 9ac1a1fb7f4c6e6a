"""Stores that are away, refuse, or have changed: definite and unknown are never mixed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator

import pytest
from redis.asyncio import Redis
from support.backends import Backend
from support.servers import Server, available, tls_flavour

from asyncsession import ConfigurationError, SessionManager, StoreUnavailable, merge
from asyncsession.ids import store_key


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Callable[..., Server]]:
    """Start servers of the test's own."""
    started: list[Server] = []

    def start(flavour: str = "valkey9", **options: object) -> Server:
        server = Server(flavour, **options)  # type: ignore[arg-type]
        started.append(server)
        return server.start()

    yield start
    for one in started:
        one.close()


async def saved(manager: SessionManager) -> tuple[SessionManager, str]:
    session = await manager.load()
    session["a"] = 1
    await manager.save(session)
    return manager, session.id


async def test_a_store_that_is_down_and_comes_back(server: Callable[..., Server]) -> None:
    store = await asyncio.to_thread(server, appendonly="yes", appendfsync="always")
    async with SessionManager(store.url, timeout=0.5) as manager:
        _, session_id = await saved(manager)
        session = await manager.load(session_id)
        await asyncio.to_thread(store.kill)
        session["a"] = 2
        with pytest.raises(StoreUnavailable):
            await manager.save(session)
        with pytest.raises(StoreUnavailable):
            await manager.load(session_id)
        assert (await manager.load()).is_new, "anonymous requests do not need the store"
        await asyncio.to_thread(store.restart)
        await manager.save(session)
        assert dict(await manager.load(session_id)) == {"a": 2}


async def test_a_restart_within_the_deadline_is_not_noticed(server: Callable[..., Server]) -> None:
    store = await asyncio.to_thread(server, appendonly="yes", appendfsync="always")
    async with SessionManager(store.url, merge={"n": merge.counter}, timeout=10) as manager:
        session = await manager.load()
        session["n"] = 0
        await manager.save(session)

        async def writer() -> int:
            done = 0
            while not stopped.is_set() or done == 0:
                async with manager.session(session.id) as mine:
                    mine["n"] += 1
                done += 1
            return done

        stopped = asyncio.Event()
        writers = [asyncio.create_task(writer()) for _ in range(4)]
        for _ in range(2):
            await asyncio.to_thread(store.kill)
            await asyncio.to_thread(store.restart)
        stopped.set()
        counts = await asyncio.gather(*writers)
        assert (await manager.load(session.id))["n"] == sum(counts)


@pytest.mark.parametrize(
    ("code", "prepare"),
    [
        ("OOM", lambda r, _: r.config_set("maxmemory", "1mb")),
        ("READONLY", lambda r, _: r.replicaof("127.0.0.1", "1")),
        ("NOREPLICAS", lambda r, _: r.config_set("min-replicas-to-write", "1")),
        ("WRONGTYPE", lambda r, key: r.execute_command("SADD", key, "x")),
    ],
    ids=["OOM", "READONLY", "NOREPLICAS", "WRONGTYPE"],
)
async def test_refusals_are_definite_and_named(
    server: Callable[..., Server], code: str, prepare: Callable[[Redis, str], object]
) -> None:
    store = await asyncio.to_thread(server)
    async with (
        Redis.from_url(store.url) as redis,
        SessionManager(store.url, timeout=1.6) as manager,
    ):
        session = await manager.load()
        session["a"] = 1
        key = store_key("session", session.handle)
        await manager.load("abc." + "x" * 32)  # the clock is known, the script is loaded
        await prepare(redis, key)  # type: ignore[misc]
        with pytest.raises(StoreUnavailable, match=rf"{code}"):
            await manager.save(session)
        assert code == "WRONGTYPE" or not await redis.exists(key)


async def test_readonly_passes_with_the_failover_aspnet_redis_providers_130(
    server: Callable[..., Server],
) -> None:
    store = await asyncio.to_thread(server)
    async with Redis.from_url(store.url) as redis, SessionManager(store.url) as manager:
        session = await manager.load()
        session["a"] = 1
        await manager.save(session)
        await redis.replicaof("127.0.0.1", "1")
        session["a"] = 2
        save = asyncio.create_task(manager.save(session))
        while not (await redis.info("commandstats")).get("cmdstat_set", {}).get("rejected_calls"):
            assert not save.done()
        await redis.replicaof("no", "one")
        await save
        assert (await manager.load(session.id))["a"] == 2


async def test_a_server_without_memory_still_reads(server: Callable[..., Server]) -> None:
    store = await asyncio.to_thread(server)
    async with (
        Redis.from_url(store.url) as redis,
        SessionManager(store.url, idle_timeout=5, absolute_timeout=5) as manager,
    ):
        session = await manager.load()
        session["a"] = 1
        await manager.save(session)
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.config_set("maxmemory", "1")
        seen = session.last_seen
        await asyncio.sleep(0.6)  # a tenth of the idle timeout: the next load would note it
        again = await manager.load(session.id)
        assert (dict(again), again.last_seen) == ({"a": 1}, seen)
        await manager.touch(again)


async def test_wrong_password_and_missing_rights(server: Callable[..., Server]) -> None:
    store = await asyncio.to_thread(server, requirepass="right")
    wrong = store.url.replace("right", "wrong")
    async with SessionManager(wrong) as manager:
        session = await manager.load()
        session["a"] = 1
        with pytest.raises(StoreUnavailable, match=r"WRONGPASS|invalid username-password"):
            await asyncio.wait_for(manager.save(session), 2)
    async with Redis.from_url(store.url) as redis:
        await redis.acl_setuser("reader", enabled=True, passwords=["+p"], categories=["+@all"],
                                commands=["-set"], keys=["*"])  # fmt: skip
    async with SessionManager(f"redis://reader:p@127.0.0.1:{store.port}/0") as manager:
        session["a"] = 1
        with pytest.raises(StoreUnavailable, match=r"(?i)no permissions|can't run this command"):
            await manager.save(session)
    async with SessionManager(store.url) as manager:
        await saved(manager)


async def test_unix_and_tls(server: Callable[..., Server]) -> None:
    flavour = tls_flavour()
    if flavour is None:
        pytest.skip("no server here was built with TLS")
    store = await asyncio.to_thread(server, flavour, tls=True)
    for url in (store.unix_url, f"{store.rediss_url}?ssl_ca_certs={store.ca_file}"):
        async with SessionManager(url) as manager:
            _, session_id = await saved(manager)
            assert dict(await manager.load(session_id)) == {"a": 1}
    async with SessionManager(store.rediss_url) as manager:
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
            await asyncio.wait_for(saved(manager), 2)


@pytest.mark.parametrize("flavour", [f for f in ("valkey9", "redis8") if f in available()])
async def test_a_client_object_is_used_as_it_connects(
    server: Callable[..., Server], flavour: str
) -> None:
    store = await asyncio.to_thread(server, flavour, requirepass="x")
    client = Redis(port=store.port, password="x", db=3, decode_responses=True, protocol=3)
    async with client, SessionManager(client) as manager:
        _, session_id = await saved(manager)
        assert dict(await manager.load(session_id)) == {"a": 1}
        assert await client.dbsize() == 1


def test_one_manager_serves_several_event_loops(valkey_url: str) -> None:
    manager = SessionManager(valkey_url)

    async def one() -> str:
        async with manager:
            return (await saved(manager))[1]

    async def two(session_id: str) -> None:
        async with manager:
            assert dict(await manager.load(session_id)) == {"a": 1}

    asyncio.run(two(asyncio.run(one())))


@pytest.fixture
def valkey_url(get_server: Callable[[str], Server]) -> str:
    return get_server("valkey9").url


@pytest.mark.skipif(
    not hasattr(os, "fork") or sys.version_info >= (3, 12), reason="fork in a thread"
)
def test_a_forked_child_opens_its_own_connections(valkey_url: str) -> None:
    async def parent(manager: SessionManager) -> int:
        async with manager:
            _, session_id = await saved(manager)
            if not (child := os.fork()):
                asyncio.set_event_loop(None)
                asyncio._set_running_loop(None)
                session = asyncio.run(manager.load(session_id))
                os._exit(0 if dict(session) == {"a": 1} else 1)
            assert dict(await manager.load(session_id)) == {"a": 1}
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])  # noqa: ASYNC222  it exits

    assert asyncio.run(parent(SessionManager(valkey_url))) == 0


async def test_a_closed_manager_may_be_opened_again(backend: Backend) -> None:
    """A lifespan that closes the manager runs once for each test client of an application."""
    manager = backend.manager()
    for _ in range(2):
        async with manager:
            await saved(manager)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "http://x",
        "redis",
        "redis://h:port",
        "redis://h/0?socket_timeout=x",
        7,
        None,
    ],
)
def test_urls_that_cannot_work(url: object) -> None:
    with pytest.raises(ConfigurationError):
        SessionManager(url)


@pytest.mark.parametrize(
    "options",
    [
        {"prefix": ""}, {"prefix": "a{b"}, {"idle_timeout": 0}, {"idle_timeout": "1d"},
        {"absolute_timeout": -1}, {"absolute_timeout": None}, {"max_bytes": 10}, {"timeout": 60},
        {"merge": {"a": "counter"}}, {"default_merge": None},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_cannot_work(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        SessionManager("memory://", **options)  # type: ignore[arg-type]


def test_trio_is_refused_clearly() -> None:
    trio = pytest.importorskip("trio")
    with pytest.raises(ConfigurationError, match="asyncio"):
        trio.run(saved, SessionManager("redis://127.0.0.1:1"))
