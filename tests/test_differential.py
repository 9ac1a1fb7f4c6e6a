"""Nobody can tell what managers remember, nor whether they are awaited: a differential test.

See tests/support/differential; docs/trust.md has the command for a long run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.differential.changes import Change
from support.differential.schedules import Differs, Schedule, drawn, explore, play, shortened
from support.differential.steps import STEPS, Meanwhile, Step
from support.differential.worlds import Fate, Stage, Way
from support.servers import Server

from asyncsession.protocol import Call

SEEDS = range(1, 15)


@pytest.fixture(scope="module")
def stage(get_server: Callable[[str], Server]) -> Iterator[Stage]:
    with Stage(get_server("valkey9").port) as opened:
        yield opened


def test_worlds_are_alike(stage: Stage) -> None:
    explore(stage, SEEDS)


@pytest.mark.soak
@pytest.mark.parametrize("first", range(1000, 10_000, 1000))
def test_many_worlds_are_alike(stage: Stage, first: int) -> None:
    explore(stage, range(first, first + 400))


def test_a_world_that_is_not_alike_is_told_apart(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes what it remembers for what is stored."""
    call = Way.call

    async def deaf(self: Way, asked: Call) -> Any:
        reply = await call(self, asked)
        is_known = asked.script == "load" and isinstance(reply, bytes) and reply[:1] == b"+"
        return reply[:7] if is_known else reply  # without the frames that came since

    monkeypatch.setattr(Way, "call", deaf)
    differing = 0
    for seed in SEEDS[:6]:
        try:
            play(stage, drawn(seed), ("forgetful", "remembering"))
        except Differs:
            differing += 1
    assert differing > 2


def test_a_seed_makes_a_schedule() -> None:
    assert drawn(1) == drawn(1) != drawn(2)
    schedules = [drawn(seed) for seed in range(100)]
    assert {step.name for one in schedules for step in one.steps} == set(STEPS)
    assert {step.fate for one in schedules for step in one.steps} == set(Fate)


def test_what_is_wrong_is_shortened() -> None:
    """To what is wrong about it, as a program that can be played."""
    beside = Meanwhile("commit", 1, True, (Change(0, 1, 2),), (Change(3, 4, 5),))
    wrong = [
        Step("load", which=1, manager=2, look=True, other=True),
        Step("save", todo=(Change(0, 1, 2), Change(1, 0, 0)), beside=beside, fate=Fate.CUT),
    ]
    others = drawn(1).steps
    schedule = Schedule(20_000, ("count", "text"), (*others, wrong[0], *others, wrong[1], *others))

    def is_wrong(tried: Schedule) -> bool:
        has_loaded = False
        for step in tried.steps:
            has_loaded = has_loaded or (step.name == "load" and step.manager == 2)
            is_met = step.beside is not None and step.beside.is_late
            if has_loaded and step.name == "save" and is_met and Change(1, 0, 0) in step.todo:
                return True
        return False

    shortest = shortened(schedule, is_wrong)
    load, save = Step("load", manager=2), Step("save", todo=(Change(1, 0, 0),))
    assert shortest == Schedule(
        0, schedule.keys, (load, save._replace(beside=Meanwhile(is_late=True)))
    )
    names = {"Schedule": Schedule, "Step": Step, "Meanwhile": Meanwhile, "Change": Change}
    for one in (shortest, schedule):
        assert eval(str(one), {**names, "Fate": Fate}) == one


def test_a_commit_that_a_snapshot_bears_the_id_of_is_told_of_alike(stage: Stage) -> None:
    """Its answer is lost, and a rotation folds the log while it is the latest in there."""
    steps = (
        Step("save", todo=(Change(0, 5, 0),)),
        Step("load"),
        Step("save", which=1, todo=(Change(0, 5, 1),)),
        Step(
            "save",
            todo=(Change(0, 5, 3), Change(1, 2, 9)),
            fate=Fate.UNANSWERED,
            look=True,
            beside=Meanwhile("rotate", is_late=True, todo=(Change(0, 5, 2),)),
        ),
    )
    play(stage, Schedule(0, ("nested", "text"), steps))


def test_a_dropped_change_is_shown_alike_where_the_session_was_rotated_away(stage: Stage) -> None:
    """Who remembers more learns that it was dropped; of whom knows less, it has been folded away.

    The number is added to what has become a dict, the answer is lost, and then come the rotation,
    which folds the log, and the next try.
    """
    steps = (
        Step("load"),
        Step("save", todo=(Change(0, 1, 8), Change(1, 2, 9))),
        Step(
            "save",
            which=1,
            todo=(Change(0, 4, 3),),
            fate=Fate.UNANSWERED,
            look=True,
            beside=Meanwhile("rotate", is_late=True),
        ),
    )
    play(stage, Schedule(0, ("count", "text"), steps))
