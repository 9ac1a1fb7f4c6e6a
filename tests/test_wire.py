"""What goes over the wire: one round trip each, and bytes that grow with the change."""

from __future__ import annotations

from collections import Counter

import pytest
from support.backends import Backend
from support.mutants import rewrite
from support.proxy import Fault, FaultProxy, is_script

from asyncsession import merge
from asyncsession.blob import HEADER_BYTES


@pytest.mark.parametrize("room", [100, 2**16])
async def test_a_small_change_of_a_large_session_sends_little(valkey: Backend, room: int) -> None:
    """Also where the session all but fills what it may take."""
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        limit = 64 * 1019 + room
        manager = valkey.manager(proxy.url, merge={"n": merge.counter}, max_bytes=limit)
        session = await manager.load()
        for number in range(64):
            session[f"key{number}"] = "x" * 1000
        session["n"] = 0
        await manager.save(session)
        for turn in range(30):
            mine = await manager.load(session.id)
            before = proxy.bytes_up
            mine["n"] = turn
            await manager.save(mine)
            assert proxy.bytes_up - before < 1024


async def test_round_trips(valkey: Backend) -> None:
    assert valkey.port
    calls: Counter[str] = Counter()

    def count(request: list[bytes]) -> Fault:
        if is_script(request):
            calls[request[0].decode()] += 1
        return Fault.PASS

    async with FaultProxy(valkey.port, count) as proxy:
        manager = valkey.manager(proxy.url)
        async with manager.session() as first:  # the server gets to know the scripts
            first["a"] = 1
        await manager.destroy(await manager.load(first.id))
        calls.clear()
        session = await manager.load()
        assert not calls
        session["a"] = 1
        await manager.save(session)
        calls.clear()
        one, two = await manager.load(session.id), await manager.load(session.id)
        assert calls.total() == 2
        one["b"], two["c"] = 1, 1
        await manager.save(one)
        await manager.save(two)  # somebody else has committed in between
        assert calls.total() == 4
        await manager.rotate(two)
        assert calls.total() == 5
        await manager.destroy(two)
        assert calls.total() == 6


async def test_scripts_are_sent_once(valkey: Backend) -> None:
    assert valkey.port
    calls: Counter[bytes] = Counter()

    def count(request: list[bytes]) -> Fault:
        calls[request[0]] += 1
        return Fault.PASS

    async with FaultProxy(valkey.port, count) as proxy:
        manager = valkey.manager(proxy.url)
        for _ in range(2):
            await valkey.redis.script_flush()
            calls.clear()
            session = await manager.load()
            for turn in range(5):
                session["n"] = turn
                await manager.save(session)
                await manager.load(session.id)
            assert calls[b"EVAL"] == 2, "commit and load, once each after the flush"


@pytest.mark.parametrize("count", [10, 1000])
async def test_stored_bytes_stay_near_the_content(valkey: Backend, count: int) -> None:
    manager = valkey.manager(merge={"n": merge.counter})
    session = await manager.load()
    session.update({"n": 0, "text": "x" * count})
    for _ in range(100):
        session["n"] += 1
        await manager.save(session)
    (key,) = await valkey.keys()
    log = (await manager.load(session.id)).log
    assert log is not None
    assert log.length < 2 * count + 3000
    ids = 22 * 101  # those of the last half minute are remembered
    assert await valkey.redis.strlen(key) < log.length + ids + HEADER_BYTES


async def test_folded_ids_are_forgotten_after_the_horizon(
    valkey: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = valkey.manager(merge={"n": merge.counter})
    session = await manager.load()
    session["n"] = 0
    for horizon, limit in ((30_000, 22 * 200), (0, 34 * 80)):
        if not horizon:
            rewrite(monkeypatch, "commit", "local HORIZON = 30000", "local HORIZON = 0")
        for _ in range(100):
            session["n"] += 1
            await manager.save(session)
        (key,) = await valkey.keys()
        stored = await valkey.redis.strlen(key)
        assert (stored > limit // 2) if horizon else (stored < limit), (horizon, stored)
