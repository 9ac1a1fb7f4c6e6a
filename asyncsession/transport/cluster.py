"""Redis Cluster on event loops: lanes for each node, and redis-py's knowledge of the nodes.

redis-py's cluster client is not used for calls: it replays scripts on its own, and it asks a node
for all its commands first. Its `NodesManager` reads the topology; what it was asked with is closed
after each answer, so nothing of it is left on a connection.
"""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio.cluster import ClusterNode, NodesManager, RedisCluster
from redis.asyncio.connection import parse_url

from asyncsession.errors import ConfigurationError
from asyncsession.protocol import Call, Lost, Refused, Transport
from asyncsession.transport import lanes
from asyncsession.transport.addresses import Address, Remap, read_cluster_url, remap_from
from asyncsession.transport.lanes import LaneTransport
from asyncsession.transport.loops import PerLoop, running_loop
from asyncsession.transport.options import Options, fixed, for_connection, without_maintenance
from asyncsession.transport.routing import (
    NOT_OURS,
    UNREACHED,
    Patch,
    Refresh,
    Send,
    View,
    route,
    unreached,
)

__all__ = ["ClusterTransport", "of_client", "of_url"]

_ASK_WITHIN = 1.0  # seconds for each of connecting to a node and reading what it says of the others


def of_url(url: str, count: int) -> Transport:
    """Return the transport for `redis+cluster://`, with so many lanes for each node and event loop.

    Raises:
        ConfigurationError: it cannot be read.
    """
    nodes, options = read_cluster_url(url, parse_url, lanes.make)
    return ClusterTransport(nodes, options, count)


def of_client(client: Any, count: int) -> Transport:
    """Return a transport that connects as `client` does, on connections of its own.

    Raises:
        ConfigurationError: not a `redis.asyncio.RedisCluster`.
    """
    if not isinstance(client, RedisCluster):
        raise ConfigurationError(
            "a store is a URL, a redis.asyncio.Redis or a redis.asyncio.RedisCluster client, not"
            f" {type(client).__qualname__}"
        )
    options = without_maintenance(client.connection_kwargs)
    for name in NOT_OURS:
        options.pop(name, None)
    return ClusterTransport(
        [(node.host, int(node.port)) for node in client.startup_nodes],
        options,
        count,
        remap=client.nodes_manager.address_remap,
        is_dynamic=client.nodes_manager._dynamic_startup_nodes,  # noqa: SLF001  it has no other name
    )


class ClusterTransport:
    """Calls on the lanes of a cluster's nodes.

    Args:
        given: the addresses of nodes to begin with.
        options: redis-py's connection options, without an address.
        count: lanes for each node and event loop.
        remap: from an address that the cluster names to the one that reaches it.
        is_dynamic: whether nodes that were found later are asked for the topology, too.
    """

    def __init__(self, given: list[Address], options: Options, count: int, *,
                 remap: Remap | None = None, is_dynamic: bool = True) -> None:  # fmt: skip
        self._given = given
        self._options = options
        self._count = count
        self._remap = remap
        self._is_dynamic = is_dynamic
        self._clusters: PerLoop[_Cluster] = PerLoop()

    async def call(self, call: Call) -> Any:
        """Run a script on the node that serves its keys, and return its reply."""
        cluster = self._clusters.of(running_loop(), self._open)
        steps = route(cluster.view, call)
        reply: Any | None = None
        try:
            step = next(steps)
            while True:
                try:
                    match step:
                        case Send():
                            reply = await cluster.send(step)
                        case Refresh():
                            await cluster.refresh(step.seconds)
                        case Patch():
                            await cluster.patch(step)
                except (Refused, Lost) as fault:
                    step = steps.throw(fault)
                else:
                    step = steps.send(reply)
        except StopIteration as stop:
            returned: list[Any] = stop.value
            return returned

    async def aclose(self) -> None:
        """Close the connections that the running loop has; another call would open new ones."""
        if (cluster := self._clusters.pop(running_loop(), None)) is not None:
            await cluster.aclose()

    def __repr__(self) -> str:
        return "redis cluster"

    def _open(self) -> _Cluster:
        view = View(self._given, is_dynamic=self._is_dynamic)
        return _Cluster(view, self._options, self._count, self._remap)


class _Cluster:
    """What one event loop knows of a cluster, and its ways to the nodes."""

    def __init__(self, view: View, options: Options, count: int, remap: Remap | None) -> None:
        self.view = view
        self._options = options
        self._count = count
        self._remap = remap
        self._lanes: dict[Address, LaneTransport] = {}
        self._asking: asyncio.Task[Refused | None] | None = None

    async def send(self, step: Send) -> Any:
        """Send a call to a node."""
        ways = self._lanes.get(step.address)
        if ways is None:
            host, port = step.address
            ways = LaneTransport(fixed({**self._options, "host": host, "port": port}), self._count)
            self._lanes[step.address] = ways
        return await (ways.call_asking(step.call) if step.is_asking else ways.call(step.call))

    async def refresh(self, seconds: float) -> None:
        """Ask the cluster for its topology, once for all tasks that want to know.

        Raises:
            Refused: nobody has told it in time.
        """
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask())
            self._asking.add_done_callback(self._asked)
        asking = self._asking
        await asyncio.wait({asking}, timeout=seconds)
        if not asking.done() or asking.cancelled():
            raise Refused("no node said in time who serves which slot", passing=True)
        if (fault := asking.result()) is not None:
            raise Refused(str(fault), passing=fault.passing)  # each has a traceback of its own

    async def patch(self, step: Patch) -> None:
        """Have redis-py take note of where a slot is now."""
        nodes: NodesManager = self.view.nodes
        nodes.slots_cache.setdefault(step.moved.slot_id, [])
        await nodes.move_slot(step.moved)

    async def aclose(self) -> None:
        """Close what is open."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})
        for ways in self._lanes.values():
            await ways.aclose()

    def _asked(self, _task: asyncio.Task[Refused | None]) -> None:
        self._asking = None

    async def _ask(self) -> Refused | None:
        """Ask one node after the other until one tells; return what the last one said if none."""
        fault: Refused | None = None
        for address in self.view.candidates():
            try:
                nodes = await self._told_by(address)
            except UNREACHED as error:
                fault = unreached(error)
            else:
                self.view.learn(nodes)
                fault = None
                break
        self.view.asked()
        known = self.view.known()
        for gone in [address for address in self._lanes if address not in known]:
            await self._lanes.pop(gone).aclose()
        return fault

    async def _told_by(self, address: Address) -> NodesManager:
        """Return the topology that a node tells."""
        options = for_connection(self._options)
        for name in ("socket_timeout", "socket_connect_timeout"):
            options[name] = min(options.get(name) or _ASK_WITHIN, _ASK_WITHIN)
        nodes = NodesManager(
            [ClusterNode(*address, **options)],
            False,
            options,
            dynamic_startup_nodes=False,
            address_remap=remap_from(address, self._remap),
        )
        try:
            await nodes.initialize()
        finally:
            await nodes.aclose("startup_nodes")
        return nodes
