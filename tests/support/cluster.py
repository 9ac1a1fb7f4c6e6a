"""Real Redis Clusters for tests: nodes of `servers.py`, joined as an operator would.

All calls block; a test that runs on an event loop makes them in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self
from urllib.parse import quote

from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from support.servers import Server

__all__ = ["SLOTS", "Cluster", "wait_until"]

SLOTS = 16_384
_DEADLINE = 20.0
_POLL = 0.02


def wait_until(condition: Callable[[], object], what: str, seconds: float = _DEADLINE) -> None:
    """Poll until `condition` holds; a server that does not answer meanwhile is asked again.

    Raises:
        TimeoutError: it did not happen in time.
    """
    ends = time.monotonic() + seconds
    while True:
        with suppress(RedisError, OSError):
            if condition():
                return
        if time.monotonic() > ends:
            raise TimeoutError(f"waited in vain for: {what}")
        time.sleep(_POLL)


class Cluster:
    """A cluster whose nodes can be killed, restarted, failed over and given other slots.

    Args:
        flavour: of its servers.
        masters: how many share the slots; at least 3 for a failover by vote.
        replicas: of each master.
        node_timeout: ms after which a node is suspected; a failover takes about two seconds more.
        tls: whether its nodes speak TLS as well.
        config: options of every server, such as `requirepass="secret"`.

    Attributes:
        nodes: the masters first, then the replicas, as they were at the start.
    """

    def __init__(self, flavour: str = "valkey9", *, masters: int = 3, replicas: int = 0,
                 node_timeout: int = 1000, tls: bool = False,
                 **config: str | int) -> None:  # fmt: skip
        options: dict[str, Any] = {
            "cluster_enabled": "yes",
            "cluster_node_timeout": node_timeout,
            "cluster_replica_validity_factor": 0,
            "cluster_allow_replica_migration": "no",
            "repl_diskless_sync_delay": 0,
            "repl_ping_replica_period": 1,
        }
        if "requirepass" in config:
            options["masterauth"] = config["requirepass"]
        if tls:
            import trustme

            # With plain links between them, nodes tell TLS clients of each other's plain ports.
            options |= {"tls_cluster": "yes", "tls_replication": "yes"}
            options |= {"tls": True, "authority": trustme.CA()}
        self._masters = masters
        self._replicas = replicas
        count = masters * (1 + replicas)
        self.nodes = [Server(flavour, **{**options, **config}) for _ in range(count)]

    @property
    def url(self) -> str:
        """The address, with all nodes as start-up nodes, for `SessionManager`."""
        return self._url("redis+cluster", [node.port for node in self.nodes])

    @property
    def rediss_url(self) -> str:
        """The TLS address; check the certificates against the `ca_file` of any node."""
        return self._url("rediss+cluster", [node.tls_port for node in self.nodes])

    def _url(self, scheme: str, ports: list[int]) -> str:
        password = str(self.nodes[0].config.get("requirepass", ""))
        credentials = f":{quote(password, safe='')}@" if password else ""
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        return f"{scheme}://{credentials}{hosts}"

    @property
    def running(self) -> bool:
        """Whether all nodes are alive."""
        return all(node.running for node in self.nodes)

    def start(self) -> Self:
        """Start the nodes that are down; the first time, join them. Return when all is well."""
        is_new = not self.nodes[0].port
        for node in self.nodes:
            if not node.running:
                node.start()
        if is_new:
            self._join()
        self.wait_ready()
        return self

    def _join(self) -> None:
        masters, first = self.nodes[: self._masters], self.nodes[0]
        for number, node in enumerate(self.nodes):
            node.run("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if node is not first:
                port = node.tls_port or node.port
                first.run("CLUSTER", "MEET", "127.0.0.1", port, node.cluster_port)
        for number, node in enumerate(masters):
            low, high = (SLOTS * n // len(masters) for n in (number, number + 1))
            node.run("CLUSTER", "ADDSLOTSRANGE", low, high - 1)
        for number, replica in enumerate(self.nodes[self._masters :]):
            master = self.id_of(masters[number % len(masters)])
            wait_until(lambda: master in replica.run("CLUSTER", "NODES"), "the nodes have met")  # noqa: B023
            replica.run("CLUSTER", "REPLICATE", master)

    def wait_ready(self) -> None:
        """Wait until every live node serves all slots, sees all live nodes, and has its data."""
        wait_until(lambda: all(map(self._is_ready, self._live())), "a cluster that is well")

    def _is_ready(self, node: Server) -> bool:
        with node.admin() as client:
            state = client.execute_command("CLUSTER INFO")
            seen = client.execute_command("CLUSTER", "NODES").splitlines()
            if client.info("replication").get("master_link_status", "up") != "up":
                return False
        fine = [
            line for line in seen if not {"fail", "fail?", "handshake", "noaddr"} & _flags(line)
        ]
        return (
            state["cluster_state"] == "ok"
            and int(state["cluster_slots_ok"]) == SLOTS
            and len(fine) == len(self._live())
            and len([line for line in fine if "slave" in _flags(line)])
            == self._replicas_alive(node)
        )

    def _replicas_alive(self, node: Server) -> int:
        """Return how many of the live nodes say of themselves that they are replicas."""
        return sum(other.run("ROLE")[0] == "slave" for other in self._live())

    def _live(self) -> list[Server]:
        return [node for node in self.nodes if node.running]

    def id_of(self, node: Server) -> str:
        """Return the id by which a live node is known to the others."""
        return str(node.run("CLUSTER", "MYID"))

    def slot_of(self, key: str | bytes) -> int:
        """Return the slot of a key."""
        return key_slot(key.encode() if isinstance(key, str) else key)

    def owner(self, slot: int, asked: Server | None = None) -> Server:
        """Return the master of a slot, as a live node sees it."""
        for low, high, master, *_ in (asked or self._live()[0]).run("CLUSTER", "SLOTS"):
            if low <= slot <= high:
                return next(node for node in self.nodes if node.port == master[1])
        raise LookupError(f"nobody serves slot {slot}")

    def masters(self) -> list[Server]:
        """Return the nodes that are alive and say of themselves that they are masters."""
        return [node for node in self._live() if node.run("ROLE")[0] == "master"]

    def replicas_of(self, master: Server) -> list[Server]:
        """Return the live replicas of a master, as they say themselves; it may be dead."""
        roles = [(node, node.run("ROLE")) for node in self._live()]
        return [node for node, role in roles if role[0] == "slave" and role[2] == master.port]

    def kill(self, node: Server) -> None:
        """End a node as a crash would."""
        node.kill()

    def restart(self, node: Server) -> None:
        """Start a node that is down, and wait until the cluster is well again."""
        node.start()
        self.wait_ready()

    def fail_over(self, master: Server, *how: str) -> Server:
        """Have a replica take a master's place by command, and return that replica.

        Args:
            master: dead or alive.
            how: nothing for an orderly handover, "FORCE" or "TAKEOVER" for a master that is dead.
        """
        replica = self.replicas_of(master)[0]
        replica.run("CLUSTER", "FAILOVER", *how)
        self.wait_for_takeover(replica)
        return replica

    def wait_for_takeover(self, *candidates: Server) -> Server:
        """Wait until one of these replicas is a master and every live node says so; return it."""
        wait_until(lambda: any(self._rules(node) for node in candidates), "a new master")
        return next(node for node in candidates if self._rules(node))

    def _rules(self, node: Server) -> bool:
        known = self.id_of(node)
        return node.run("ROLE")[0] == "master" and all(
            any(entry[2][2] == known for entry in other.run("CLUSTER", "SLOTS"))
            for other in self._live()
        )

    def begin_move(self, slot: int, target: Server) -> None:
        """Mark a slot as migrating: from now on its keys are partly here, partly there (ASK)."""
        source = self.owner(slot, target)
        target.run("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.run("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))

    def move_keys(self, slot: int, target: Server, most: int = SLOTS) -> int:
        """Move keys of a slot that is migrating, and return how many."""
        source = self.owner(slot, target)
        keys = self.keys_in(slot, source)[:most]
        if keys:
            password = source.config.get("requirepass")
            auth = ("AUTH", str(password)) if password else ()
            source.run("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, *auth, "KEYS", *keys)
        return len(keys)

    def keys_in(self, slot: int, node: Server) -> list[str]:
        """Return the keys of a slot that a node holds."""
        found: list[str] = node.run("CLUSTER", "GETKEYSINSLOT", slot, SLOTS)
        return found

    def end_move(self, slot: int, target: Server) -> None:
        """Give a slot, all of whose keys have been moved, to its new master (MOVED)."""
        source, known = self.owner(slot, target), self.id_of(target)
        for node in (target, source, *self.masters()):
            node.run("CLUSTER", "SETSLOT", slot, "NODE", known)
        wait_until(
            lambda: all(self.owner(slot, node) is target for node in self._live()), "slot moved"
        )

    def move_slot(self, slot: int, target: Server) -> None:
        """Move a slot with its keys, while others use them."""
        self.begin_move(slot, target)
        while self.move_keys(slot, target, 100):
            pass
        self.end_move(slot, target)

    def each_master(self, work: Callable[[Redis], Any]) -> list[Any]:
        """Return what `work` returns for a client of each live master."""
        results = []
        for node in self.masters():
            with node.admin() as client:
                results.append(work(client))
        return results

    def close(self) -> None:
        """End all nodes and remove their directories."""
        for node in self.nodes:
            node.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *details: object) -> None:
        self.close()


def _flags(line: str) -> set[str]:
    """Return the flags of a node in a line of CLUSTER NODES."""
    return set(line.split(" ")[2].split(","))
