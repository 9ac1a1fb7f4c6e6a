"""Sentinels that do not name the same master: whom to believe, and when to believe nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis.asyncio
import redis.exceptions
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import TimeoutError as Silence
from support.cluster import wait_until
from support.sentinel import SERVICE, SentinelGroup
from support.servers import Server, available
from test_sentinel import STORES, addresses, made, new_session, stopped

from asyncsession import StoreUnavailable
from asyncsession.protocol import Refused
from asyncsession.transport.sentinel_views import Answer, View, believed

OLD, NEW = ("127.0.0.1", 1), ("127.0.0.1", 2)


def view(epoch: int, address: tuple[str, int], **more: Any) -> View:
    return View(epoch, address, **{"others": 2, "is_down": False, "is_replaced": False} | more)


@pytest.mark.parametrize(
    ("answers", "named"),
    [
        ([view(1, OLD), view(2, NEW), view(2, NEW)], NEW),
        ([view(1, OLD), view(1, OLD), view(2, NEW)], NEW),
        ([view(2, NEW), view(1, OLD)], NEW),
        ([view(1, OLD, is_replaced=True), view(2, NEW)], NEW),
        ([view(2, NEW, is_down=True), view(2, NEW), view(1, OLD)], NEW),
        ([None, Silence("no"), view(1, OLD)], OLD),
        ([view(9, NEW, others=0), view(1, OLD)], OLD),
        # Each was told of the same master in its own way.
        ([view(0, OLD), view(0, NEW), view(0, NEW)], NEW),
        ([view(0, OLD), view(0, NEW)], OLD),
    ],
)
def test_who_is_believed(answers: list[Answer], named: tuple[str, int]) -> None:
    assert believed(answers, SERVICE, 1) == named


@pytest.mark.parametrize(
    ("answers", "says", "passing"),
    [
        ([view(1, OLD, is_replaced=True), view(1, OLD), view(1, OLD)], "are replacing it", True),
        ([view(2, NEW, is_down=True), view(1, OLD)], "for down", True),
        ([None, None], "they do not know it", True),
        ([view(1, OLD, others=0)], "they do not know it", True),
        ([None, Silence("no")], r"\(TimeoutError\)", True),
        ([Silence("no"), AuthenticationError("who?")], r"AuthenticationError: who\?", True),
        ([NoPermissionError("no", status_code="NOPERM"), None], r"\(NOPERM: no\)", False),
    ],
)
def test_when_nobody_is_believed(answers: list[Answer], says: str, *, passing: bool) -> None:
    with pytest.raises(Refused, match=says) as caught:
        believed(answers, SERVICE, 1)
    assert caught.value.passing is passing


def watching(flavour: str, master: Server, epoch: int) -> Server:
    """Return a Sentinel, not started yet, that has a configuration of an epoch."""
    sentinel = Server(flavour, sentinel=True)
    lines = [f"monitor {SERVICE} 127.0.0.1 {master.port} 2", f"config-epoch {SERVICE} {epoch}"]
    text = "".join(f"sentinel {line}\n" for line in lines)
    (sentinel.directory / "sentinel.conf").write_text(text, "utf-8")
    return sentinel


class Split:
    """Two masters: one Sentinel watches the old one, two the new one, at a later epoch."""

    def __init__(self, stack: ExitStack) -> None:
        flavour = available()[0]
        self.old, self.new = (stack.enter_context(Server(flavour)) for _ in range(2))
        watched = [(self.old, 3), (self.new, 4), (self.new, 4)]
        self.sentinels = [stack.enter_context(watching(flavour, *one)) for one in watched]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [("127.0.0.1", sentinel.port) for sentinel in self.sentinels]

    @property
    def url(self) -> str:
        hosts = ",".join(f"{host}:{port}" for host, port in self.addresses)
        return f"redis+sentinel://{hosts}/{SERVICE}"


@pytest.fixture(scope="module")
def split() -> Iterator[Split]:
    with ExitStack() as stack:
        yield Split(stack)


@pytest.mark.parametrize("kind", STORES)
async def test_a_sentinel_that_has_not_heard_of_the_failover(kind: str, split: Split) -> None:
    """It is asked first, and the old master takes itself for one: sessions read as new there."""
    direct = made(kind, split.url.replace(f"127.0.0.1:{split.sentinels[0].port},", ""))
    session = await new_session(direct, a=1)
    manager = made(kind, split.url)
    for _ in range(3):  # whoever is asked first
        assert dict(await manager.load(session.id)) == {"a": 1}
        await manager.aclose()
    assert not await asyncio.to_thread(addresses, split.old)
    await direct.aclose()


async def test_what_a_sentinel_has_said_counts_however_the_connection_to_it_ends(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a loop that is busy for half a second, redis-py raises that it could not wait for it."""
    close = redis.asyncio.Redis.aclose

    async def too_late(client: Any, *args: Any) -> None:
        await close(client, *args)
        raise Silence("Timed out closing connection")

    monkeypatch.setattr(redis.asyncio.Redis, "aclose", too_late)
    manager = made("sentinel", split.url)
    await new_session(manager, a=1)
    await manager.aclose()


@pytest.mark.parametrize("kind", STORES)
async def test_a_master_that_was_replaced_while_it_was_connected_to(
    kind: str, split: Split
) -> None:
    """Started again it takes itself for a master, and knows nobody's session."""
    late, early = split.sentinels[:2]
    direct = made(kind, split.url)
    session = await new_session(direct, a=1)

    def turn_to(master: Server) -> None:
        late.run("SENTINEL", "REMOVE", SERVICE)
        late.run("SENTINEL", "MONITOR", SERVICE, "127.0.0.1", master.port, 2)

    met: list[int] = []

    def on_connect(connection: Any) -> None:
        met.append(connection.port)
        turn_to(split.new)
        connection.on_connect()

    async def on_connect_async(connection: Any) -> None:
        met.append(connection.port)
        await asyncio.to_thread(turn_to, split.new)
        await connection.on_connect()

    package: Any = redis.asyncio if kind == "sentinel" else redis
    func = on_connect_async if kind == "sentinel" else on_connect
    known = package.Sentinel([("127.0.0.1", late.port)])
    manager = made(kind, known.master_for(SERVICE, redis_connect_func=func))
    await asyncio.to_thread(turn_to, split.old)
    assert dict(await manager.load(session.id)) == {"a": 1}
    assert met == [split.old.port, split.new.port]
    assert not await asyncio.to_thread(addresses, split.old)
    await asyncio.to_thread(turn_to, split.old)
    assert early.running
    for one in (manager, direct):
        await one.aclose()


async def test_each_stage_of_a_failover() -> None:
    """The old master is alive all the while; it may have been started again."""
    options = {"replicas": 2, "sentinels": 1, "requirepass": "s"}
    group = SentinelGroup(available()[0], **options)  # type: ignore[arg-type]
    with await asyncio.to_thread(group.__enter__):
        await each_stage(group)


async def each_stage(group: SentinelGroup) -> None:
    (sentinel,), old = group.sentinels, await asyncio.to_thread(group.master)
    promoted, straggler = await asyncio.to_thread(group.replicas)

    def says() -> dict[str, str]:
        flat = sentinel.run("SENTINEL", "MASTER", SERVICE)
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def prepare() -> None:
        sentinel.run("SENTINEL", "SET", SERVICE, "failover-timeout", 60_000)
        straggler.run("CONFIG", "SET", "replica-priority", 0)
        straggler.run("CONFIG", "SET", "masterauth", "wrong")  # it cannot follow another master
        wait_until(lambda: promised() == ["0"], "a Sentinel that knows who may be promoted")

    def promised() -> list[str]:
        flat = sentinel.run("SENTINEL", "REPLICAS", SERVICE)
        known = [dict(zip(one[::2], one[1::2], strict=True)) for one in flat]
        return [one["slave-priority"] for one in known if one["port"] == str(straggler.port)]

    def is_waiting() -> bool:
        return says().get("failover-state") == "wait_promotion"

    await asyncio.to_thread(prepare)
    managers = [made(kind, group.url, timeout=0.8) for kind in STORES]
    session = await new_session(managers[0], a=1)
    await managers[0].aclose()
    wait = asyncio.to_thread
    with stopped(promoted):
        await wait(sentinel.run, "SENTINEL", "FAILOVER", SERVICE)
        await wait(wait_until, is_waiting, "a replica that is to be promoted")
        for manager in managers:
            with pytest.raises(StoreUnavailable, match="are replacing it"):
                await manager.load(session.id)
    await wait(group.wait_for_takeover, old)
    state = await wait(says)
    assert (state["failover-state"], state["port"]) == ("reconf_slaves", str(old.port))
    assert (await wait(old.run, "ROLE"))[0] == "master"
    for manager in managers:
        loaded = await manager.load(session.id)
        loaded["b"] = 2
        await manager.save(loaded)
    assert not await wait(addresses, old)
    assert await wait(addresses, promoted)
    assert (await wait(says))["failover-state"] == "reconf_slaves"
    for manager in managers:
        await manager.aclose()
