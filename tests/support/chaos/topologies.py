"""Stores of several servers: a Redis Cluster, and a master that Sentinels watch."""

from __future__ import annotations

from random import Random
from time import monotonic_ns

from support.chaos.plan import Plan
from support.chaos.targets import SingleServer, Target
from support.chaos.worker import SharedBoard
from support.cluster import Cluster
from support.sentinel import SentinelGroup
from support.servers import Server

__all__ = ["ClusterTarget", "SentinelTarget", "target_of"]


class ClusterTarget(Target):
    """Three masters with a replica each."""

    faults = ("reset", "flush", "pause", "memory", "handover", "reshard", "failover")

    def __init__(self, plan: Plan, board: SharedBoard) -> None:
        super().__init__(plan, board)
        self._cluster = Cluster(replicas=1, appendonly="yes")
        self.url = ""

    def start(self) -> None:
        """Start the nodes and join them."""
        self.url = self._cluster.start().url

    def close(self) -> None:
        """End the nodes."""
        self._cluster.close()

    def masters(self) -> list[Server]:
        """Return the nodes that have slots."""
        return self._cluster.masters()

    def _handover(self, _seconds: float, chance: Random) -> None:
        """Have a replica take over in good order, which loses nothing."""
        self._cluster.fail_over(chance.choice(self.masters()))
        self._cluster.wait_ready()

    def _reshard(self, _seconds: float, chance: Random) -> bool:
        """Move the slot of one of the shared sessions to another master."""
        ids = [self._board.get(slot)[1] for slot in range(self._slots)]
        tags = [one[:3] for one in ids if one]
        if not tags:
            return False
        slot = self._cluster.slot_of(chance.choice(tags))
        source = self._cluster.owner(slot)
        target = chance.choice([one for one in self.masters() if one is not source])
        self._cluster.move_slot(slot, target)
        return True

    def _failover(self, _seconds: float, chance: Random) -> None:
        """Kill a master, have the others elect its replica, and start it again as a replica."""
        master = chance.choice(self.masters())
        replicas = self._cluster.replicas_of(master)
        self.crashes.append(monotonic_ns())
        self._cluster.kill(master)
        self._cluster.wait_for_takeover(*replicas)
        self._cluster.restart(master)


class SentinelTarget(Target):
    """A master, two replicas and three Sentinels."""

    faults = ("reset", "flush", "pause", "memory", "failover")

    def __init__(self, plan: Plan, board: SharedBoard) -> None:
        super().__init__(plan, board)
        self._group = SentinelGroup(appendonly="yes")
        self.url = ""

    def start(self) -> None:
        """Start the servers and the Sentinels."""
        self.url = self._group.start().url

    def close(self) -> None:
        """End them."""
        self._group.close()

    def masters(self) -> list[Server]:
        """Return the master."""
        return [self._group.master()]

    def _failover(self, _seconds: float, _chance: Random) -> None:
        """Kill the master, have the Sentinels promote another, and start it again as a replica."""
        master = self._group.master()
        self.crashes.append(monotonic_ns())
        self._group.kill(master)
        self._group.wait_for_takeover(master)
        self._group.restart(master)


def target_of(plan: Plan) -> type[Target]:
    """Return what a plan's target is."""
    return {"cluster": ClusterTarget, "sentinel": SentinelTarget}.get(plan.target, SingleServer)
