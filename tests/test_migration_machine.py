"""The machine that takes sessions over, by hand: no store, no loop, answers as a test wants."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

import pytest

from asyncsession import StoreUnavailable, adoption
from asyncsession.blob import HEADER_BYTES, Kind, encode_frame, head
from asyncsession.delta import Op, encode
from asyncsession.ids import is_session_id
from asyncsession.machine import Settings
from asyncsession.merge import Policies, three_way
from asyncsession.migration import AiohttpSession, DjangoRedis, FlaskSession, Starsessions
from asyncsession.protocol import Call, Code, Lost, Pause, Refused

T = TypeVar("T")
NOW = 1_800_000_000_000
PEER_ID = "a" * 32
URL = "redis://127.0.0.1:1/0"  # not asked
AWAY = Refused("down", passing=True)
MARK = b"aS\x01A" + b"s" * 32


def settings(timeout: float = 5) -> Settings:
    return Settings("s", 60, 600, 4096, timeout, Policies({}, three_way))


def machine(made: Settings) -> Generator[Any, Any, Any]:
    return adoption.load_through(made, Starsessions(URL), PEER_ID)


def drive(running: Generator[Any, Any, T], *answers: Any) -> T:
    """Answer a machine's calls, or fail them by what an answer raises; do not wait for pauses."""
    script = iter(answers)
    try:
        step = next(running)
        while True:
            if isinstance(step, Pause):
                step = running.send(None)
                continue
            try:
                reply = next(script)(step)
            except (Lost, Refused) as fault:
                step = running.throw(fault)
            else:
                step = running.send(reply)
    except StopIteration as stop:
        assert next(script, None) is None, "answers are left over"
        result: T = stop.value
        return result


def no_mark(call: Call) -> Any:
    assert (call.script, len(call.keys), call.args) == ("adopt", 1, (MARK[:4],))
    return [Code.GONE, NOW, b""]


def original(call: Call) -> Any:
    assert (call.script, call.keys) == ("original", (f"starsessions.{PEER_ID}",))
    return [Code.OK, NOW + 10**9, [b'{"a": 1}', 5000]]


def adopted(call: Call) -> Any:
    assert (call.script, len(call.keys)) == ("adopt", 2)
    return [Code.OK, NOW, call.args[0]]


def failing(fault: Lost | Refused) -> Any:
    def fail(call: Call) -> Any:
        raise fault

    return fail


def gone(call: Call) -> Any:
    assert call.script == "load"
    return [Code.GONE, NOW, b""]


def test_the_clock_of_their_server_is_not_taken_for_ours() -> None:
    made = settings()

    def adopt(call: Call) -> Any:
        assert NOW - 1 <= call.args[7] <= NOW + 10_000  # type: ignore[operator]
        return adopted(call)

    drive(machine(made), no_mark, original, adopt, gone)
    assert made.clock.now() < NOW + 10_000  # type: ignore[operator]


def test_late_begins_anew_with_the_time_that_it_was_told() -> None:
    """The clock of our server was set between two calls."""
    seen: list[Any] = []

    def late(call: Call) -> Any:
        seen.append(call.args)
        return [Code.LATE, NOW + 3_600_000, b""]

    def adopt(call: Call) -> Any:
        seen.append(call.args)
        return adopted(call)

    drive(machine(settings()), no_mark, original, late, adopt, gone)
    first, second = seen
    assert first[:7] == second[:7]
    assert second[7] - first[7] >= 3_599_000


def test_late_for_ever_ends_at_the_deadline() -> None:
    late = [lambda _: [Code.LATE, NOW, b""]] * 100_000
    with pytest.raises(StoreUnavailable):
        drive(machine(settings(0.05)), no_mark, original, *late)


def test_a_lost_answer_is_asked_for_again_in_the_same_words() -> None:
    seen: list[Call] = []

    def lost(call: Call) -> Any:
        seen.append(call)
        raise Lost("x")

    def other(call: Call) -> Any:
        """Another request was faster."""
        seen.append(call)
        return [Code.OK, NOW, MARK]

    def load(call: Call) -> Any:
        seen.append(call)
        return gone(call)

    drive(machine(settings()), no_mark, original, lost, other, load)
    first, again, loading = seen
    assert again[:3] == first[:3]
    assert loading.keys != again.keys[1:], "its mark counts, and not ours"


@pytest.mark.parametrize("failure", [Lost("x"), AWAY])
@pytest.mark.parametrize("answered", range(4))
def test_no_answer_is_unavailable_and_never_unknown(failure: Lost | Refused, answered: int) -> None:
    answers = [no_mark, original, adopted][:answered]
    with pytest.raises(StoreUnavailable):
        drive(machine(settings(0.05)), *answers, *[failing(failure)] * 100_000)


def test_no_step_waits_for_longer_than_the_operation_has(monkeypatch: pytest.MonkeyPatch) -> None:
    now, seconds = 1000.0, 4.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log = encode_frame({"a": encode(Op.SET, 1)}) + NOW.to_bytes(6, "big") + b"i" * 16
    live = head(Kind.LIVE, b"incarnat") + NOW.to_bytes(6, "big") + (NOW + 10**6).to_bytes(6, "big")
    live += bytes(HEADER_BYTES - len(live)) + log
    waits: list[float] = []

    def slow(answer: Any) -> Any:
        def answered(call: Call) -> Any:
            nonlocal now
            waits.append(call.timeout)
            assert call.timeout <= max(1000.0 + seconds - now, 0.001)
            now += 1.2
            return answer(call)

        return answered

    running = adoption.load_through(
        settings(seconds), Starsessions(URL, principal=lambda data: "user:1"), PEER_ID
    )
    answers = [no_mark, original, adopted, lambda _: [Code.OK, NOW, live]]
    with pytest.raises(StoreUnavailable):
        drive(running, *map(slow, answers), *[slow(failing(AWAY))] * 1000)
    assert len(waits) > len(answers)


def test_ids_are_ours_and_differ_by_mark_library_and_key() -> None:
    made = settings()
    sources = [
        Starsessions(URL),
        Starsessions(URL, prefix="other."),
        AiohttpSession(URL, cookie_name="starsessions"),
        FlaskSession(URL, prefix="starsessions."),
        DjangoRedis(URL, prefix="starsessions."),
    ]
    places = [adoption._Place(made, source, PEER_ID) for source in sources]
    marks = [MARK, MARK[:-1] + b"t"]
    ids = {place.session_id(mark) for place in places for mark in marks}
    assert len(ids) == 10
    assert all(map(is_session_id, ids))
    assert len({place.mark for place in places}) == 5
    for place in places:
        slot = place.session_id(MARK)[:3]
        assert place.mark.startswith(f"s:{{{slot}}}:was:"), "one slot of Redis Cluster"
        assert PEER_ID not in place.mark
