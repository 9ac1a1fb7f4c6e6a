"""The rules of `Rule`, one function for each thing that clients do.

An operation takes effect at one moment between its beginning and its end, or after that if its
outcome is unknown, or never. From that follows what a read may show that began and ended when it
did, whatever ran beside it. The copy that is there in the end is a read after everything.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from math import inf
from sys import float_info
from typing import Any

from support.history.model import Copy, History, Kind, Operation, Outcome, Rule, Violation

__all__ = ["check"]

_END = float_info.max  # after every operation, and before what never happened
_COMMITS = frozenset({Kind.CREATE, Kind.APPEND, Kind.ADD, Kind.OWN, Kind.ROTATE})


def check(history: History) -> list[Violation]:
    """Return how a history breaks the rules; nothing for one that keeps them all."""
    sessions: defaultdict[str, list[Operation]] = defaultdict(list)
    sweeps = []
    for operation in history.operations:
        if operation.kind is Kind.DESTROY_ALL:
            sweeps.append(operation)
        else:
            sessions[operation.session].append(operation)
    for name in history.final:
        sessions.setdefault(name, [])  # there may be one that nobody made
    violations: list[Violation] = []
    for name, operations in sessions.items():
        view = _View(name, operations, sweeps, history.final.get(name, []))
        violations += view.violations()
    return violations


class _View:
    """One session's part of a history."""

    def __init__(
        self,
        name: str,
        operations: Sequence[Operation],
        sweeps: Iterable[Operation],
        final: Sequence[Copy],
    ) -> None:
        self.name = name
        self.by_kind: defaultdict[Kind, list[Operation]] = defaultdict(list)
        for operation in operations:
            self.by_kind[operation.kind].append(operation)
        self.final = final
        self.damaged = [one for one in operations if one.outcome is Outcome.UNREADABLE]
        self.reads = [one for one in self.by_kind[Kind.READ] if one.outcome is _ACK]
        self.ends = [*self.by_kind[Kind.DESTROY], *self._swept(sweeps)]
        self.ends = [end for end in self.ends if end.outcome is not Outcome.FAILED]
        last = Operation("", name, Kind.READ, _END, _END, Outcome.ACKNOWLEDGED)
        copies: list[Copy | None] = [*final] or [None]
        self.seen = [*self.reads, *(last._replace(value=copy) for copy in copies)]

    def _swept(self, sweeps: Iterable[Operation]) -> Iterator[Operation]:
        for sweep in sweeps:
            for create in self.by_kind[Kind.CREATE]:
                if create.value != sweep.session or create.began > sweep.ended:
                    continue
                is_sure = create.outcome is Outcome.ACKNOWLEDGED and create.ended < sweep.began
                is_sure = is_sure and sweep.outcome is Outcome.ACKNOWLEDGED
                # One that was cut short may have ended some.
                yield sweep._replace(outcome=_ACK if is_sure else Outcome.UNKNOWN)

    def violations(self) -> Iterator[Violation]:
        if len(self.final) > 1:
            yield self._violation(Rule.SPLIT, f"{len(self.final)} live copies")
        for operation in self.damaged:
            yield self._violation(Rule.DAMAGED, _what(operation))
        yield from self._lives()
        yield from self._ids()
        appends = _by_key(self.by_kind[Kind.APPEND])
        for key, operations in appends.items():
            yield from self._lists(key, operations)
        for key, operations in _by_key(self.by_kind[Kind.ADD]).items():
            yield from self._sums(key, operations)
            if len(appends) == 1:
                ((listed, beside),) = appends.items()
                yield from self._whole(key, operations, listed, beside)
        for key, operations in _by_key(self.by_kind[Kind.OWN]).items():
            yield from self._registers(key, operations)

    def _violation(self, rule: Rule, details: str) -> Violation:
        return Violation(rule, self.name, details)

    def _lives(self) -> Iterator[Violation]:
        """It is there from when it was made until it was ended, and at no other time."""
        made = min((c.ended for c in self.by_kind[Kind.CREATE] if c.outcome is _ACK), default=inf)
        possible = (c for c in self.by_kind[Kind.CREATE] if c.outcome is not Outcome.FAILED)
        asked = min((create.began for create in possible), default=inf)
        over = min((end.ended for end in self.ends if end.outcome is _ACK), default=inf)
        ending = min((end.began for end in self.ends), default=inf)
        missed = inf
        for read in sorted(self.seen, key=lambda one: one.ended):
            at = _when(read)
            if read.value is None:
                if made < read.began and ending > read.ended and not self._is_rotated(read):
                    missed = min(missed, read.ended)
                    yield self._violation(Rule.VANISHED, at)
            elif read.began > missed:
                yield self._violation(Rule.FLICKERED, at)
            elif read.began > over:
                yield self._violation(Rule.RESURRECTED, at)
            elif asked > read.ended:
                yield self._violation(Rule.PHANTOM, f"a session that nobody made, {at}")
        for operation in self._commits():
            if operation.outcome is _ACK and operation.began > over:
                yield self._violation(Rule.REVIVED, _what(operation))
            if operation.outcome is Outcome.GONE and ending > operation.ended:
                yield self._violation(Rule.VANISHED, f"for {_what(operation)}")

    def _commits(self) -> Iterator[Operation]:
        return (one for kind in _COMMITS for one in self.by_kind[kind])

    def _is_rotated(self, read: Operation) -> bool:
        return any(
            rotation.name == read.name
            and rotation.began <= read.ended
            and rotation.outcome is not Outcome.FAILED
            for rotation in self.by_kind[Kind.ROTATE]
        )

    def _ids(self) -> Iterator[Violation]:
        """An id leads to the session for one span of time, which its rotation ends."""
        rotated: dict[str, float] = {}
        for rotation in self.by_kind[Kind.ROTATE]:
            if rotation.outcome is not _ACK:
                continue
            if rotation.name in rotated:
                yield self._violation(Rule.SPLIT, f"{_what(rotation)}, and this was the second")
            rotated[rotation.name] = min(rotation.ended, rotated.get(rotation.name, inf))
        by_name: defaultdict[str, list[Operation]] = defaultdict(list)
        for read in self.reads:
            by_name[read.name].append(read)
            if read.value is not None and read.began > rotated.get(read.name, inf):
                yield self._violation(Rule.PLANTED, _when(read))
        made = min((c.ended for c in self.by_kind[Kind.CREATE] if c.outcome is _ACK), default=inf)
        for reads in by_name.values():
            absences = (r.ended for r in reads if r.value is None and r.began > made)
            absent = min(absences, default=inf)
            for read in reads:
                if read.value is not None and read.began > absent:
                    yield self._violation(Rule.RESURRECTED, f"gone before, {_when(read)}")

    def _lists(self, key: str, appends: Sequence[Operation]) -> Iterator[Violation]:
        """Each item is there once if acknowledged, at most once if unknown, and in one order."""
        by_mark = {append.value: append for append in appends}
        sure = sorted((one for one in appends if one.outcome is _ACK), key=lambda one: one.ended)
        sure_ends = [one.ended for one in sure]
        order = self._order(key)
        place = {mark: number for number, mark in enumerate(order)}
        # How long a list has to be to hold the first so many that were acknowledged.
        needed = [0, *accumulate((place.get(one.value, len(order)) + 1 for one in sure), max)]
        for read, items in self._values(key, list):
            at = f"{key}, {_when(read)}"
            if order[: len(items)] != items:
                yield self._violation(Rule.FORKED, at)
            if len(set(items)) < len(items):
                twice = {item for item in items if items.count(item) > 1}
                yield self._violation(Rule.DUPLICATED, f"{sorted(twice)[:3]} in {at}")
            for item in items:
                append = by_mark.get(item)
                if append is None or append.outcome is Outcome.FAILED or append.began > read.ended:
                    what = "an unknown item" if append is None else _what(append)
                    yield self._violation(Rule.PHANTOM, f"{what} in {at}")
            if len(items) < needed[bisect_left(sure_ends, read.began)]:
                held, due = set(items), sure[: bisect_left(sure_ends, read.began)]
                for missing in [one for one in due if one.value not in held]:
                    rule = Rule.LOST if read.began == _END else Rule.STALE
                    details = f"{_what(missing)} in {at}"
                    yield Violation(rule, self.name, details, str(missing.value))

    def _order(self, key: str) -> list[Any]:
        """Return the list as it was in the end, or when it was last seen."""
        if self.final:
            return list(self.final[0].get(key) or [])
        return max((items for _, items in self._values(key, list)), key=len, default=[])

    def _values(self, key: str, empty: type) -> Iterator[tuple[Operation, Any]]:
        for read in self.seen:
            if read.value is not None:
                yield read, read.value.get(key, empty())

    def _sums(self, key: str, adds: Sequence[Operation]) -> Iterator[Violation]:
        """A counter is between what was surely added and what may have been, either way."""
        possible = [one for one in adds if one.outcome is not Outcome.FAILED]
        sure = sorted((one for one in possible if one.outcome is _ACK), key=lambda one: one.ended)
        begun = sorted(possible, key=lambda one: one.began)
        sure_ends, begins = [one.ended for one in sure], [one.began for one in begun]
        ups, downs = _signed(sure)
        all_ups, all_downs = _signed(begun)
        for read, value in self._values(key, int):
            due, may = bisect_left(sure_ends, read.began), bisect_right(begins, read.ended)
            low, high = ups[due] + all_downs[may], all_ups[may] + downs[due]
            if not low <= value <= high:
                between = f"{low}" if low == high else f"{low} to {high}"
                details = f"{key} is {value}, not {between}, {_when(read)}"
                yield self._violation(Rule.MISCOUNTED, details)

    def _whole(
        self, key: str, adds: Sequence[Operation], listed: str, appends: Sequence[Operation]
    ) -> Iterator[Violation]:
        """Where all that adds to a counter also appends to the list, the one tells the other."""
        marks = {append.commit: append.value for append in appends}
        amounts: defaultdict[Any, int] = defaultdict(int)
        for add in adds:
            if add.outcome is Outcome.FAILED:
                continue
            if not add.commit or add.commit not in marks:
                return
            amounts[marks[add.commit]] += add.value
        order = self._order(listed)
        sums = [0, *accumulate(amounts[mark] for mark in order)]
        for read, value in self._values(key, int):
            items = read.value.get(listed, [])
            if items != order[: len(items)]:
                continue  # which is reported as such
            if value != sums[len(items)]:
                details = f"{key} is {value}, and {sums[len(items)]} by {listed}, {_when(read)}"
                yield self._violation(Rule.TORN, details)

    def _registers(self, key: str, writes: Sequence[Operation]) -> Iterator[Violation]:
        """A key with one writer has the latest value, or one whose outcome was never known."""
        sure = sorted((one for one in writes if one.outcome is _ACK), key=lambda one: one.began)
        sure_ends = [one.ended for one in sure]
        number = {one.value: at for at, one in enumerate(sure)}
        by_value = {one.value: one for one in writes}
        for read in self.seen:
            if read.value is None:
                continue
            due = bisect_left(sure_ends, read.began)
            at = f"{key}, {_when(read)}"
            if key not in read.value:
                if due:
                    rule = Rule.LOST if read.began == _END else Rule.STALE
                    yield self._violation(rule, at)
                continue
            write = by_value.get(read.value[key])
            if write is None or write.outcome is Outcome.FAILED or write.began > read.ended:
                yield self._violation(Rule.PHANTOM, at)
            elif write.outcome is _ACK and number[write.value] < due - 1:
                yield self._violation(Rule.OVERWRITTEN, at)


_ACK = Outcome.ACKNOWLEDGED


def _by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    found: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        found[operation.key].append(operation)
    return found


def _signed(adds: Iterable[Operation]) -> tuple[list[int], list[int]]:
    """Return running sums of what is added, and of what is taken away."""
    amounts = [add.value for add in adds]
    ups, downs = (max(0, amount) for amount in amounts), (min(0, amount) for amount in amounts)
    return [0, *accumulate(ups)], [0, *accumulate(downs)]


def _when(read: Operation) -> str:
    return "in the end" if read.began == _END else f"read by {read.process} at {read.began}"


def _what(operation: Operation) -> str:
    what = f"{operation.kind} {operation.key} {operation.value!r}".replace("  ", " ")
    times = f"{operation.began} to {operation.ended}"
    return f"{what} by {operation.process} ({operation.outcome}, {times})"
