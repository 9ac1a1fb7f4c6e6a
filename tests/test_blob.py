"""The blob: a log means the same however it is folded, and broken ones are refused."""

from __future__ import annotations

from itertools import chain, pairwise, permutations, zip_longest
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.compiled import copy_of, only_interpreted
from support.logs import (
    CREATED,
    DEADLINE,
    HEADER,
    INCARNATION,
    History,
    blob,
    commit_id,
    compact,
    frame,
    header,
    histories,
    meaning,
    set_,
    small_values,
)  # fmt: skip
from support.strategies import image, values

from asyncsession import delta as delta_module
from asyncsession import log as log_module
from asyncsession.blob import encode_frame, encode_payload, key_tag, scan
from asyncsession.delta import Op, diff, encode, fold
from asyncsession.log import Log
from asyncsession.operations import MISSING
from asyncsession.values import pack, unpack


def frames_of(stored: bytes) -> list[bytes]:
    ends = [HEADER, *(HEADER + end for _, _, end in scan(stored[HEADER:]))]
    assert ends[-1] == len(stored)
    return [stored[begin:end] for begin, end in pairwise(ends)]


@given(histories(), st.data())
@settings(max_examples=150)
def test_folding_a_log_is_applying_it_step_by_step(history: History, data: st.DataObject) -> None:
    """Also when keys are read in between, which folds their deltas for good."""
    log = Log.parse(header())
    for serial, changes in enumerate(history.commits, 1):
        log = log.extended(frame(changes, serial))
        state = history.states[serial]
        for key in data.draw(st.sets(st.sampled_from("abcd"))):
            value = log.value(key)
            assert image(value) == image(state.get(key, MISSING))
            assert (key in log) == (key in state)
            if key in log:
                assert log.packed(key) == pack(value)
    whole = Log.parse(history.blob())
    assert sorted(whole.keys()) == sorted(history.states[-1])
    assert meaning(whole) == meaning(log)
    assert meaning(whole)[0] == image(history.states[-1])
    assert whole.length == log.length == len(history.blob()) - HEADER
    assert whole.version == log.version == whole.frames == log.frames == len(history.commits)
    assert whole.tip == (commit_id(len(history.commits)) if history.commits else b"")


@given(histories(), st.data())
@settings(max_examples=150)
def test_compaction_never_changes_what_a_log_means(history: History, data: st.DataObject) -> None:
    """Wherever it is done, by a reader who had read some keys, once or again."""
    stored, count = history.blob(), len(history.commits)
    expected = meaning(Log.parse(stored))
    for _ in range(data.draw(st.integers(1, 3))):
        frames = frames_of(stored)
        if not frames:
            break
        seen = data.draw(st.integers(1, len(frames)))
        length = sum(map(len, frames[:seen]))
        mine = Log.parse(stored[: HEADER + length])
        for key in data.draw(st.sets(st.sampled_from("abc"))):
            mine.value(key)
        before = meaning(copy_of(mine))
        compacted, payload = mine.compacted()
        stored = compact(stored, length, payload)
        mine = compacted
        assert meaning(copy_of(mine)) == before
        mine = mine.extended(b"".join(frames[seen:]))
        theirs = Log.parse(stored)
        assert meaning(mine) == meaning(theirs) == expected
        assert mine.length == theirs.length == len(stored) - HEADER
        assert mine.frames == theirs.frames == len(frames_of(stored))
        assert mine.outgrown == theirs.outgrown
        assert theirs.version == count


@given(st.lists(histories(keys="a", max_size=3), min_size=2, max_size=3))
@settings(max_examples=50)
def test_writers_of_different_keys_commute(parts: list[History]) -> None:
    """Each history is one writer's, on a key of its own."""
    commits = [[{f"{n}": one["a"]} for one in part.commits if one] for n, part in enumerate(parts)]
    images = {image_of(list(chain.from_iterable(order))) for order in permutations(commits)}
    woven = [one for step in zip_longest(*commits) for one in step if one]
    assert images == {image_of(woven)}


def image_of(commits: list[dict[str, bytes]]) -> str:
    return repr(meaning(Log.parse(blob(commits)))[0])


@given(st.lists(small_values, min_size=1, max_size=4))
def test_fold_starts_anywhere(steps: list[Any]) -> None:
    deltas = [delta for one, two in pairwise(steps) if (delta := diff(one, two))]
    assert image(fold(deltas, steps[0])) == image(steps[-1])
    assert fold([]) is MISSING


def test_header_and_frames() -> None:
    log = Log.parse(blob([{"a": set_(1)}, {"b": set_(2), "a": encode(Op.DELETE)}]))
    assert (log.incarnation, log.created, log.deadline) == (INCARNATION, CREATED, DEADLINE)
    assert (log.version, log.frames, log.tip) == (2, 2, commit_id(2))
    assert log.stamp == CREATED + 2000
    assert log.keys() == ["b"]
    assert log.value("a") is log.value("never") is MISSING
    assert Log.parse(header(7)).version == 7
    assert Log.parse(header()).keys() == []


@given(st.dictionaries(st.text(max_size=5), st.just(set_(1)), min_size=1, max_size=20))
def test_a_frame_carries_the_tag_of_each_key(changes: dict[str, bytes]) -> None:
    raw = encode_frame(changes)
    count = int.from_bytes(raw[4:6], "big")
    assert int.from_bytes(raw[:4], "big") == len(raw) - 4 + 22
    assert [raw[6 + 8 * n : 14 + 8 * n] for n in range(count)] == list(map(key_tag, changes))
    assert raw[6 + 8 * count :] == encode_payload(changes)
    whole = frame(changes, 1)
    ((begin, end, size),) = scan(whole)
    assert whole[begin:end] == encode_payload(changes)
    assert size == len(whole)


@given(st.sets(st.text(st.characters(), max_size=6), max_size=50))
def test_key_tags_are_distinct(keys: set[str]) -> None:
    tags = {key_tag(key) for key in keys}
    assert len(tags) == len(keys)
    assert all(len(tag) == 8 for tag in tags)


@only_interpreted
def test_reading_a_key_leaves_the_others_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[bytes] = []

    def spy(packed: bytes) -> Any:
        unpacked.append(packed)
        return unpack(packed)

    first = {
        "set": set_([1]),
        "created": diff(MISSING, {"a": 1}) or b"",
        "sum": encode(Op.ADD, [1]),
    }
    stored = blob([first, {"many": set_([1])}, {"many": encode(Op.LIST, [[], [2]])}])
    log = Log.parse(stored)
    for module in (log_module, delta_module):
        monkeypatch.setattr(module, "unpack", spy)
    assert sorted(log.keys()) == ["created", "many", "set", "sum"]
    assert all(key in log for key in log.keys())  # noqa: SIM118
    assert log.packed("set") == pack([1])
    assert log.packed("created") == pack({"a": 1})
    assert unpacked == []
    assert log.value("set") == [1]
    assert unpacked == [pack([1])]
    assert log.value("many") == [1, 2]
    assert len(unpacked) == 3
    log.value("many")
    assert len(unpacked) == 4, "what was folded stays folded"
    assert log.packed("many") == pack([1, 2])
    assert len(unpacked) == 4
    log.compacted()
    log.sizes()
    assert len(unpacked) == 5, "only the counter, and once"


@pytest.mark.parametrize(
    "delta",
    [
        encode(Op.PATCH, {"sub": set_(1)}),
        encode(Op.LIST, [[1], []]),
        encode(Op.UNION, [[1], []]),
    ],
)
def test_a_change_to_nothing_is_no_value(delta: bytes) -> None:
    log = Log.parse(blob([{"a": delta}, {"b": set_(1)}, {"b": encode(Op.DELETE)}, {"b": delta}]))
    assert log.keys() == []
    assert "a" not in log
    assert log.value("b") is MISSING
    assert log.compacted()[1] == encode_payload({})


def test_values_are_unpacked_anew() -> None:
    log = Log.parse(blob([{"a": set_([1])}, {"a": encode(Op.LIST, [[], [[2]]])}]))
    first = log.value("a")
    first[1].append("changed")
    assert log.value("a") == log.value("a") == [1, [2]]
    assert log.value("a") is not log.value("a")


@given(histories(), histories())
@settings(max_examples=30)
def test_a_log_is_never_changed(history: History, more: History) -> None:
    """Whatever is made of it: sessions of a process share it."""
    log = Log.parse(history.blob())
    later, before = log, meaning(copy_of(log))
    for serial, changes in enumerate(more.commits, 100):
        one = frame(changes, serial)
        own = later.appended(changes, one)
        later = later.extended(one)
        assert meaning(copy_of(own)) == meaning(copy_of(later))
    later.compacted()[0].extended(frame({"a": set_(1)}, 200))
    log.seen(log.stamp + 1).extended(frame({"a": set_(2)}, 201))
    log.detached().appended({"a": set_(3)}, frame({"a": set_(3)}, 202))
    assert meaning(log) == before
    assert log.length == len(history.blob()) - HEADER


def test_outgrown() -> None:
    log = Log.parse(blob([{"a": set_("x" * 5000)}]))
    for serial in range(2, 33):
        log = log.extended(frame({"b": set_(1)}, serial))
        assert not log.outgrown
    log = log.extended(frame({"b": set_(1)}, 33))
    assert log.outgrown, "by frames"
    log, _ = log.compacted()
    assert not log.outgrown
    log = log.extended(frame({"b": set_("y" * 6000)}, 34))
    assert log.outgrown, "by bytes"


@given(st.dictionaries(st.text(max_size=20), values, max_size=4))
@settings(max_examples=50)
def test_sizes_add_up_to_about_the_snapshot(state: dict[str, Any]) -> None:
    log = Log.parse(blob([{key: set_(value) for key, value in state.items()}]))
    total = sum(log.sizes().values())
    assert total - 10 * len(state) <= len(log.compacted()[1]) <= total + 10
    assert set(log.sizes()) == set(state)
