"""Redis Cluster without an event loop: a pool for each node, and redis-py's knowledge of the nodes.

It takes the same ways as `cluster.py`. There is no task that could ask for the topology in the
background: of the threads that want to know, one asks, and the others wait for it.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from redis.cluster import ClusterNode, NodesManager, RedisCluster
from redis.connection import parse_url

from asyncsession import forks
from asyncsession.errors import ConfigurationError
from asyncsession.protocol import BlockingTransport, Call, Lost, Refused
from asyncsession.transport import blocking
from asyncsession.transport.addresses import Address, Remap, read_cluster_url, remap_from
from asyncsession.transport.blocking import PoolTransport
from asyncsession.transport.options import Options, for_connection, without_maintenance
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

__all__ = ["BlockingClusterTransport", "of_client", "of_url"]

_SHORTEST = 0.001  # seconds; to a socket, 0 would mean not to wait at all


def of_url(url: str, size: int) -> BlockingTransport:
    """Return the transport for `redis+cluster://`, with so many connections for each node.

    Raises:
        ConfigurationError: it cannot be read.
    """
    nodes, options = read_cluster_url(url, parse_url, blocking.make)
    return BlockingClusterTransport(nodes, options, size)


def of_client(client: Any, size: int) -> BlockingTransport:
    """Return a transport that connects as `client` does, on connections of its own.

    Raises:
        ConfigurationError: not a `redis.RedisCluster`.
    """
    if not isinstance(client, RedisCluster):
        raise ConfigurationError(
            "a store is a URL, a redis.Redis or a redis.RedisCluster client, not"
            f" {type(client).__qualname__}"
        )
    manager = client.nodes_manager
    # A cluster client has asked the cluster when it was made, so there are nodes; all are alike.
    pool = next(node.redis_connection for node in manager.nodes_cache.values()).connection_pool
    options = without_maintenance(pool.connection_kwargs)
    for name in ("host", "port", *NOT_OURS):
        options.pop(name, None)
    options["connection_class"] = pool.connection_class
    if client.user_on_connect_func is not None:
        options["redis_connect_func"] = client.user_on_connect_func
    return BlockingClusterTransport(
        [(node.host, int(node.port)) for node in client.startup_nodes],
        options,
        size,
        remap=manager.address_remap,
        is_dynamic=manager._dynamic_startup_nodes,  # noqa: SLF001  it has no other name
    )


class BlockingClusterTransport:
    """Calls on connections to a cluster's nodes, each lent to one thread at a time.

    Args:
        given: the addresses of nodes to begin with.
        options: redis-py's connection options, without an address.
        size: how many connections there are to each node, at the most.
        remap: from an address that the cluster names to the one that reaches it.
        is_dynamic: whether nodes that were found later are asked for the topology, too.
    """

    def __init__(self, given: list[Address], options: Options, size: int, *,
                 remap: Remap | None = None, is_dynamic: bool = True) -> None:  # fmt: skip
        self._given = given
        self._options = options
        self._size = size
        self._remap = remap
        self._is_dynamic = is_dynamic
        self._begin()

    def call(self, call: Call) -> Any:
        """Run a script on the node that serves its keys, and return its reply."""
        if self._forks != forks.count():  # who holds the guard may not be there after the fork
            self._begin()
        steps = route(self._view, call)
        reply: Any | None = None
        try:
            step = next(steps)
            while True:
                try:
                    match step:
                        case Send():
                            reply = self._send(step)
                        case Refresh():
                            self._refresh(step.seconds)
                        case Patch():
                            self._patch(step)
                except (Refused, Lost) as fault:
                    step = steps.throw(fault)
                else:
                    step = steps.send(reply)
        except StopIteration as stop:
            returned: list[Any] = stop.value
            return returned

    def close(self) -> None:
        """Close the connections, those in use after their call; another call opens new ones."""
        for pool in list(self._pools.values()):
            pool.close()

    def __repr__(self) -> str:
        return "redis cluster"

    def _begin(self) -> None:
        self._forks = forks.count()
        self._view = View(self._given, is_dynamic=self._is_dynamic)
        self._guard = threading.Lock()  # of asking
        self._pools: dict[Address, PoolTransport] = {}

    def _send(self, step: Send) -> Any:
        pool = self._pools.get(step.address)
        if pool is None:
            host, port = step.address
            options = {**self._options, "host": host, "port": port}
            pool = PoolTransport(lambda _seconds: options, self._size)
            pool = self._pools.setdefault(step.address, pool)
        return pool.call_asking(step.call) if step.is_asking else pool.call(step.call)

    def _refresh(self, seconds: float) -> None:
        """Ask the cluster for its topology, unless another thread has done so meanwhile.

        Raises:
            Refused: nobody has told it in time.
        """
        view, ends = self._view, time.monotonic() + seconds
        before = view.nodes
        if not self._guard.acquire(timeout=seconds):
            raise Refused("no node said in time who serves which slot", passing=True)
        try:
            if view.nodes is before:
                self._ask(view, ends)
        finally:
            self._guard.release()

    def _ask(self, view: View, ends: float) -> None:
        """Ask one node after the other until one tells, each for half of the time that is left."""
        fault: Refused | None = None
        for address in view.candidates():
            try:
                nodes = self._told_by(address, max((ends - time.monotonic()) / 2, _SHORTEST))
            except UNREACHED as error:
                fault = unreached(error)
            else:
                view.learn(nodes)
                fault = None
                break
            if time.monotonic() > ends:
                break
        view.asked()
        known = view.known()
        for gone in [address for address in list(self._pools) if address not in known]:
            self._pools.pop(gone).close()  # a copy: another thread may add one meanwhile
        if fault is not None:
            raise fault

    def _told_by(self, address: Address, seconds: float) -> NodesManager:
        """Return the topology that a node tells."""
        options = for_connection(self._options)
        for name in ("socket_timeout", "socket_connect_timeout"):
            options[name] = min(options.get(name) or seconds, seconds)
        node = ClusterNode(*address)  # type: ignore[no-untyped-call]
        try:
            return NodesManager(
                [node],
                from_url=True,  # the options are those of connections, not of a client
                dynamic_startup_nodes=False,
                address_remap=remap_from(address, self._remap),
                **options,
            )
        finally:
            if node.redis_connection is not None:
                node.redis_connection.close()

    def _patch(self, step: Patch) -> None:
        """Have redis-py take note of where a slot is now."""
        nodes = self._view.nodes
        nodes.slots_cache.setdefault(step.moved.slot_id, [])
        nodes.move_slot(step.moved)
