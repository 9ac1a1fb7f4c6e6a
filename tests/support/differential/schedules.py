"""Schedules: drawn by seed, played in all worlds at once, and shortened where these differ."""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

from support.differential.changes import some_changes, some_keys
from support.differential.steps import STEPS, Meanwhile, Step, begin, end, told
from support.differential.worlds import KINDS, Fate, Stage, World

__all__ = ["Differs", "Schedule", "drawn", "explore", "play", "shortened"]

_LENGTH = 40
_SIZES = (0, 0, 0, 2000, 5000, 6000, 20_000, 60_000)  # bytes that stay as they are
_NUMBERS = (0, 0, 0, 1, 1, 2, 3, 5)
_MANAGERS = (0, 0, 0, 1, 1, 2)
_MEANWHILE = ("", "", "commit", "commit", "commit", "many", "rotate", "destroy", "back")
_prefixes = (f"twins{number}" for number in itertools.count())


class Differs(AssertionError):
    """The worlds are not alike."""


class Schedule(NamedTuple):
    """What is played.

    Attributes:
        size: of what the first session keeps all the time, bytes.
        keys: that are changed.
        steps: one after the other.
    """

    size: int
    keys: tuple[str, ...]
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        lines = [f"Schedule({self.size}, {self.keys}, (", *(f"    {it}," for it in self.steps)]
        return "\n".join([*lines, "))"])


def drawn(seed: int) -> Schedule:
    """Return the schedule of a seed."""
    chance = random.Random(seed)
    size, keys = chance.choice(_SIZES), some_keys(chance)
    weights = [weight for weight, _ in STEPS.values()]
    names = chance.choices(list(STEPS), weights, k=_LENGTH)
    return Schedule(size, keys, tuple(_step(chance, name) for name in names))


def _step(chance: random.Random, name: str) -> Step:
    beside = Meanwhile(
        chance.choice(_MEANWHILE),
        chance.choice((*_MANAGERS, 3)),
        chance.random() < 0.4,
        some_changes(chance, 2),
        some_changes(chance, 2) if chance.random() < 0.4 else (),
    )
    return Step(
        name,
        chance.choice(_NUMBERS),
        chance.choice(_MANAGERS),
        some_changes(chance),
        chance.choice(list(Fate)) if chance.random() < 0.3 else Fate.ANSWERED,
        beside if chance.random() < 0.3 else None,
        chance.choice((None, "user:1", "user:1", "user:2")),
        look=chance.random() < 0.5,
        other=chance.random() < 0.3,
    )


def play(stage: Stage, schedule: Schedule, kinds: tuple[str, ...] = tuple(KINDS)) -> None:
    """Play a schedule.

    Args:
        stage: with the server.
        schedule: what to play.
        kinds: of the worlds; the others are compared with the first.

    Raises:
        Differs: they are not alike.
    """
    prefix = next(_prefixes)
    worlds = [World(stage, name, prefix, schedule.size, schedule.keys) for name in kinds]
    try:
        _compare(worlds, "begin", begin)
        for number, step in enumerate(schedule.steps):
            perform = STEPS[step.name][1]
            _compare(worlds, f"step {number}, {step}", lambda world: perform(world, step))  # noqa: B023
        _compare(worlds, "end", end)
    finally:
        stage.clear(prefix)


def _compare(worlds: list[World], what: str, act: Callable[[World], Awaitable[Any]]) -> None:
    first, *others = worlds
    expected = _run(first, what, act)
    for world in others:
        found = _run(world, what, act)
        if found != expected or len(world.ids) != len(first.ids):
            raise Differs(f"{what}\n{first.name}: {expected}\n{world.name}: {found}")


def _run(world: World, what: str, act: Callable[[World], Awaitable[Any]]) -> Any:
    try:
        return world.run(told(world, act(world)))
    except Differs:
        raise
    except Exception as error:
        raise Differs(f"{what}\n{world.name}: {error!r}") from error


def shortened(schedule: Schedule, is_wrong: Callable[[Schedule], bool]) -> Schedule:
    """Return a schedule that is wrong as well, and from which nothing can be taken away.

    Args:
        schedule: a wrong one.
        is_wrong: tells.
    """
    is_shorter = True
    while is_shorter:
        is_shorter = False
        for simpler in _simpler(schedule):
            if is_wrong(simpler):
                schedule, is_shorter = simpler, True
                break
    return schedule


def _simpler(schedule: Schedule) -> Iterator[Schedule]:
    """Yield schedules with something less, those with much less first."""
    steps = schedule.steps
    length = len(steps) // 2
    while length:
        for at in range(len(steps) - length, -1, -length):
            yield schedule._replace(steps=steps[:at] + steps[at + length :])
        length //= 2
    for number, step in enumerate(steps):
        for other in _plainer(step):
            yield schedule._replace(steps=(*steps[:number], other, *steps[number + 1 :]))
    if schedule.size:
        yield schedule._replace(size=0)


def _plainer(step: Step) -> Iterator[Step]:
    for field, default in Step._field_defaults.items():
        if getattr(step, field) != default:
            yield step._replace(**{field: default})
    for at in range(len(step.todo)):
        yield step._replace(todo=step.todo[:at] + step.todo[at + 1 :])
    if step.beside is not None:
        for field, default in Meanwhile._field_defaults.items():
            if getattr(step.beside, field) != default:
                yield step._replace(beside=step.beside._replace(**{field: default}))


def explore(stage: Stage, seeds: range, kinds: tuple[str, ...] = tuple(KINDS)) -> None:
    """Play the schedules of some seeds.

    Raises:
        Differs: with the seed, and the shortest schedule that could be found.
    """
    for seed in seeds:
        try:
            play(stage, drawn(seed), kinds)
        except Differs as difference:
            shortest, reason = _shortest(stage, drawn(seed), difference, kinds)
            command = f"python -m support.differential --seed {seed} --schedules 1"
            message = f"seed {seed} ({command}): {shortest}\n{reason}"
            raise Differs(message) from difference


def _shortest(
    stage: Stage, schedule: Schedule, reason: Differs, kinds: tuple[str, ...]
) -> tuple[Schedule, Differs]:
    def is_wrong(tried: Schedule) -> bool:
        nonlocal reason
        try:
            play(stage, tried, kinds)
        except Differs as difference:
            reason = difference
            return True
        return False

    return shortened(schedule, is_wrong), reason
