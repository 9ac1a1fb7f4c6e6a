"""What a session shows after a commit: all that is stored, in the objects it has handed out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from support.logs import SESSION_KEYS, SESSION_POLICIES, Store, small_values
from support.strategies import edited, image, items, stored

from asyncsession import merge
from asyncsession.delta import apply
from asyncsession.errors import InvalidSessionValue
from asyncsession.merge import Policies, Policy


class Writers(RuleBasedStateMachine):
    """Several requests at once: what each shows after saving is what is stored."""

    @initialize(state=st.dictionaries(SESSION_KEYS, small_values))
    def start(self, state: dict[str, Any]) -> None:
        self.store = Store(**state)
        self.sessions = [self.store.load() for _ in "abc"]

    @rule(n=st.integers(0, 2), key=SESSION_KEYS, data=st.data())
    def change(self, n: int, key: str, data: st.DataObject) -> None:
        session = self.sessions[n]
        if key in session and data.draw(st.booleans()):
            session[key] = data.draw(edited(session[key], items))
        else:
            session[key] = data.draw(small_values)

    @rule(n=st.integers(0, 2), key=SESSION_KEYS)
    def delete(self, n: int, key: str) -> None:
        self.sessions[n].pop(key, None)

    @rule(n=st.integers(0, 2))
    def save(self, n: int) -> None:
        session = self.sessions[n]
        held = {key: session[key] for key in session}
        session[f"own {n}"] = self.store.commits  # a save that has nothing to send asks nothing
        self.store.save(session)
        assert image(dict(session)) == image(self.store.state())
        assert not session.modified
        assert session.changes(SESSION_POLICIES) == {}
        for key, value in held.items():
            if isinstance(value, (dict, list, set)) and type(session.get(key)) is type(value):
                assert session[key] is value


Writers.TestCase.settings = settings(max_examples=40, stateful_step_count=12)
TestWriters = Writers.TestCase


# Objects that were handed out.


def test_objects_handed_out_stay_and_are_brought_up_to_date() -> None:
    store = Store(d={"x": {"n": 1}, "l": [1]}, l=[1], s={1}, gone=[1])
    session = store.load()
    d, x, nested, l_, s = (
        session["d"], session["d"]["x"], session["d"]["l"], session["l"], session["s"],
    )  # fmt: skip
    assert session.pop("gone") == [1]
    store.other(d={"x": {"n": 2, "m": 3}, "l": [1, 2], "new": 1}, l=[1, 2], s={1, 2})
    session["own"] = 1
    store.save(session)
    assert d is session["d"]
    assert x is session["d"]["x"]
    assert nested is session["d"]["l"]
    assert l_ is session["l"]
    assert s is session["s"]
    assert (x, nested, l_, s) == ({"n": 2, "m": 3}, [1, 2], [1, 2], {1, 2})
    x["n"] = l_[0] = 9
    store.save(session)
    assert store.state()["d"] == {"x": {"n": 9, "m": 3}, "l": [1, 2], "new": 1}
    assert store.state()["l"] == [9, 2]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.lists(st.integers(0, 3)), st.data())
def test_dicts_in_lists_stay_too(mine: list[int], theirs: list[int], data: st.DataObject) -> None:
    """A change to one that somebody holds arrives, whatever others did to the list around it."""
    store = Store(cart=[{"n": n} for n in mine])
    session = store.load()
    held = list(session["cart"])
    store.other(cart=[{"n": n} for n in theirs])
    session["own"] = 1
    store.save(session)
    assert session["cart"] == [{"n": n} for n in theirs]
    still = [one for one in session["cart"] if any(one is other for other in held)]
    assert len(still) == sum(min(mine.count(n), theirs.count(n)) for n in set(mine))
    if still:
        data.draw(st.sampled_from(still))["n"] = 9
        store.save(session)
        assert any(one == {"n": 9} for one in store.state()["cart"])


def test_plain_values_and_other_types_are_replaced() -> None:
    store = Store(n=1, t=[1], gone={"a": 1})
    session = store.load()
    held, gone = session["t"], session["gone"]
    other = store.load()
    other["n"], other["t"] = 2, "text"
    del other["gone"]
    store.save(other)
    store.save(session)
    assert dict(session) == {"n": 1, "t": [1], "gone": {"a": 1}}, "nothing to save, nothing seen"
    session["own"] = 1
    store.save(session)
    assert dict(session) == {"n": 2, "t": "text", "own": 1}
    assert (held, gone) == ([1], {"a": 1})


# Changes while a commit is under way.


POLICIES_OF = {"plain": merge.three_way, "n": merge.counter, "tags": merge.union,
               "log": merge.append, "most": merge.maximum}  # fmt: skip


@given(st.sampled_from(sorted(POLICIES_OF)), st.booleans(), st.data())
@settings(max_examples=200)
def test_a_change_during_the_commit_is_as_good_as_one_after_it(
    key: str, sends: bool, data: st.DataObject
) -> None:
    """The store ends up as if all had happened one after the other: theirs, ours, the later one."""
    policies = Policies(POLICIES_OF, merge.three_way)
    kind = {"n": st.integers(-9, 9), "most": st.integers(0, 9)}.get(key, small_values)
    base, theirs, ours, later = (data.draw(kind) for _ in range(4))
    if key in ("plain", "tags", "log"):
        theirs, ours = (data.draw(edited(stored(base), items)) for _ in "ab")
        later = data.draw(edited(stored(ours), items))
    ours = ours if sends else base
    store, change = Store(**{key: base}), POLICIES_OF[key].diff
    expected = store.state()[key]
    for one, two in ((base, theirs), (base, ours), (ours, later)):
        delta = change(stored(one), stored(two))
        expected = expected if delta is None else apply(expected, delta)
    session, other = store.load(), store.load()
    session[key], session["own"], other[key] = ours, 1, theirs
    store.commit(other.changes(policies))
    sent = session.changes(policies)
    store.commit(sent)
    session[key] = later
    store.settle(session, sent)
    sent = session.changes(policies)
    store.commit(sent)
    store.settle(session, sent)
    assert image(store.state()[key]) == image(expected)
    assert image(session[key]) == image(expected)
    assert not session.modified


def test_a_key_set_or_deleted_during_the_commit() -> None:
    store = Store(a=1, b=1)
    session = store.load()
    session["a"] = 2

    def during() -> None:
        session["new"] = {"x": 1}
        del session["b"]
        session["a"] = 3

    store.save(session, during)
    assert store.state() == {"a": 2, "b": 1}
    assert dict(session) == {"a": 3, "new": {"x": 1}}
    assert store.save(session) == {"a", "b", "new"}
    assert store.state() == dict(session) == {"a": 3, "new": {"x": 1}}


def test_a_value_that_cannot_be_kept_put_there_during_the_commit() -> None:
    store = Store(a=[1], b=[1])
    session = store.load()
    session["a"].append(2)
    assert session["b"] == [1]
    store.other(b=[1, 2])
    store.save(session, lambda: session["a"].append(object()))
    assert session.modified
    assert session["b"] == [1, 2], "the others are up to date nevertheless"
    with pytest.raises(InvalidSessionValue, match="'a'"):
        session.changes(SESSION_POLICIES)
    session["a"].pop()
    assert store.save(session) == set()
    assert store.state() == {"a": [1, 2], "b": [1, 2]}


def test_what_a_merge_function_is_given_does_not_change_later() -> None:
    policies = Policies({"a": lambda base, ours, theirs: ours}, merge.three_way)
    session = Store(a=[1]).load()
    session["a"].append(2)
    change = session.changes(policies)["a"]
    session["a"].append(3)
    assert change.base == [1]
    assert change.ours == [1, 2]


def test_restarted() -> None:
    store = Store(a=1)
    session = store.load()
    session["a"], session.is_stale = 2, True
    assert session.log is not None
    fresh = session.restarted(session.log)
    assert dict(fresh) == {"a": 1}
    assert (fresh.id, fresh.handle, fresh.is_stale) == (session.id, session.handle, True)
    assert fresh.incarnation == session.incarnation
    assert repr(fresh) == "<Session version 1, stale>"


@pytest.mark.parametrize("policy", [merge.reject, merge.first_write, merge.last_write])
def test_a_change_during_the_commit_that_meets_another_is_for_the_next_save(policy: Policy) -> None:
    """To resolve, refuse or report: it still is a change of what this request had loaded."""
    policies = Policies({"doc": policy}, merge.three_way)
    store = Store(doc=1)
    session = store.load()
    session["own"] = 1
    store.other(doc=2)
    sent = session.changes(policies)
    store.commit(sent)
    session["doc"] = 3
    store.settle(session, sent)
    change = session.changes(policies)["doc"]
    assert (change.base, change.ours, session["doc"]) == (1, 3, 3)
    session["doc"] = 2
    assert not session.modified
    assert session.changes(policies) == {}
    session["doc"] = 4
    assert session.changes(policies)["doc"].base == 2
