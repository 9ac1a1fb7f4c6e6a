"""The connections of SyncSessionManager: nobody gets another's answer, whatever is cut short."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
from redis import Connection, Redis
from support.backends import Backend
from support.processes import eventually
from support.proxy import Decide, Fault, FaultProxy, is_script
from support.servers import Server

from asyncsession import CommitOutcomeUnknown, StoreUnavailable, SyncSessionManager, merge
from asyncsession.handles import LOOK
from asyncsession.protocol import Call, Lost, Refused

LOOKING = Call("load", ("k",), LOOK, 0.2)


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of the test's own, which it may stop."""
    with Server("valkey9", appendonly="yes", appendfsync="always") as started:
        yield started


def owned(manager: SyncSessionManager, count: int) -> list[str]:
    """Return the ids of sessions that know their number."""
    ids = []
    for number in range(count):
        with manager.session() as session:
            session["owner"] = number
        ids.append(session.id)
    return ids


def once(*faults: Fault) -> Decide:
    left = iter(faults)
    return lambda request: next(left, Fault.PASS) if is_script(request) else Fault.PASS


def clients(server: Server) -> int:
    with Redis.from_url(server.url) as redis:
        return len(redis.client_list()) - 1


@contextmanager
def deaf(server: Server) -> Iterator[None]:
    """Have the server answer nobody."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_connections_are_opened_when_they_are_needed(server: Server) -> None:
    with SyncSessionManager(server.url, connections=4) as manager:
        ids = owned(manager, 16)
        assert clients(server) == 1
        start = threading.Barrier(16)

        def ask(number: int) -> None:
            start.wait()
            for _ in range(20):
                assert manager.load(ids[number])["owner"] == number
            done.append(number)

        done: list[int] = []
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(done) == 16
        assert 1 < clients(server) <= 4
    assert clients(server) == 0
    assert manager.load(ids[3])["owner"] == 3, "a closed manager may be used again"
    manager.close()


def test_the_bound_of_a_connection_is_set_when_it_changes(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds: list[float] = []
    update = Connection.update_current_socket_timeout

    def noted(connection: Connection, seconds: float) -> None:
        bounds.append(seconds)
        update(connection, seconds)

    monkeypatch.setattr(Connection, "update_current_socket_timeout", noted)
    with SyncSessionManager(server.url, timeout=8) as manager:
        (session_id,) = owned(manager, 1)
        for _ in range(20):
            manager.load(session_id)
        assert bounds == [2.0]
        transport = manager._transport
        with deaf(server), pytest.raises(Lost):
            transport.call(LOOKING)
        assert bounds[-1] == LOOKING.timeout


def test_whoever_finds_no_free_connection_in_time_is_refused(server: Server) -> None:
    with SyncSessionManager(server.url, connections=1, timeout=10) as manager:
        (session_id,) = owned(manager, 1)
        with deaf(server):
            slow = threading.Thread(target=manager.load, args=(session_id,))
            slow.start()
            eventually(manager._transport._pool._idle.empty)  # type: ignore[attr-defined]
            with pytest.raises(Refused, match=r"all connections are in use \(1\)"):
                manager._transport.call(LOOKING)
        slow.join()
        assert manager.load(session_id)["owner"] == 0


def test_whoever_waits_goes_on_when_a_connection_was_given_up(server: Server) -> None:
    with SyncSessionManager(server.url, connections=1) as manager:
        owned(manager, 1)
        call, pool = manager._transport.call, manager._transport._pool  # type: ignore[attr-defined]
        replies: list[list[object]] = []

        def lose() -> None:
            with pytest.raises(Lost):
                call(LOOKING)

        with deaf(server):
            first = threading.Thread(target=lose)
            first.start()
            eventually(pool._idle.empty)
            patient = LOOKING._replace(timeout=5)
            second = threading.Thread(target=lambda: replies.append(call(patient)))
            second.start()
            first.join()
            begun = time.monotonic()
        second.join()
        assert len(replies) == 1
        assert time.monotonic() - begun < 2


def test_closing_waits_for_nobody_and_leaves_nothing_open(server: Server) -> None:
    with SyncSessionManager(server.url, timeout=10) as manager:
        (session_id,) = owned(manager, 1)
        found: list[int] = []
        pool = manager._transport._pool  # type: ignore[attr-defined]
        slow = threading.Thread(target=lambda: found.append(manager.load(session_id)["owner"]))
        with deaf(server):
            slow.start()
            eventually(pool._idle.empty)
            manager.close()
            assert not found
        slow.join()
        assert found == [0]
        assert clients(server) == 0


def test_an_idle_connection_that_the_server_closed_is_not_used(server: Server) -> None:
    with SyncSessionManager(server.url) as manager, Redis.from_url(server.url) as redis:
        owned(manager, 1)
        for _ in range(3):
            redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert len(manager._transport.call(LOOKING)) == 3, "neither lost nor refused"


def test_a_server_that_lets_nobody_in_is_waited_for_as_long_as_for_a_reply(server: Server) -> None:
    with SyncSessionManager(server.url) as manager, deaf(server):
        begun = time.monotonic()
        with pytest.raises(Refused):
            manager._transport.call(LOOKING)
        assert LOOKING.timeout <= time.monotonic() - begun < 1


def test_a_server_that_forgot_the_scripts(server: Server) -> None:
    with SyncSessionManager(server.url) as manager, Redis.from_url(server.url) as redis:
        (session_id,) = owned(manager, 1)
        redis.script_flush()
        assert manager.load(session_id)["owner"] == 0


def test_a_replica_is_not_asked_again_over_the_same_connection(server: Server) -> None:
    with SyncSessionManager(server.url) as manager, Redis.from_url(server.url) as redis:
        owned(manager, 1)
        redis.replicaof("127.0.0.1", "1")
        before = clients(server)
        destroy = Call("destroy", ("k",), (b"aS\x01D" + b"i" * 8, 1000), 1.0)
        with pytest.raises(Refused) as caught:
            manager._transport.call(destroy)
        assert caught.value.passing
        assert clients(server) == before - 1


def test_a_server_that_is_down_and_comes_back(server: Server) -> None:
    with SyncSessionManager(server.url, timeout=0.5) as manager:
        (session_id,) = owned(manager, 1)
        session = manager.load(session_id)
        server.kill()
        session["a"] = 2
        with pytest.raises(StoreUnavailable):
            manager.save(session)
        with pytest.raises(StoreUnavailable):
            manager.load(session_id)
        assert manager.load().is_new, "anonymous requests do not need the store"
        server.restart()
        manager.save(session)
        assert dict(manager.load(session_id)) == {"owner": 0, "a": 2}


def test_a_restart_within_the_deadline_is_not_noticed(server: Server) -> None:
    with SyncSessionManager(server.url, merge={"n": merge.counter}, timeout=10) as manager:
        with manager.session() as session:
            session["n"] = 0
        stopped, counts = threading.Event(), []

        def write() -> None:
            done = 0
            while not stopped.is_set() or not done:
                with manager.session(session.id) as mine:
                    mine["n"] += 1
                done += 1
            counts.append(done)

        writers = [threading.Thread(target=write) for _ in range(4)]
        for writer in writers:
            writer.start()
        for _ in range(2):
            server.kill()
            server.restart()
        stopped.set()
        for writer in writers:
            writer.join()
        assert len(counts) == 4
        assert manager.load(session.id)["n"] == sum(counts)


async def test_a_lost_reply_is_one_commit(valkey: Backend) -> None:
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        manager = SyncSessionManager(
            proxy.url, prefix=valkey.prefix, merge={"n": merge.counter}, timeout=1
        )
        session = manager.load()
        session["n"] = 1
        await asyncio.to_thread(manager.save, session)
        proxy.decide = once(Fault.CUT, Fault.SWALLOW, Fault.CUT)
        session["n"] += 1
        commit = await asyncio.to_thread(manager.save, session)
        assert commit.attempts == 1, "lost replies are not attempts: the script answered once"
        proxy.decide = once(*[Fault.SWALLOW] * 20)
        session["n"] += 1
        with pytest.raises(CommitOutcomeUnknown):
            await asyncio.to_thread(manager.save, session)
        proxy.decide = lambda _: Fault.PASS
        await asyncio.to_thread(manager.save, session)
        await asyncio.to_thread(manager.close)
    again = await valkey.manager().load(session.id)
    assert (again["n"], again.version) == (3, 3)


async def test_a_reply_that_came_too_late_is_nobody_elses(valkey: Backend) -> None:
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS, delay=0.4) as proxy:
        manager = SyncSessionManager(proxy.url, prefix=valkey.prefix, connections=1)
        ids = await asyncio.to_thread(owned, manager, 2)
        proxy.decide = once(Fault.DELAY)
        begun = time.monotonic()
        with pytest.raises(Lost):
            await asyncio.to_thread(manager._transport.call, LOOKING)
        assert LOOKING.timeout <= time.monotonic() - begun < 0.4
        await proxy.drained()
        for number, session_id in enumerate(ids):
            assert (await asyncio.to_thread(manager.load, session_id))["owner"] == number
        await asyncio.to_thread(manager.close)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_a_signal_in_the_middle_of_a_call(
    server: Server, interruption: type[BaseException]
) -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise interruption

    with SyncSessionManager(server.url, connections=1, timeout=10) as manager:
        ids = owned(manager, 2)
        session = manager.load(ids[0])
        session["n"] = 1
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            with deaf(server):
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                with pytest.raises(interruption):
                    manager.save(session)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert manager.load(ids[1])["owner"] == 1
        manager.save(session)
        again = manager.load(ids[0])
        assert (dict(again), again.version) == ({"owner": 0, "n": 1}, 2)
