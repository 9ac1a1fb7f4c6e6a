"""Which node of a Redis Cluster a call goes to, decided without any I/O.

`route` yields what to do next, and is sent what came of it. It follows MOVED and ASK: the node that
says so has done nothing, so the call may be sent on at once. Everything else that goes wrong ends
it with that very fault; the commit machine tries again, and then the cluster is asked first who
serves the slot now. Which slot is whose, and how that is patched after MOVED, is redis-py's
`NodesManager`.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from typing import Any, NamedTuple

from redis.cluster import get_node_name
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    MovedError,
    RedisClusterException,
    ResponseError,
    TryAgainError,
)

from asyncsession.protocol import Call, Lost, Refused
from asyncsession.transport.addresses import Address
from asyncsession.transport.faults import BROKEN, after_sending, before_sending, of_node

__all__ = [
    "NOT_OURS",
    "UNREACHED",
    "Patch",
    "Refresh",
    "Route",
    "Send",
    "View",
    "route",
    "unreached",
]

NOT_OURS = ("response_callbacks", "himport_registry", "redis_connect_func", "retry")
"""Options of a cluster client's connections that ours do without. The third sends READONLY where
replicas may be read: a demoted master would then answer out of its past, instead of MOVED."""

UNREACHED = (RedisClusterException, IndexError, *BROKEN)
"""What asking a node for the topology raises. Of a node that has not joined the cluster yet, or was
reset, redis-py takes the first of no masters."""

_MOST_HOPS = 5  # as Jedis and Lettuce have it; a slot is seldom moved twice within one call
_MOST_PATCHES = 5  # slots that moved one by one, until all are asked for: redis-py's number
_INTERVAL = 0.1  # seconds between two questions about the topology, while a node stays away


class Send(NamedTuple):
    """Send the call to a node, and send back the reply.

    Attributes:
        is_asking: the slot is being moved there; say ASKING right before.
    """

    address: Address
    call: Call
    is_asking: bool


class Refresh(NamedTuple):
    """Ask the cluster who serves which slot, for so many seconds at the most."""

    seconds: float


class Patch(NamedTuple):
    """Have redis-py take note of where a slot is now."""

    moved: MovedError


Route = Generator[Send | Refresh | Patch, Any, list[Any]]


class View:
    """What is known of a cluster.

    Args:
        given: the addresses to begin with.
        is_dynamic: whether nodes that were found later are asked, too.

    Attributes:
        nodes: redis-py's `NodesManager`, that for asyncio or the other one; None before the first.
        suspects: nodes that did not serve a call.
    """

    def __init__(self, given: Iterable[Address], *, is_dynamic: bool) -> None:
        self.nodes: Any = None
        self.suspects: set[Address] = set()
        self._asked_at = 0.0
        self._given = list(dict.fromkeys(given))
        self._is_dynamic = is_dynamic
        self._patches = 0
        self._turn = 0

    def known(self) -> set[Address]:
        """Return the addresses of all nodes of the cluster."""
        # A copy: another thread may add a node meanwhile.
        nodes = list(self.nodes.nodes_cache.values()) if self.nodes is not None else []
        return {(node.host, node.port) for node in nodes}

    def candidates(self) -> list[Address]:
        """Return whom to ask for the topology, in order: another one first each time."""
        found = sorted(self.known(), key=repr) if self._is_dynamic else []
        every = list(dict.fromkeys([*found, *self._given]))
        self._turn += 1
        first = self._turn % len(every)
        # A stable sort: those that did not serve come last.
        return sorted(every[first:] + every[:first], key=self.suspects.__contains__)

    def owner(self, slot: int) -> Address | None:
        """Return the master of a slot, as far as is known."""
        serving = self.nodes.slots_cache.get(slot) if self.nodes is not None else None
        return (serving[0].host, serving[0].port) if serving else None

    def is_doubtful(self, address: Address) -> bool:
        """Whether a node is under suspicion, and the cluster was not asked just now."""
        return address in self.suspects and time.monotonic() - self._asked_at > _INTERVAL

    def asked(self) -> None:
        """Take note that the cluster was asked just now, whether or not anybody told."""
        self._asked_at = time.monotonic()

    def learn(self, nodes: Any) -> None:
        """Take over a new topology."""
        self.nodes = nodes
        self.suspects.clear()
        self._patches = 0

    def target(self, redirect: AskError, replying: Address) -> Address:
        """Return where a node sends us; without a host, it means its own."""
        host, port = self.nodes.remap_host_port(redirect.host or replying[0], redirect.port)
        return host, port

    def patch_is_enough(self) -> bool:
        """Count a slot that has moved, and tell whether it was one of few."""
        self._patches += 1
        return self._patches < _MOST_PATCHES


def route(view: View, call: Call) -> Route:
    """Bring a call to the node that serves its keys, and return the reply.

    Raises:
        Refused, Lost: as the transports' protocol says.
    """
    slot = key_slot(call.keys[0].encode())
    ends = time.monotonic() + call.timeout
    address = view.owner(slot)
    if address is None or view.is_doubtful(address):
        yield Refresh(call.timeout)
        address = view.owner(slot)
        if address is None:
            raise Refused("no node of the cluster serves this slot", passing=True)
    is_asking = False
    for _ in range(_MOST_HOPS):
        try:
            reply: list[Any] = yield Send(address, call, is_asking)
        except Lost:
            view.suspects.add(address)
            raise
        except Refused as refused:
            redirect = refused.__cause__
            if not isinstance(redirect, AskError):
                if refused.passing and not isinstance(redirect, TryAgainError):
                    view.suspects.add(address)
                raise of_node(refused) from redirect
        else:
            return reply
        address = view.target(redirect, address)
        is_asking = not isinstance(redirect, MovedError)  # which is an AskError to redis-py
        left = ends - time.monotonic()
        if left <= 0:
            break
        call = call._replace(timeout=left)
        if not is_asking:
            yield Patch(MovedError(f"{slot} {get_node_name(*address)}"))
            if not view.patch_is_enough():
                yield Refresh(left)
    raise Refused("the nodes of the cluster sent the call from one to another", passing=True)


def unreached(error: Exception) -> Refused:
    """Return the fault for a node that did not tell the topology."""
    cause: BaseException = error
    while isinstance(cause, RedisClusterException):  # redis-py's words hide what a node has said
        further = cause.__cause__ or cause.__context__
        if further is None:
            break
        cause = further
    if isinstance(cause, IndexError):
        return Refused("a node that was asked for the cluster knows of no master", passing=True)
    if isinstance(cause, ResponseError):
        fault = after_sending(cause)
        return Refused(str(fault), passing=isinstance(fault, Refused) and fault.passing)
    return before_sending(cause if isinstance(cause, Exception) else error)
