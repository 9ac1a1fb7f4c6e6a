"""SyncSessionManager: threads, processes, greenlets, and what it shares with the async manager.

That its verbs do what they should, test_conformance.py says, on every store.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fakeredis
import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from support.backends import Backend, open_backend
from support.processes import run
from support.proxy import Fault, FaultProxy, seeded
from support.scenarios import POLICIES, faulted_commits, many_writers
from support.servers import Server, available, tls_flavour

from asyncsession import (
    ConfigurationError,
    Session,
    SessionConflict,
    SessionManager,
    StoreUnavailable,
    SyncSessionManager,
    merge,
)
from asyncsession.migration import Starsessions
from asyncsession.protocol import Together

THREADS = 32


@pytest.fixture(params=["sync-embedded", "sync-valkey9", "sync-redis8", "sync-redis-system"])
async def in_threads(
    request: pytest.FixtureRequest, get_server: Callable[[str], Server]
) -> AsyncIterator[Backend]:
    """Every real server, each call on a thread."""
    async with open_backend(request.param, get_server) as opened:
        yield opened


@pytest.fixture
def server(get_server: Callable[[str], Server]) -> Server:
    return get_server("valkey9")


def added(base: Any, ours: Any, theirs: Any) -> Any:
    return ours + theirs - base


def together(work: Callable[[int], object], threads: int = THREADS) -> None:
    """Run `work` on so many threads, which begin at once."""
    start = threading.Barrier(threads)

    def begin(number: int) -> None:
        start.wait()
        work(number)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(begin, range(threads)))


def number_in(manager: SyncSessionManager) -> str:
    with manager.session() as session:
        session["n"] = 0
    return session.id


async def test_32_threads_on_one_session(in_threads: Backend) -> None:
    managers = [in_threads.manager(merge=POLICIES, max_bytes=2**20)]
    assert await many_writers(managers, writers=32, commits=8) <= 1.05


async def test_threads_of_4_managers_on_one_session(in_threads: Backend) -> None:
    managers = [in_threads.manager(merge=POLICIES, max_bytes=2**20) for _ in range(4)]
    assert await many_writers(managers, writers=16, commits=10) <= 1.05


def test_threads_with_a_custom_merge_take_turns(server: Server) -> None:
    with SyncSessionManager(server.url, merge={"n": added}, timeout=10) as manager:
        session_id, attempts = number_in(manager), []

        def write(_: int) -> None:
            for _ in range(5):
                session = manager.load(session_id)
                session["n"] += 1
                attempts.append(manager.save(session).attempts)

        together(write)
        assert manager.load(session_id)["n"] == 5 * THREADS
        assert sum(attempts) / len(attempts) <= 1.05


def test_a_turn_that_never_ends_holds_nobody_up_for_ever(server: Server) -> None:
    with SyncSessionManager(server.url, merge={"n": added}, timeout=0.4) as manager:
        session = manager.load(number_in(manager))
        turn = manager._turns.take(session.handle, 1)
        session["n"] += 1
        manager.save(session)
        assert manager.load(session.id)["n"] == 1
        turn.end()


def test_updates_of_threads_are_serialisable(server: Server) -> None:
    with SyncSessionManager(server.url, timeout=10) as manager:
        session_id = number_in(manager)

        def change(session: Session) -> None:
            session["n"] += 1

        together(lambda _: manager.update(session_id, change))
        assert manager.load(session_id)["n"] == THREADS


def test_an_update_takes_no_coroutine_function(server: Server) -> None:
    async def change(session: Session) -> None:
        session["n"] = 1

    with SyncSessionManager(server.url) as manager:
        session_id = number_in(manager)
        with pytest.raises(ConfigurationError, match="plain function"):
            manager.update(session_id, change)  # type: ignore[arg-type]
        assert manager.load(session_id)["n"] == 0


async def test_both_managers_share_sessions(backend: Backend) -> None:
    policies = {"n": merge.counter}
    theirs = backend.manager(merge=policies)
    ours = SyncSessionManager(backend.url, prefix=backend.prefix, merge=policies)
    async with theirs.session() as session:
        session["n"], session.principal = 1, "user:1"
    mine = await asyncio.to_thread(ours.load, session.id)
    session["n"] += 10
    mine["n"] += 100
    await theirs.save(session)
    await asyncio.to_thread(ours.save, mine)
    assert (await theirs.load(session.id))["n"] == mine["n"] == 111
    assert await asyncio.to_thread(ours.destroy_all, "user:1") == 1
    assert (await theirs.load(session.id)).is_new
    await asyncio.to_thread(ours.close)


def test_it_has_the_verbs_and_options_of_the_async_manager() -> None:
    def verbs(manager: type) -> dict[str, list[str]]:
        public = {name: verb for name, verb in vars(manager).items() if not name.startswith("_")}
        return {name: list(inspect.signature(verb).parameters) for name, verb in public.items()}

    def options(manager: type) -> dict[str, Any]:
        parameters = inspect.signature(manager).parameters
        return {name: option.default for name, option in parameters.items()}

    theirs, ours = verbs(SessionManager), verbs(SyncSessionManager)
    theirs["close"] = theirs.pop("aclose")
    assert ours == theirs
    made, async_made = options(SyncSessionManager), options(SessionManager)
    assert (made.pop("connections"), async_made.pop("lanes")) == (32, 1)
    assert made == async_made


@pytest.mark.parametrize("connections", [0, 1025, 1.5, True, "2"])
def test_a_number_of_connections_that_cannot_be_meant(connections: Any) -> None:
    with pytest.raises(ConfigurationError, match="connections"):
        SyncSessionManager(connections=connections)


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "http://x", "redis", "redis://h:port", "redis://h/0?socket_timeout=x", 7,
     None, AsyncRedis(), fakeredis.FakeAsyncRedis()],
)  # fmt: skip
def test_stores_that_cannot_work(url: object) -> None:
    with pytest.raises(ConfigurationError):
        SyncSessionManager(url)


@pytest.mark.parametrize("client", [Redis(), fakeredis.FakeRedis()])
def test_the_async_manager_takes_no_blocking_client(client: object) -> None:
    with pytest.raises(ConfigurationError, match=r"redis\.asyncio"):
        SessionManager(client)


def test_options_are_checked_as_for_the_async_manager() -> None:
    for options in ({"prefix": ""}, {"timeout": 60}, {"merge": {"a": "counter"}}):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            SyncSessionManager("memory://", **options)
    with pytest.raises(ConfigurationError, match="principal"):
        SyncSessionManager("memory://").destroy_all("")


def test_unix_and_tls() -> None:
    flavour = tls_flavour()
    if flavour is None:
        pytest.skip("no server here was built with TLS")
    with Server(flavour, tls=True) as store:
        for url in (store.unix_url, f"{store.rediss_url}?ssl_ca_certs={store.ca_file}"):
            with SyncSessionManager(url) as manager:
                session_id = number_in(manager)
                assert dict(manager.load(session_id)) == {"n": 0}
        untrusted = SyncSessionManager(store.rediss_url)
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
            number_in(untrusted)


@pytest.mark.parametrize("flavour", [f for f in ("valkey9", "redis8") if f in available()])
def test_a_client_object_is_used_as_it_connects(flavour: str) -> None:
    with (
        Server(flavour, requirepass="x") as store,
        Redis(port=store.port, password="x", db=3, decode_responses=True, protocol=3) as client,
        SyncSessionManager(client) as manager,
    ):
        session_id = number_in(manager)
        assert dict(manager.load(session_id)) == {"n": 0}
        assert client.dbsize() == 1


def test_a_fake_client_object() -> None:
    with fakeredis.FakeRedis() as client, SyncSessionManager(client) as manager:
        session_id = number_in(manager)
    assert len(client.keys()) == 1
    assert dict(manager.load(session_id)) == {"n": 0}


async def test_another_librarys_session_is_taken_over(valkey: Backend) -> None:
    peer_id = "0123456789abcdef" * 2
    await valkey.redis.set(f"{valkey.prefix}:theirs:{peer_id}", b'{"cart": ["a"]}')
    ours = SyncSessionManager(valkey.url, prefix=valkey.prefix)
    client = Redis.from_url(valkey.url)
    sources = [Starsessions(url, prefix=f"{valkey.prefix}:theirs:") for url in (valkey.url, client)]
    for source in sources:
        taken = await asyncio.to_thread(ours.load_through, source, peer_id)
        assert dict(taken) == {"cart": ["a"]}
        assert repr(source) == "<Starsessions on redis>"
        await asyncio.to_thread(source.close)
    async with valkey.manager() as manager:
        assert (await manager.load_through(sources[0], peer_id)).id == taken.id
        with pytest.raises(ConfigurationError, match=r"redis\.asyncio"):
            await manager.load_through(sources[1], peer_id)
    await sources[0].aclose()
    await asyncio.to_thread(ours.close)
    await asyncio.to_thread(client.close)


def test_of_machines_together_one_that_fails_stops_no_other() -> None:
    done = []

    def part(number: int) -> Any:
        done.append(number)
        if number < 2:
            raise SessionConflict(f"number {number}")
        return number
        yield

    def group() -> Any:
        return (yield Together(tuple(map(part, range(4)))))

    with pytest.raises(SessionConflict, match="number 0"):
        SyncSessionManager("memory://")._drive(group())
    assert done == [0, 1, 2, 3]


async def test_commits_over_a_faulty_network(get_server: Callable[[str], Server]) -> None:
    losses = (Fault.DROP, Fault.CUT, Fault.SWALLOW, Fault.LOST, Fault.LATE, Fault.TWICE)
    async with open_backend("sync-valkey9", get_server) as backend:
        assert backend.port
        async with FaultProxy(backend.port, seeded(7, 0.10, losses)) as proxy:
            tally = await faulted_commits(backend, proxy, writers=16, commits=25, timeout=2)
        assert tally.total == 400
        assert len(tally.acknowledged) > 0.98 * tally.total
        assert sum(proxy.faults.values()) > 40


def test_no_event_loop_and_no_thread_of_its_own(server: Server) -> None:
    """None runs, and none can be made."""
    script = f"""
import asyncio, threading
from asyncsession import SyncSessionManager

def refuse(*args): raise AssertionError("made")
asyncio.SelectorEventLoop.__init__ = asyncio.new_event_loop = threading.Thread.start = refuse
with SyncSessionManager({server.url!r}) as manager:
    with manager.session() as session:
        session["n"], session.principal = 1, "user:1"
    manager.rotate(session)
    manager.update(session.id, lambda s: s.update(n=s["n"] + 1))
    assert manager.load(session.id)["n"] == 2
    assert manager.destroy_all("user:1") == 1
print(threading.active_count())
"""
    process = run(script)
    assert process.communicate()[0] == "1\n"
