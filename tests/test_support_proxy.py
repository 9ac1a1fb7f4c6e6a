"""The fault proxy: each fault does what it says, to exactly one request."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry
from support.processes import PATIENCE
from support.proxy import Decide, Fault, FaultProxy, is_script, seeded
from support.servers import Server, available

GetServer = Callable[[str], Server]
INCREMENT = "return redis.call('INCR', KEYS[1])"

COUNT = b"*2\r\n$4\r\nINCR\r\n$7\r\ncounter\r\n"


@pytest.fixture
def server(get_server: GetServer) -> Server:
    server = get_server(available()[0])
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    return server


def client_of(proxy: FaultProxy, timeout: float = PATIENCE) -> redis.asyncio.Redis:
    # One connection, no retries: each fault is seen.
    return redis.asyncio.Redis.from_url(
        proxy.url,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout,
        single_connection_client=True,
    )


async def increment(client: redis.asyncio.Redis) -> Any:
    return await client.eval(INCREMENT, 1, "counter")


def counter(server: Server) -> int:
    with redis.Redis.from_url(server.url) as client:
        return int(client.get("counter") or 0)


def first(fault: Fault) -> Decide:
    """The first script has the fault; all else passes."""
    fates = iter([fault])
    return lambda request: next(fates, Fault.PASS) if is_script(request) else Fault.PASS


@pytest.mark.parametrize(
    ("fault", "answer", "executed"),
    [
        (Fault.PASS, 1, 1),
        (Fault.DROP, redis.ConnectionError, 0),
        (Fault.CUT, redis.ConnectionError, 1),
        (Fault.SWALLOW, redis.TimeoutError, 1),
        (Fault.LOST, redis.TimeoutError, 0),
        (Fault.TWICE, 1, 2),
        (Fault.DELAY, 1, 1),
        (Fault.LATE, redis.ConnectionError, 1),
    ],
)
async def test_fault(
    server: Server, fault: Fault, answer: int | type[Exception], executed: int
) -> None:
    timeout = 0.5 if answer is redis.TimeoutError else PATIENCE
    async with FaultProxy(server.port, first(fault)) as proxy, client_of(proxy, timeout) as client:
        if isinstance(answer, int):
            assert await increment(client) == answer
        else:
            with pytest.raises(answer):
                await increment(client)
        await proxy.drained()
        assert counter(server) == executed
        # The next request has a new connection where it needs one.
        assert await increment(client) == executed + 1
        expected = Counter() if fault is Fault.PASS else Counter({fault: 1})
        assert proxy.faults == expected
        assert proxy.requests > 2
        assert proxy.bytes_up > 2 * len(INCREMENT)


async def test_late_deliveries_come_late(server: Server) -> None:
    delay = 0.2
    async with FaultProxy(server.port, first(Fault.LATE), delay=delay) as proxy:
        async with client_of(proxy) as client:
            started = time.monotonic()
            with pytest.raises(redis.ConnectionError):
                await increment(client)
        await proxy.drained()
        assert time.monotonic() - started >= delay
        assert counter(server) == 1


async def test_late_deliveries_log_in_and_select_first() -> None:
    with Server(available()[0], requirepass="secret") as server:
        async with FaultProxy(server.port, first(Fault.TWICE)) as proxy:
            client = redis.asyncio.Redis(port=proxy.port, db=3, password="secret", protocol=2)
            assert await increment(client) == 1
            await proxy.drained()
            assert await client.get("counter") == b"2"
            await client.aclose()


@pytest.mark.parametrize(
    ("fault", "received", "executed"),
    [
        # After a swallowed reply no other can arrive, and after a lost request none can be sent.
        (Fault.SWALLOW, b":1\r\n:2\r\n", 5),
        (Fault.LOST, b":1\r\n:2\r\n", 2),
        (Fault.CUT, b":1\r\n:2\r\n:3", 3),
        (Fault.DELAY, b":1\r\n:2\r\n:3\r\n:4\r\n:5\r\n", 5),
    ],
)
async def test_pipelined_requests_keep_their_order(
    server: Server, fault: Fault, received: bytes, executed: int
) -> None:
    fates = iter([Fault.PASS, Fault.PASS, fault])
    async with FaultProxy(server.port, lambda _: next(fates, Fault.PASS)) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(COUNT * 5)
        async with asyncio.timeout(PATIENCE):
            assert await reader.readexactly(len(received)) == received
            await proxy.drained()
        with pytest.raises((TimeoutError, ConnectionResetError)):
            async with asyncio.timeout(0.05):
                await reader.readexactly(1)
        assert counter(server) == executed
        writer.transport.abort()


async def test_requests_before_a_reset_are_executed(server: Server) -> None:
    fates = iter([Fault.PASS] * 500 + [Fault.DROP])
    async with FaultProxy(server.port, lambda _: next(fates)) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(COUNT * 600)
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(PATIENCE):
                await reader.read()
        await proxy.drained()
        assert counter(server) == 500
        assert proxy.requests == 501
        writer.transport.abort()


async def test_what_a_vanished_client_had_sent_is_executed(server: Server) -> None:
    async with FaultProxy(server.port, seeded(1, 0.0, [])) as proxy:
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(COUNT)
            writer.transport.abort()
        await proxy.drained()
        assert counter(server) == 20


async def test_what_was_forwarded_is_executed_after_its_client_vanished(server: Server) -> None:
    async with FaultProxy(server.port, seeded(1, 0.0, [])) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(COUNT * 20_000)
        await reader.readexactly(4)
        writer.transport.abort()
        await proxy.drained()
        assert counter(server) == proxy.requests > 1


async def test_big_messages_pass_whole(server: Server) -> None:
    value = os.urandom(3_000_000)
    async with FaultProxy(server.port, seeded(1, 0.0, [Fault.DROP])) as proxy:
        async with client_of(proxy) as client:
            await client.set("big", value)
            assert await client.mget("big", "big", "none") == [value, value, None]
        assert proxy.bytes_up > len(value)


async def test_counts_are_exact_under_all_faults_at_once(server: Server) -> None:
    faults = [fault for fault in Fault if fault is not Fault.PASS]
    decide = seeded(7, 0.5, faults)
    scripts = acknowledged = 0

    def counted(request: list[bytes]) -> Fault:
        nonlocal scripts
        scripts += is_script(request)
        return decide(request)

    async def work(proxy: FaultProxy) -> None:
        nonlocal acknowledged
        async with client_of(proxy, timeout=0.3) as client:
            for _ in range(20):
                try:
                    await increment(client)
                except (redis.ConnectionError, redis.TimeoutError):
                    continue
                acknowledged += 1

    async with FaultProxy(server.port, counted, delay=0.02) as proxy:
        await asyncio.gather(*(work(proxy) for _ in range(8)))
        await proxy.drained()
        executed = counter(server)
    assert set(proxy.faults) == set(faults)
    never = proxy.faults[Fault.DROP] + proxy.faults[Fault.LOST]
    assert executed == scripts - never + proxy.faults[Fault.TWICE]
    unanswered = never + sum(proxy.faults[f] for f in (Fault.CUT, Fault.SWALLOW, Fault.LATE))
    assert 0 < acknowledged <= scripts - unanswered


def test_seeded_repeats_and_spares_the_rest() -> None:
    script, other = [b"evalsha", b"0" * 40], [b"GET", b"key"]
    decide = seeded(3, 0.5, [Fault.CUT, Fault.LATE])
    first_run = [decide(script) for _ in range(100)]
    assert set(first_run) == {Fault.PASS, Fault.CUT, Fault.LATE}
    again = seeded(3, 0.5, [Fault.CUT, Fault.LATE])
    second_run = []
    for _ in range(100):
        assert again(other) is Fault.PASS
        second_run.append(again(script))
    assert first_run == second_run


async def test_a_server_that_is_down_closes_the_connection() -> None:
    with Server(available()[0]) as server:
        async with FaultProxy(server.port, seeded(1, 0.0, [])) as proxy, client_of(proxy) as client:
            assert await increment(client) == 1
            server.kill()
            for _ in range(2):
                with pytest.raises(redis.ConnectionError):
                    await increment(client)
            server.start()
            assert await increment(client) == 1


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def test_proxy_leaves_nothing_behind(server: Server) -> None:
    before = open_files()
    async with FaultProxy(server.port, first(Fault.LOST), delay=60) as proxy:
        client = client_of(proxy, timeout=60)
        stuck = asyncio.create_task(increment(client))
        async with asyncio.timeout(PATIENCE):
            while not proxy.faults:  # noqa: ASYNC110
                await asyncio.sleep(0)
    with pytest.raises(redis.ConnectionError):
        await stuck
    await client.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert open_files() == before


async def test_an_error_in_decide_is_raised(server: Server) -> None:
    fates: list[Fault] = []
    with pytest.RaisesGroup(pytest.RaisesGroup(IndexError)):
        async with FaultProxy(server.port, lambda _: fates.pop()) as proxy:
            with pytest.raises(redis.ConnectionError):
                await client_of(proxy).ping()
