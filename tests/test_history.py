"""The checker of histories accepts what is right, and rejects each thing that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from support.history import Copy, History, Kind, Operation, Outcome, Rule, check
from support.history.simulated import CREATED, good_histories

ACK, FAILED, UNKNOWN, GONE = Outcome.ACKNOWLEDGED, Outcome.FAILED, Outcome.UNKNOWN, Outcome.GONE


def op(kind: Kind, began: float, ended: float, outcome: Outcome = ACK, **more: Any) -> Operation:
    return Operation(more.pop("process", "p1"), "s", kind, began, ended, outcome, **more)


def append(mark: str, began: float, ended: float, outcome: Outcome = ACK) -> Operation:
    return op(Kind.APPEND, began, ended, outcome, key="log", value=mark, commit=mark)


def add(amount: int, began: float, ended: float, outcome: Outcome = ACK) -> Operation:
    return op(Kind.ADD, began, ended, outcome, key="n", value=amount)


def own(value: str, began: float, ended: float, outcome: Outcome = ACK) -> Operation:
    return op(Kind.OWN, began, ended, outcome, key="mine", value=value)


def read(value: Copy | None, began: float, ended: float, name: str = "id0") -> Operation:
    return op(Kind.READ, began, ended, value=value, name=name, process="reader")


def rotate(old: str, new: str, began: float, ended: float, outcome: Outcome = ACK) -> Operation:
    return op(Kind.ROTATE, began, ended, outcome, name=old, value=new)


def destroy(began: float, ended: float, outcome: Outcome = ACK) -> Operation:
    return op(Kind.DESTROY, began, ended, outcome)


def sweep(began: float, ended: float, outcome: Outcome = ACK) -> Operation:
    return op(Kind.DESTROY_ALL, began, ended, outcome)._replace(session="user:1")


def history(*operations: Operation, final: list[Copy] | None = None) -> History:
    return History([CREATED, *operations], {"s": [{}] if final is None else final})


RIGHT = {
    "all is well": history(append("a", 10, 20), read({"log": ["a"]}, 30, 40),
                           final=[{"log": ["a"]}]),
    "a read beside a commit sees it": history(append("a", 10, 20), read({"log": ["a"]}, 12, 14),
                                              final=[{"log": ["a"]}]),
    "or does not": history(append("a", 10, 20), read({}, 15, 16), final=[{"log": ["a"]}]),
    "unknown, and done": history(append("a", 10, 20, UNKNOWN), final=[{"log": ["a"]}]),
    "unknown, and done late": history(append("a", 10, 20, UNKNOWN), read({"log": []}, 30, 40),
                                      append("b", 50, 60), final=[{"log": ["b", "a"]}]),
    "unknown, and not done": history(append("a", 10, 20, UNKNOWN)),
    "unknown additions": history(add(5, 10, 20), add(2, 10, 20, UNKNOWN), add(-1, 10, 20, UNKNOWN),
                                 final=[{"n": 4}]),
    "a write that was overtaken": history(own("a", 10, 20, UNKNOWN), own("b", 30, 40),
                                          final=[{"mine": "a"}]),
    "an end of which nobody knows": history(destroy(10, 20, UNKNOWN), read(None, 30, 40), final=[]),
    "seen before it was gone": history(append("a", 10, 50, GONE), read({"log": ["a"]}, 20, 25),
                                       destroy(30, 40), final=[]),
    "an old id": history(rotate("id0", "id1", 10, 20), read(None, 30, 40), read({}, 30, 40, "id1")),
    "an old id, while it is rotated": history(rotate("id0", "id1", 10, 20), read({}, 12, 30)),
    "logged out everywhere": history(sweep(10, 20), read(None, 30, 40), final=[]),
    "logged out everywhere, in part": history(sweep(10, 20, UNKNOWN)),
    "a session that was never made": History([CREATED._replace(outcome=FAILED)], {}),
}  # fmt: skip

WRONG: dict[str, tuple[Rule, History]] = {
    "lost": (Rule.LOST, history(append("a", 10, 20))),
    "lost by a compaction": (
        Rule.LOST, history(append("a", 10, 20), append("b", 30, 40), final=[{"log": ["b"]}])),
    "a key that never came": (Rule.LOST, history(own("a", 10, 20))),
    "a stale read": (Rule.STALE, history(append("a", 10, 20), read({}, 21, 30),
                                         final=[{"log": ["a"]}])),
    "a key that is not there yet": (Rule.STALE, history(own("a", 10, 20), read({}, 21, 30),
                                                        final=[{"mine": "a"}])),
    "twice": (Rule.DUPLICATED, history(append("a", 10, 20), final=[{"log": ["a", "a"]}])),
    "unknown, and twice": (
        Rule.DUPLICATED, history(append("a", 10, 20, UNKNOWN), final=[{"log": ["a", "a"]}])),
    "failed, and done": (
        Rule.PHANTOM, history(append("a", 10, 20, FAILED), final=[{"log": ["a"]}])),
    "failed, and written": (Rule.PHANTOM, history(own("a", 10, 20, FAILED), final=[{"mine": "a"}])),
    "nobody's": (Rule.PHANTOM, history(append("a", 10, 20), final=[{"log": ["a", "x"]}])),
    "before it was asked for": (
        Rule.PHANTOM,
        history(read({"log": ["a"]}, 1, 9), append("a", 10, 20), final=[{"log": ["a"]}])),
    "nobody's session": (Rule.PHANTOM, History([], {"x": [{}]})),
    "a session that could not be made": (
        Rule.PHANTOM, History([CREATED._replace(outcome=FAILED)], {"s": [{}]})),
    "another order": (
        Rule.FORKED,
        history(append("a", 10, 20), append("b", 10, 20), read({"log": ["b", "a"]}, 30, 40),
                final=[{"log": ["a", "b"]}])),
    "too little": (Rule.MISCOUNTED, history(add(2, 10, 20), add(3, 10, 20), final=[{"n": 3}])),
    "too much": (Rule.MISCOUNTED, history(add(2, 10, 20), final=[{"n": 4}])),
    "more than what is unknown": (
        Rule.MISCOUNTED, history(add(2, 10, 20), add(2, 10, 20, UNKNOWN), final=[{"n": 5}])),
    "counted too early": (
        Rule.MISCOUNTED, history(read({"n": 2}, 6, 9), add(2, 10, 20), final=[{"n": 2}])),
    "counted, and not in the list": (
        Rule.TORN,
        history(append("a", 10, 20, UNKNOWN), add(2, 10, 20, UNKNOWN)._replace(commit="a"),
                final=[{"n": 2}])),
    "an older value": (
        Rule.OVERWRITTEN, history(own("a", 10, 20), own("b", 30, 40), final=[{"mine": "a"}])),
    "gone": (Rule.VANISHED, history(final=[])),
    "gone for a moment": (Rule.VANISHED, history(read(None, 10, 20))),
    "gone for a commit": (Rule.VANISHED, history(append("a", 10, 20, GONE))),
    "gone, though nobody could end it": (Rule.VANISHED, history(destroy(10, 20, FAILED), final=[])),
    "gone with another's id": (
        Rule.VANISHED, history(rotate("id0", "id1", 10, 20), read(None, 30, 40, "id1"))),
    "gone and back": (Rule.FLICKERED, history(read(None, 10, 20), read({}, 30, 40))),
    "ended, and back": (
        Rule.RESURRECTED,
        history(destroy(10, 20, UNKNOWN), read(None, 12, 14), read({}, 30, 40))),
    "back after its end": (Rule.RESURRECTED, history(destroy(10, 20))),
    "seen after its end": (Rule.RESURRECTED, history(destroy(10, 20), read({}, 30, 40), final=[])),
    "alive after all were ended": (Rule.RESURRECTED, history(sweep(10, 20))),
    "a commit after the end": (
        Rule.REVIVED, history(destroy(10, 20), append("a", 30, 40), final=[])),
    "a stolen id": (Rule.PLANTED, history(rotate("id0", "id1", 10, 20), read({}, 30, 40))),
    "two copies": (Rule.SPLIT, history(final=[{}, {}])),
    "two successors": (
        Rule.SPLIT, history(rotate("id0", "id1", 10, 20), rotate("id0", "id2", 10, 20))),
    "damaged": (Rule.DAMAGED, history(append("a", 10, 20, Outcome.UNREADABLE))),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_accepted(name: str) -> None:
    assert check(RIGHT[name]) == []


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_rejected(name: str) -> None:
    rule, wrong = WRONG[name]
    assert rule in {violation.rule for violation in check(wrong)}


def test_each_rule_is_broken_somewhere() -> None:
    assert {rule for rule, _ in WRONG.values()} == set(BREAKING) == set(Rule)


@settings(deadline=None)
@given(good_histories())
def test_good_histories_are_accepted(good: History) -> None:
    assert check(good) == []


def ended(good: History) -> float:
    return max(operation.ended for operation in good.operations)


def more(good: History, *operations: Operation) -> History:
    return History([*good.operations, *operations], good.final)


def other_final(good: History, **changes: Any) -> History:
    return History(good.operations, {"s": [{**good.final["s"][0], **changes}]})


def last_mark(good: History) -> str:
    marks = [one for one in good.operations if one.kind is Kind.APPEND and one.outcome is ACK]
    return str(max(marks, key=lambda one: one.ended).value)


def without_last(good: History) -> list[str]:
    return [mark for mark in good.final["s"][0]["log"] if mark != last_mark(good)]


def after(good: History, *operations: Operation) -> History:
    """Return the history with more that happened, in the order given, when all had ended."""
    begin = ended(good) + 1
    shifted = [
        one._replace(began=begin + 10 * number, ended=begin + 10 * number + 5)
        for number, one in enumerate(operations)
    ]
    return more(good, *shifted)


BREAKING: dict[Rule, Callable[[History], History]] = {
    Rule.LOST: lambda good: other_final(good, log=without_last(good)),
    Rule.STALE: lambda good: after(good, read({**good.final["s"][0], "log": without_last(good)},
                                              0, 0, "x")),
    Rule.DUPLICATED: lambda good: other_final(good, log=good.final["s"][0]["log"] * 2),
    Rule.PHANTOM: lambda good: other_final(good, log=[*good.final["s"][0]["log"], "nobody's"]),
    Rule.FORKED: lambda good: after(
        good, read({**good.final["s"][0], "log": good.final["s"][0]["log"][::-1]}, 0, 0, "x")),
    Rule.MISCOUNTED: lambda good: other_final(good, n=1000),
    Rule.TORN: lambda good: other_final(good, n=good.final["s"][0]["n"] + 1),
    Rule.OVERWRITTEN: lambda good: after(good, own("new", 0, 0), own("newer", 0, 0),
                                         read({**good.final["s"][0], "mine": "new"}, 0, 0, "x")),
    Rule.VANISHED: lambda good: History(good.operations, {}),
    Rule.FLICKERED: lambda good: after(good, read(None, 0, 0, "x"),
                                       read(good.final["s"][0], 0, 0, "x")),
    Rule.RESURRECTED: lambda good: after(good, destroy(0, 0)),
    Rule.REVIVED: lambda good: after(good, destroy(0, 0), append("late", 0, 0)),
    Rule.PLANTED: lambda good: after(good, rotate("x", "y", 0, 0),
                                     read(good.final["s"][0], 0, 0, "x")),
    Rule.DAMAGED: lambda good: more(good, append("a", 0, 0, Outcome.UNREADABLE)),
    Rule.SPLIT: lambda good: History(good.operations, {"s": good.final["s"] * 2}),
}  # fmt: skip


@pytest.mark.parametrize("rule", Rule)
@settings(max_examples=25, deadline=None)
@given(good=good_histories(lives=True))
def test_good_histories_that_were_broken_are_rejected(rule: Rule, good: History) -> None:
    assert rule in {violation.rule for violation in check(BREAKING[rule](good))}
