"""A plain URL that leads to a node of a Cluster: refused, with the URL that is wanted instead."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis.asyncio
from redis import Redis
from redis.exceptions import ResponseError
from support.processes import eventually
from support.refusals import both, saved
from support.servers import Server

from asyncsession import StoreUnavailable
from asyncsession.ids import store_key


class Nodes:
    """Two nodes of a Cluster; the second one has all slots."""

    def __init__(self) -> None:
        self.first, self.second = (
            Server("valkey9", cluster_enabled="yes", cluster_require_full_coverage="no")
            for _ in range(2)
        )

    def close(self) -> None:
        self.first.close()
        self.second.close()


def is_moved(node: Redis) -> bool:
    """Tell whether a node of a Cluster has learnt who has the slots."""
    try:
        node.get("x")
    except ResponseError as error:
        return getattr(error, "status_code", "") == "MOVED"
    return False


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    try:
        nodes.first.start()
        nodes.second.start()
        with Redis.from_url(nodes.second.url) as second:
            second.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            first = nodes.first
            second.execute_command("CLUSTER", "MEET", "127.0.0.1", first.port, first.cluster_port)
        with Redis.from_url(first.url) as client:
            eventually(lambda: is_moved(client))
        yield nodes
    finally:
        nodes.close()


CURE = r"redis\+cluster://"


async def test_a_plain_url_of_a_cluster_that_is_down_clusterdown() -> None:
    alone = Server("valkey9", cluster_enabled="yes")
    try:
        await asyncio.to_thread(alone.start)
        async with both(alone.url, patience=0.4) as pair:
            await pair.is_unreachable(f": CLUSTERDOWN: .*{CURE}")
    finally:
        await asyncio.to_thread(alone.close)


async def test_a_plain_url_of_a_cluster_moved_ask_tryagain(nodes: Nodes) -> None:
    first = redis.asyncio.Redis.from_url(nodes.first.url)
    second = redis.asyncio.Redis.from_url(nodes.second.url)
    async with (
        first,
        second,
        both(nodes.second.url, patience=0.6) as owner,
        both(nodes.first.url) as other,
    ):
        await other.is_unreachable(f": MOVED: .*{CURE}")
        assert await second.dbsize() == 0

        target = (await first.execute_command("CLUSTER", "MYID")).decode()  # type: ignore[no-untyped-call]

        async def check(manager: Any) -> None:
            session = await saved(manager)
            key = store_key(manager._settings.prefix, session.handle)
            before = await second.get(key)
            slot = await second.execute_command("CLUSTER", "KEYSLOT", key)  # type: ignore[no-untyped-call]
            await second.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target)  # type: ignore[no-untyped-call]
            with pytest.raises(StoreUnavailable, match=f": ASK: .*{CURE}"):
                await manager.load(session.id[:3] + "." + "x" * 32)  # a key that is not there
            session["a"] = 2
            with pytest.raises(StoreUnavailable, match=f": TRYAGAIN: .*{CURE}"):
                await manager.rotate(session)
            assert await second.get(key) == before
            await second.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")  # type: ignore[no-untyped-call]
            await manager.rotate(session)
            assert (await manager.load(session.id))["a"] == 2

        await owner.each(check)
