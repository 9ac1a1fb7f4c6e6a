"""Which node a call is sent to, by what the nodes answer: without any server."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    RedisClusterException,
    ResponseError,
    TryAgainError,
)

from asyncsession.protocol import Call, Lost, Refused
from asyncsession.transport import routing
from asyncsession.transport.addresses import Address
from asyncsession.transport.blocking import PoolTransport
from asyncsession.transport.blocking_cluster import BlockingClusterTransport
from asyncsession.transport.faults import after_sending
from asyncsession.transport.routing import Patch, Refresh, Send, View, route, unreached

CALL = Call("load", ("session:{abc}:x",), (), 1.0)
SLOT = key_slot(b"abc")
A, B, C = ("a", 1), ("b", 2), ("c", 3)


class Nodes:
    """What `View` asks of redis-py's `NodesManager`."""

    def __init__(self, owner: Address | None, *others: Address) -> None:
        named = [address for address in (owner, *others) if address is not None]
        made = [SimpleNamespace(host=host, port=port) for host, port in named]
        self.nodes_cache = {node.host: node for node in made}
        self.slots_cache = {SLOT: made[:1]} if owner else {}

    def remap_host_port(self, host: str, port: int) -> Address:
        return host, port


def fault(error: Exception) -> Refused | Lost:
    """Return the fault that a lane would raise for an error."""
    raised = after_sending(error)
    raised.__cause__ = error
    return raised


def moved(to: Address) -> Refused | Lost:
    return fault(MovedError(f"{SLOT} {to[0]}:{to[1]}"))


def ask(to: Address) -> Refused | Lost:
    return fault(AskError(f"{SLOT} {to[0]}:{to[1]}"))


def walk(view: View, answers: list[Any], call: Call = CALL, learns: Nodes | None = None) -> Any:
    """Carry a route through; return what it returned or raised, and the steps it took."""
    steps, taken = route(view, call), []
    left = iter(answers)
    try:
        step = next(steps)
        while True:
            taken.append(step)
            answer: Any = None
            if isinstance(step, Send):
                answer = next(left)
            elif isinstance(step, Refresh):
                view.asked()
                view.learn(learns or view.nodes)
            step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
    except StopIteration as stop:
        outcome = stop.value
    except (Refused, Lost) as raised:
        outcome = raised
    assert next(left, None) is None, "not everything was asked for"
    return outcome, taken


def sends(taken: list[Any]) -> list[tuple[Address, bool]]:
    return [(step.address, step.is_asking) for step in taken if isinstance(step, Send)]


@pytest.fixture
def view() -> View:
    view = View([A], is_dynamic=True)
    view.learn(Nodes(A, B))
    return view


def test_the_first_call_asks_for_the_topology() -> None:
    outcome, taken = walk(View([C], is_dynamic=True), [["ok"]], learns=Nodes(A))
    assert (outcome, [type(step) for step in taken]) == (["ok"], [Refresh, Send])
    assert sends(taken) == [(A, False)]


def test_a_call_to_a_known_node_asks_nobody(view: View) -> None:
    assert walk(view, [["ok"]]) == (["ok"], [Send(A, CALL, False)])


def test_moved_is_noted_and_followed(view: View) -> None:
    outcome, taken = walk(view, [moved(B), ["ok"]])
    assert (outcome, sends(taken)) == (["ok"], [(A, False), (B, False)])
    (patch,) = [step for step in taken if isinstance(step, Patch)]
    assert (patch.moved.slot_id, patch.moved.host, patch.moved.port) == (SLOT, *B)
    assert taken[-1].call.timeout < CALL.timeout, "the hops share the time"


def test_ask_is_followed_and_not_noted(view: View) -> None:
    outcome, taken = walk(view, [ask(C), ["ok"]])
    assert (outcome, sends(taken)) == (["ok"], [(A, False), (C, True)])
    assert [type(step) for step in taken] == [Send, Send]


def test_a_redirection_without_a_host_means_the_node_that_replies(view: View) -> None:
    _, taken = walk(view, [moved(("", 7)), ask(("", 8)), ["ok"]])
    assert sends(taken) == [(A, False), (("a", 7), False), (("a", 8), True)]


def test_after_some_slots_moved_one_by_one_all_are_asked_for(view: View) -> None:
    refreshes = []
    for _ in range(12):
        _, taken = walk(view, [moved(B), ["ok"]])
        refreshes.append(any(isinstance(step, Refresh) for step in taken))
    assert (refreshes.count(True), refreshes[4], refreshes[9]) == (2, True, True)


@pytest.mark.parametrize("redirect", [moved, ask])
def test_a_loop_of_redirections_ends(view: View, redirect: Callable[[Address], Exception]) -> None:
    outcome, taken = walk(view, [redirect(B), redirect(A)] * 2 + [redirect(B)])
    assert isinstance(outcome, Refused)
    assert outcome.passing, "nothing was done, and it may be better in a moment"
    assert len(sends(taken)) == 5


def test_redirections_end_with_the_time_of_the_call(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 2.0])
    monkeypatch.setattr(routing, "time", SimpleNamespace(monotonic=lambda: next(now)))
    outcome, taken = walk(view, [moved(B)])
    assert isinstance(outcome, Refused)
    assert outcome.passing
    assert len(taken) == 1


@pytest.mark.parametrize(
    ("failure", "is_suspect"),
    [
        (Lost("no answer"), True),
        (Refused("connection refused", passing=True), True),
        (fault(ClusterDownError("The cluster is down", status_code="CLUSTERDOWN")), True),
        (fault(TryAgainError("Multiple keys request", status_code="TRYAGAIN")), False),
        (fault(ResponseError("OOM", status_code="OOM")), False),
    ],
    ids=["lost", "away", "CLUSTERDOWN", "TRYAGAIN", "OOM"],
)
def test_what_fails_is_told_as_it_is_and_doubted_next_time(
    view: View, failure: Exception, is_suspect: bool
) -> None:
    outcome, _ = walk(view, [failure])
    assert type(outcome) is type(failure)
    assert str(outcome) == str(failure).partition("; it is a node of a Cluster")[0]
    assert outcome.__dict__ == failure.__dict__
    assert outcome is failure or outcome.__cause__ is failure.__cause__
    outcome, taken = walk(view, [["ok"]], learns=Nodes(B))
    assert outcome == ["ok"]
    assert sends(taken) == [(B if is_suspect else A, False)]


def test_a_node_that_stays_away_is_not_asked_about_all_the_time(view: View) -> None:
    away = Refused("connection refused", passing=True)
    refreshes = 0
    for _ in range(50):
        _, taken = walk(view, [away])
        refreshes += any(isinstance(step, Refresh) for step in taken)
    assert refreshes == 1


def test_a_slot_that_nobody_serves_is_a_refusal(view: View) -> None:
    outcome, taken = walk(View([A], is_dynamic=True), [], learns=Nodes(None, B))
    assert isinstance(outcome, Refused)
    assert outcome.passing
    assert sends(taken) == []


def test_another_node_is_asked_each_time_and_suspects_last() -> None:
    view = View([C], is_dynamic=True)
    view.learn(Nodes(A, B))
    asked = [view.candidates() for _ in range(6)]
    assert {order[0] for order in asked} == {A, B, C}
    assert all(sorted(order) == [A, B, C] for order in asked)
    view.suspects.add(B)
    assert {order[-1] for order in (view.candidates() for _ in range(6))} == {B}


def test_nodes_found_later_are_not_asked_if_the_client_was_told_so() -> None:
    view = View([C], is_dynamic=False)
    view.learn(Nodes(A, B))
    assert view.candidates() == [C]


@pytest.mark.parametrize(
    ("said", "words", "passing"),
    [
        (AuthenticationError("invalid username-password pair"), "invalid username", False),
        (NoPermissionError("NOPERM no permissions to run 'cluster'"), "NOPERM", False),
        (
            ResponseError("ERR This instance has cluster support disabled"),
            "support disabled",
            False,
        ),
        (ConnectionRefusedError("refused"), "refused", True),
    ],
)
def test_why_nobody_told_the_topology(said: Exception, words: str, passing: bool) -> None:
    """redis-py says "Cluster mode is not enabled on this node" whatever the node has said."""
    hidden = RedisClusterException("Cluster mode is not enabled on this node")
    hidden.__context__ = said
    error = RedisClusterException("Redis Cluster cannot be connected")
    error.__cause__ = hidden
    told = unreached(error)
    assert words in str(told)
    assert told.passing is passing


def test_a_node_that_another_thread_finds_while_one_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = BlockingClusterTransport([A], {}, 1)
    pools: dict[Address, Any] = transport._pools
    pools |= {address: PoolTransport(lambda _seconds: {}, 1) for address in (A, B)}

    class Known(set[Address]):
        def __contains__(self, address: object) -> bool:
            pools.setdefault(C, PoolTransport(lambda _seconds: {}, 1))  # the other thread's turn
            return super().__contains__(address)

    monkeypatch.setattr(transport, "_told_by", lambda _address, _seconds: Nodes(A, C))
    monkeypatch.setattr(transport._view, "known", lambda: Known({A, C}))
    transport._refresh(1.0)
    assert set(pools) == {A, C}
