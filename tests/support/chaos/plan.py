"""What a run does, all of it drawn from one seed."""

from __future__ import annotations

import random
from collections.abc import Container
from dataclasses import dataclass, field
from typing import NamedTuple

from support.faults import Fault

__all__ = ["CLIENT", "DEFAULT", "EVENTS", "MESSAGES", "TARGETS", "Event", "Plan"]

TARGETS = ("valkey9", "redis8", "redis-system", "cluster", "sentinel")

# Those that cost a whole call's patience are rarer, so that the clients get on.
MESSAGES = {
    "drop": (Fault.DROP, 6),
    "cut": (Fault.CUT, 6),
    "twice": (Fault.TWICE, 6),
    "delay": (Fault.DELAY, 6),
    "late": (Fault.LATE, 4),
    "swallow": (Fault.SWALLOW, 1),
    "lose": (Fault.LOST, 1),
}
"""What happens to single messages, and how often in proportion."""

EVENTS = {
    "reset": 500,
    "kill": 4000,
    "flush": 1500,
    "pause": 2500,
    "memory": 4000,
    "readonly": 3000,
    "evict": 300,
    "rewind": 40,
    "handover": 1500,
    "reshard": 300,
    "failover": 4000,
}
"""What happens to servers, and once in about how many commits. Not every target knows all."""

CLIENT = ("cancel", "clock", "exhausted")
"""What clients do to themselves, or have done to them."""

LOSING = ("rewind", "failover")
"""Faults after which an acknowledged write may be missing, and rightly so."""

DEFAULT = tuple(fault for fault in (*MESSAGES, *EVENTS, *CLIENT) if fault not in LOSING)


class Event(NamedTuple):
    """Something that happens to the server once so many commits have been acknowledged."""

    after: int
    fault: str
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        seed: decides about all that is drawn. What the operating system makes of the order in
            which processes run stays its own affair.
        commits: to be acknowledged.
        target: one of `TARGETS`.
        processes: of clients; every other one uses `SyncSessionManager`.
        faults: names out of `MESSAGES`, `EVENTS` and `CLIENT`.
        clients: tasks or threads in each process.
        sessions: that all clients share at a time.
        longest: commits after which a session is replaced by another.
        rate: the share of calls that something happens to on their way.
        timeout: of the managers, in seconds.
        mutant: a name out of `support.mutants.MUTANTS`, or empty.
        kept_ids: how many commit ids a session remembers, or 0 for the library's own number.
    """

    seed: int
    commits: int
    target: str = "valkey9"
    processes: int = 3
    faults: tuple[str, ...] = field(default=DEFAULT)
    clients: int = 24
    sessions: int = 10
    longest: int = 120
    rate: float = 0.06
    timeout: float = 10.0
    mutant: str = ""
    kept_ids: int = 0

    def random(self, purpose: str) -> random.Random:
        """Return a source of chance for one purpose."""
        return random.Random(f"{self.seed} {purpose}")

    def messages(self) -> list[Fault]:
        """Return the faults of messages, each as often as it weighs."""
        named = (MESSAGES[name] for name in self.faults if name in MESSAGES)
        return [fault for fault, weight in named for _ in range(weight)]

    @property
    def loses(self) -> bool:
        """Whether acknowledged writes may be missing in the end."""
        return bool({*LOSING} & {*self.faults})

    def events(self, known: Container[str]) -> list[Event]:
        """Return what happens to a server that knows so many faults, in order."""
        rng = self.random("events")
        events = []
        for fault in self.faults:
            if fault in EVENTS and fault in known:
                count = max(1, self.commits // EVENTS[fault])
                for _ in range(count):
                    after = rng.randrange(self.commits // 20, 1 + self.commits * 9 // 10)
                    events.append(Event(after, fault, rng.uniform(0.05, 0.3)))
        return sorted(events)

    def command(self) -> str:
        """Return what replays it, run from the directory of the tests."""
        options = [f"--seed {self.seed}", f"--commits {self.commits}", f"--target {self.target}"]
        options += [f"--processes {self.processes}", f"--faults {','.join(self.faults)}"]
        return f"python -m support.chaos {' '.join(options)}"
