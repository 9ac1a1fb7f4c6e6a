"""One run: a store, a faulty network before it, processes of clients, and the verdict."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from random import Random
from typing import Any, Self

from support.chaos.client import Diary
from support.chaos.plan import MESSAGES, Plan
from support.chaos.targets import Target
from support.chaos.topologies import target_of
from support.chaos.worker import Report, SharedBoard, main
from support.faults import Fault, seeded
from support.history import LOSSES, History, Kind, Operation, Outcome, Rule, Violation, check
from support.proxy import FaultProxy

__all__ = ["Failed", "Result", "run"]

_LOOK = 0.01  # seconds between two looks at how far the clients are
_PATIENCE = 60.0  # seconds without an acknowledged commit after which a run has failed


class Failed(Exception):
    """A client met an exception that it must not meet, or the clients got stuck."""


@dataclass
class Result:
    """What came of a run.

    Attributes:
        plan: what was run.
        seconds: that the clients took.
        told: how many commits were acknowledged, failed, gone and unknown.
        surprises: exceptions that clients met instead of a result, by class.
        messages: how often each fault of a message happened.
        events: how often each fault of the server happened.
        operations: in the history, reads included.
        violations: of the rules.
        losses: where the plan has faults that lose acknowledged writes, how many "writes" of
            clients are missing, and how many sessions "vanished", or were "resurrected", "revived"
            or "planted" as the rules of these names have it, because their writes are missing.
        refused: after each failover, for how many seconds commits to some session were refused.
    """

    plan: Plan
    seconds: float
    told: Counter[str] = field(default_factory=Counter)
    surprises: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    operations: int = 0
    violations: list[Violation] = field(default_factory=list)
    losses: Counter[str] = field(default_factory=Counter)
    refused: list[float] = field(default_factory=list)

    @property
    def commits(self) -> int:
        """How many commits clients have asked for."""
        return self.told.total()

    def __str__(self) -> str:
        return (
            f"{self.told['acknowledged']} commits on {self.plan.target} in {self.seconds:.0f} s,"
            f" {self.told['unknown']} unknown, {len(self.violations)} violations"
        )


async def run(plan: Plan, watch: Callable[[int], None] = lambda _: None) -> Result:
    """Carry out a plan.

    Args:
        plan: what to do.
        watch: is told now and then how many commits were acknowledged so far.

    Raises:
        Failed: a client met what it must not meet, or got stuck.
    """
    board = SharedBoard(plan.sessions)
    async with AsyncExitStack() as stack:
        target = await stack.enter_async_context(target_of(plan)(plan, board))
        proxy: FaultProxy | None = None
        if target.port is not None:
            proxy = await stack.enter_async_context(_network(plan, target.port))
        began = time.monotonic()
        url = proxy.url if proxy else target.url
        async with _Processes(plan, url, board) as processes:
            suffering = asyncio.create_task(_suffer(plan, target, processes))
            try:
                reports = await processes.reports(watch)
                seconds = time.monotonic() - began
                await suffering  # until the store is well again
            finally:
                suffering.cancel()
        if proxy:
            await proxy.drained()
        final = await asyncio.to_thread(target.final)
        result = Result(plan, seconds, events=target.happened)
        result.messages = _named(proxy.faults) if proxy else Counter()
    operations: list[Operation] = target.operations
    for report in reports:
        operations += report.operations
        for what, count in report.counts.items():
            (result.surprises if what[0].isupper() else result.told)[what] += count
    result.operations = len(operations)
    found = check(History(operations, final))
    allowed = LOSSES if plan.loses else frozenset()
    lost = [one for one in found if one.rule in allowed]
    result.losses["writes"] = len({(one.session, one.missing) for one in lost if one.missing})
    for rule in (Rule.VANISHED, Rule.RESURRECTED, Rule.REVIVED, Rule.PLANTED):
        result.losses[rule.name.lower()] = len({one.session for one in lost if one.rule is rule})
    result.violations = [one for one in found if one.rule not in allowed]
    result.refused = [refused(operations, crash) for crash in target.crashes]
    return result


def refused(operations: Iterable[Operation], crash: int) -> float:
    """Return for how many seconds after a crash no commit to some session was acknowledged.

    Args:
        operations: of a history.
        crash: when that was.
    """
    before: set[str] = set()
    after: dict[str, float] = {}
    for one in operations:
        if one.kind is Kind.APPEND and one.outcome is Outcome.ACKNOWLEDGED:
            if one.ended < crash:
                before.add(one.session)
            elif one.began > crash:
                after[one.session] = min(one.ended, after.get(one.session, one.ended))
    return max((after[name] - crash for name in before & {*after}), default=0) / 1e9


def _network(plan: Plan, port: int) -> FaultProxy:
    delays, faults = plan.random("delays"), plan.messages()
    decide = seeded(plan.seed, plan.rate if faults else 0, faults)
    return FaultProxy(port, decide, delay=lambda: _delay(delays))


def _delay(chance: Random) -> float:
    """Return for how many seconds a message is held up: mostly a little, sometimes long."""
    return chance.uniform(0, 0.05 if chance.random() < 0.9 else 2.0)


def _named(faults: Counter[Fault]) -> Counter[str]:
    names = {fault: name for name, (fault, _) in MESSAGES.items()}
    return Counter({names[fault]: count for fault, count in faults.items()})


async def _suffer(plan: Plan, target: Target, processes: _Processes) -> None:
    """Have the store suffer what is planned, for as long as the clients are at work."""
    chance = plan.random("suffering")
    for event in plan.events(target.faults):
        while processes.done < event.after:
            if processes.have_ended:
                return
            await asyncio.sleep(_LOOK)
        await target.suffer(event, chance)


class _Processes:
    """The processes of clients.

    Attributes:
        have_ended: all have sent their reports.
    """

    def __init__(self, plan: Plan, url: str, board: SharedBoard) -> None:
        context = multiprocessing.get_context("spawn")
        self.have_ended = False
        self._progress: Any = context.Array(ctypes.c_uint64, plan.processes, lock=False)
        self._pipes = [context.Pipe(duplex=False) for _ in range(plan.processes)]
        self._processes = [
            context.Process(
                target=main, args=(plan, number, url, board, self._progress, sender), daemon=True
            )
            for number, (_, sender) in enumerate(self._pipes)
        ]

    @property
    def done(self) -> int:
        """How many commits were acknowledged so far."""
        done: int = sum(self._progress)
        return done

    async def __aenter__(self) -> Self:
        for process, (_, sender) in zip(self._processes, self._pipes, strict=True):
            await asyncio.to_thread(process.start)
            sender.close()  # or its end would not be seen
        self._receiving = {asyncio.create_task(_received(pipe)) for pipe, _ in self._pipes}
        return self

    async def __aexit__(self, *details: object) -> None:
        for process in self._processes:
            process.kill()  # they have sent their reports, or never will
            await asyncio.to_thread(process.join)
            process.close()
        await asyncio.gather(*self._receiving, return_exceptions=True)
        for receiver, _ in self._pipes:
            receiver.close()

    async def reports(self, watch: Callable[[int], None]) -> list[Diary]:
        """Wait for all to end, and return what they say.

        Raises:
            Failed: one of them has, or they got stuck.
        """
        waiting, last, since = self._receiving, -1, time.monotonic()
        while waiting:
            ended, waiting = await asyncio.wait(waiting, timeout=_LOOK * 10)
            for one in ended:
                one.result()  # the first failure is enough
            watch(self.done)
            if self.done != last:
                last, since = self.done, time.monotonic()
            elif time.monotonic() > since + _PATIENCE:
                raise Failed(f"nothing but {last} commits for {_PATIENCE:g} seconds")
        self.have_ended = True
        return [one.result() for one in self._receiving]


async def _received(receiver: Connection) -> Diary:
    try:
        report: Report = await asyncio.to_thread(receiver.recv)
    except EOFError:
        raise Failed("a process of clients ended without a report") from None
    if isinstance(report, str):
        raise Failed(report)
    return report
