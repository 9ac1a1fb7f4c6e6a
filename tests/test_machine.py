"""The commit machine by hand: no store, no loop; replies and faults as a test wants them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from support.commits import terms

from asyncsession import (
    CommitOutcomeUnknown,
    InvalidSessionData,
    Session,
    SessionConflict,
    SessionGone,
    StoreUnavailable,
    merge,
    verbs,
)
from asyncsession.blob import HEADER_BYTES, Kind, encode_frame, head
from asyncsession.delta import Op, encode
from asyncsession.handles import LOOK
from asyncsession.log import Log
from asyncsession.machine import Budget, Clock, Settings
from asyncsession.merge import Policies
from asyncsession.protocol import Call, Code, Lost, Machine, Pause, Queue, Refused

T = TypeVar("T")
Answer = Callable[[Call], Any]
NOW = 1_800_000_000_000


def settings(timeout: float = 5, **merging: Any) -> Settings:
    made = Settings(
        prefix="s",
        idle_timeout=60,
        absolute_timeout=600,
        max_bytes=4096,
        timeout=timeout,
        policies=Policies(merging, merge.three_way),
    )
    made.clock.observe(NOW)
    return made


def frame(commit_id: bytes, **values: Any) -> bytes:
    changes = {key: encode(Op.SET, value) for key, value in values.items()}
    return encode_frame(changes) + NOW.to_bytes(6, "big") + commit_id.ljust(16, b"_")


def blob(incarnation: bytes, *frames: bytes) -> bytes:
    header = (
        head(Kind.LIVE, incarnation) + NOW.to_bytes(6, "big") + (NOW + 10**6).to_bytes(6, "big")
    )
    return header + bytes(HEADER_BYTES - len(header)) + b"".join(frames)


def stored(**values: Any) -> Session:
    return Session("abc." + "x" * 32, Log.parse(blob(b"incarnat", frame(b"first", **values))))


def drive(machine: Machine[T], *answers: Answer | Exception) -> T:
    """Answer the machine's calls in order; more calls than answers fail the test."""
    script = iter(answers)
    try:
        step = next(machine)
        while True:
            if isinstance(step, Queue):
                step = machine.send(False)
                continue
            if isinstance(step, Pause):
                assert 0 <= step.seconds <= 0.25
                step = machine.send(None)
                continue
            answer = next(script)
            step = (
                machine.throw(answer)
                if isinstance(answer, Exception)
                else machine.send(answer(step))
            )
    except StopIteration as stop:
        assert next(script, None) is None, "answers are left over"
        result: T = stop.value
        return result


def reply(code: Code, *, found: int = 1, data: bytes = b"", now: int = NOW) -> Answer:
    return lambda call: now.to_bytes(6, "big") + terms(call).id + bytes([code, found]) + data


LOST, AWAY, FULL = Lost("x"), Refused("down", passing=True), Refused("OOM", passing=False)


def test_the_clock_is_never_ahead() -> None:
    clock = Clock()
    assert clock.now() is None
    clock.observe(NOW)
    seen = clock.now()
    assert seen is not None
    assert NOW - 1 <= seen <= NOW + 1000


def test_a_commit_keeps_its_id_through_retries() -> None:
    session, calls = stored(a=1), []
    session["a"] = 2

    def note(call: Call) -> Any:
        calls.append(call)
        own: Any = call.args
        return reply(Code.APPLIED, data=own[1] + NOW.to_bytes(6, "big") + own[0][:16])(call)

    machine = verbs.save(settings(), session)
    first = next(machine)
    assert isinstance(first, Call)
    step = machine.throw(LOST)
    while isinstance(step, Pause):
        step = machine.send(None)
    assert isinstance(step, Call)
    assert step.args == first.args
    with pytest.raises(StopIteration) as stop:
        machine.send(note(step))
    assert stop.value.value.version == 2
    assert dict(session) == {"a": 2}
    assert not session.modified


def test_refused_for_good_is_definite_and_immediate() -> None:
    session = stored(a=1)
    session["a"] = 2
    with pytest.raises(StoreUnavailable, match="OOM"):
        drive(verbs.save(settings(), session), FULL)
    assert session.modified


def test_refused_after_a_loss_is_unknown() -> None:
    session = stored(a=1)
    session["a"] = 2
    with pytest.raises(CommitOutcomeUnknown):
        drive(verbs.save(settings(timeout=0.05), session), LOST, *[FULL] * 100_000)


def test_a_refusal_after_a_loss_is_asked_about_again() -> None:
    """The refusal may pass, and the next answer tells what became of the lost copy."""
    session = stored(a=1)
    session["a"] = 2
    commit = drive(verbs.save(settings(), session), LOST, FULL, reply(Code.OK))
    assert commit.version == 2


def test_a_store_that_stays_away_is_unavailable_at_the_deadline() -> None:
    session = stored(a=1)
    session["a"] = 2
    begin = time.monotonic()
    with pytest.raises(StoreUnavailable):
        drive(verbs.save(settings(timeout=0.05), session), *[AWAY] * 100_000)
    assert time.monotonic() - begin < 5


def test_a_lost_load_is_unavailable_not_unknown() -> None:
    with pytest.raises(StoreUnavailable):
        drive(verbs.load(settings(timeout=0.05), "abc." + "x" * 32), *[LOST] * 100_000)


def test_the_reply_of_another_commit_is_not_taken() -> None:
    session = stored(a=1)
    session["a"] = 2
    commit = drive(
        verbs.save(settings(), session),
        lambda _: NOW.to_bytes(6, "big") + b"another" * 2 + b"__" + bytes([Code.OK, 1]),
        reply(Code.OK),
    )
    assert commit.attempts == 1


def test_late_before_anything_was_lost_begins_anew() -> None:
    """The server's clock has moved since it was last seen, as after a failover."""
    made, session, ids = settings(), stored(a=1), []
    session["a"] = 2

    def late(call: Call) -> Any:
        ids.append(terms(call).id)
        return reply(Code.LATE, now=NOW + 3_600_000)(call)

    def fine(call: Call) -> Any:
        ids.append(terms(call).id)
        assert NOW + 3_600_000 <= terms(call).issued <= NOW + 3_601_000
        return reply(Code.OK, now=NOW + 3_600_001)(call)

    assert drive(verbs.save(made, session), late, fine).version == 2
    assert ids[0] != ids[1]


def test_late_is_begun_anew_by_the_clock_of_the_server_that_said_so() -> None:
    """Another node of a cluster, with another clock, may answer somebody else in between."""
    made, session = settings(), stored(a=1)
    session["a"] = 2
    machine = verbs.save(made, session)
    call = next(machine)
    assert isinstance(call, Call)
    assert isinstance(machine.send(reply(Code.LATE, now=NOW)(call)), Pause)
    made.clock.observe(NOW + 3_600_000)
    again = machine.send(None)
    assert isinstance(again, Call)
    assert NOW <= terms(again).issued <= NOW + 1000


def test_late_after_a_loss_is_unknown() -> None:
    session = stored(a=1)
    session["a"] = 2
    with pytest.raises(CommitOutcomeUnknown):
        drive(verbs.save(settings(), session), LOST, reply(Code.LATE))


def test_too_large_after_a_loss_is_unknown() -> None:
    session = stored(a=1)
    session["a"] = 2
    fresh = [Code.OK, NOW, blob(b"incarnat", frame(b"first", a=1))]
    with pytest.raises(CommitOutcomeUnknown):
        drive(
            verbs.save(settings(), session),
            LOST,
            reply(Code.TOO_LARGE, data=b"99999"),
            lambda _: fresh,
            reply(Code.TOO_LARGE, data=b"99999"),
        )


def test_too_large_is_tried_again_on_what_is_there_now_folded() -> None:
    session = stored(a=1)
    session["a"] = 2
    fresh = [Code.OK, NOW, blob(b"incarnat", frame(b"first", a=1), frame(b"second", b=1))]

    def folded(call: Call) -> Any:
        assert call.args[2], "a snapshot goes along"
        return reply(Code.OK)(call)

    drive(
        verbs.save(settings(), session),
        reply(Code.TOO_LARGE, data=b"99999"),
        lambda _: fresh,
        folded,
    )
    assert dict(session) == {"a": 2, "b": 1}


def test_conflict_resolves_on_their_value_and_keeps_the_rest() -> None:
    session = stored(a=1, free=1)
    session["a"], session["free"] = 5, 2
    theirs = frame(b"theirs", a=3)

    def second(call: Call) -> Any:
        assert terms(call).base == theirs[-22:] + (2).to_bytes(6, "big")
        return reply(Code.OK)(call)

    commit = drive(
        verbs.save(settings(a=lambda base, ours, theirs: (base, ours, theirs)), session),
        reply(Code.CONFLICT, data=theirs),
        second,
    )
    assert dict(session) == {"a": [1, 5, 3], "free": 2}
    assert (commit.attempts, commit.merged) == (2, ("a",))


def test_a_conflict_tells_what_becomes_of_lost_copies() -> None:
    session = stored(a=1)
    session["a"] = 5
    with pytest.raises(StoreUnavailable):
        drive(
            verbs.save(settings(a=lambda base, ours, theirs: ours), session),
            LOST,
            reply(Code.CONFLICT, data=frame(b"theirs", a=3)),
            FULL,
        )


def test_conflicts_for_ever_end_in_a_conflict() -> None:
    session = stored(a=1)
    session["a"] = 5
    number = iter(range(10**6))

    def theirs(call: Call) -> Any:
        n = next(number)
        return reply(Code.CONFLICT, data=frame(b"%d" % n, a=-n))(call)

    with pytest.raises(SessionConflict) as caught:
        drive(
            verbs.save(settings(timeout=1, a=lambda base, ours, theirs: ours), session),
            *[theirs] * 1000,
        )
    assert caught.value.keys == ("a",)
    assert session["a"] == 5


def test_an_error_leaves_the_session_as_it_was() -> None:
    session = stored(a=[1])
    session["a"].append(2)
    refusals: list[tuple[Answer | Exception, type[Exception]]] = [
        (reply(Code.UNREADABLE), InvalidSessionData),
        (FULL, StoreUnavailable),
        (reply(Code.GONE), SessionGone),
    ]
    for answer, error in refusals:
        with pytest.raises(error):
            drive(verbs.save(settings(), session), answer)
        assert dict(session) == {"a": [1, 2]}
        assert session.version == 1
        assert not session.is_saving
    assert session.is_destroyed


def test_saving_again_after_an_unknown_outcome_finishes_the_same_commit() -> None:
    session, seen = stored(n=1), []
    session["n"] += 1
    made = settings(timeout=0.05, n=merge.counter)

    def applied(call: Call) -> Any:
        seen.append(call)
        own: Any = call.args
        return reply(Code.APPLIED, data=own[1] + NOW.to_bytes(6, "big") + own[0][:16])(call)

    def fine(call: Call) -> Any:
        seen.append(call)
        return reply(Code.OK)(call)

    with pytest.raises(CommitOutcomeUnknown):
        drive(verbs.save(made, session), *[LOST] * 100_000)
    assert session.unanswered is not None
    session["n"] += 5
    commit = drive(verbs.save(made, session), applied, fine)
    assert session["n"] == 7
    assert commit.version == 3
    assert terms(seen[0]).id != terms(seen[1]).id
    assert not session.modified
    assert session.unanswered is None


def test_saving_again_after_a_cancelled_save_finishes_the_same_commit() -> None:
    session = stored(n=1)
    session["n"] += 1
    made = settings(n=merge.counter)
    machine = verbs.save(made, session)
    first = next(machine)
    machine.close()
    assert isinstance(first, Call)

    def fine(call: Call) -> Any:
        assert call.args == first.args
        return reply(Code.OK)(call)

    assert drive(verbs.save(made, session), fine).version == 2
    assert dict(session) == {"n": 2}


def test_an_unanswered_commit_that_is_too_old_stays_unknown() -> None:
    session = stored(n=1)
    session["n"] += 1
    made = settings(timeout=0.05)
    with pytest.raises(CommitOutcomeUnknown):
        drive(verbs.save(made, session), *[LOST] * 100_000)
    for _ in range(2):
        with pytest.raises(CommitOutcomeUnknown):
            drive(verbs.save(made, session), reply(Code.LATE))


def test_what_a_newer_version_wrote_beside_ours_does_not_fail_our_commit() -> None:
    session = stored(a=1)
    session["a"] = 2
    newer = encode_frame({"b": bytes([200])}) + NOW.to_bytes(6, "big") + b"n" * 16
    commit = drive(verbs.save(settings(), session), reply(Code.OK, data=newer))
    assert commit.attempts == 1
    assert dict(session) == {"a": 2}


def test_rotations_are_not_followed_for_ever() -> None:
    session = stored(a=1)
    session["a"] = 2
    answers = [reply(Code.MOVED, data=b"{abc}:" + b"n" * 43)] * 100
    with pytest.raises(SessionConflict):
        drive(verbs.save(settings(), session), *answers)


def test_a_first_commit_asks_for_the_clock() -> None:
    made, session = settings(), Session()
    made = dataclasses.replace(made, clock=Clock())
    session["a"] = 1

    def peek(call: Call) -> Any:
        assert (call.script, call.args) == ("load", LOOK)
        return [Code.GONE, NOW, b""]

    def create(call: Call) -> Any:
        assert terms(call)[6:] == (0, b"", b"")
        return reply(Code.OK, found=0, data=blob(session.incarnation))(call)

    assert drive(verbs.save(made, session), peek, create).version == 1
    assert dict(session) == {"a": 1}


def test_pauses_have_full_jitter_and_grow() -> None:
    longest = 0.0
    for _ in range(50):
        budget = Budget(10)
        pauses = [pause.seconds for _ in range(12) if (pause := budget.pause())]
        assert pauses[0] <= 0.002
        longest = max(longest, *pauses)
    assert 0.1 < longest <= 0.25


def test_no_try_begins_without_the_time_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a refusal that lasts ends as an unknown outcome, if its last try is given 1 ms."""
    now = 0.0
    monkeypatch.setattr("asyncsession.machine.time.monotonic", lambda: now)
    for begun in range(100):
        now = 0.0
        budget = Budget(1)
        now = begun / 100
        if pause := budget.pause():
            now += pause.seconds
            assert budget.call_timeout() >= 0.06
        else:
            assert begun > 90
