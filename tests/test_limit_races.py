"""Logins that race for the last places, on real servers and in schedules drawn call by call."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from support.backends import Backend
from support.proxy import Fault, FaultProxy, seeded
from test_limit import POLICIES, USER, login, names

from asyncsession import (
    CommitOutcomeUnknown,
    Session,
    SessionError,
    SessionGone,
    SessionManager,
    StoreUnavailable,
    TooManySessions,
    principals,
    verbs,
)
from asyncsession.protocol import Call, Group, Pause, Together


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("before", [0, 2])
async def test_16_logins_at_once(real_backend: Backend, policy: Any, before: int) -> None:
    managers = [real_backend.manager(max_sessions=3, when_full=policy) for _ in range(2)]
    for _ in range(before):
        await login(managers[0], "before")
    done = await asyncio.gather(
        *(login(managers[n % 2], str(n), rotate=n % 3 == 0) for n in range(16)),
        return_exceptions=True,
    )
    live = {session.incarnation for session in await managers[0].sessions_of(USER)}
    assert len(live) == 3
    admitted = [session for session in done if isinstance(session, Session)]
    refused = [type(error) for error in done if not isinstance(error, Session)]
    if policy == "refuse":
        assert len(admitted) == 3 - before
        assert set(refused) == {TooManySessions}
        assert {session.incarnation for session in admitted} <= live
    else:
        assert len(admitted) == 16
        assert live < {session.incarnation for session in admitted}


@pytest.mark.parametrize("policy", POLICIES)
async def test_sign_out_everywhere_meanwhile(real_backend: Backend, policy: Any) -> None:
    manager = real_backend.manager(max_sessions=3, when_full=policy)
    for _ in range(8):
        ending = asyncio.create_task(manager.destroy_all(USER))
        done = await asyncio.gather(*(login(manager) for _ in range(8)), return_exceptions=True)
        await ending
        live = {session.incarnation for session in await manager.sessions_of(USER)}
        assert len(live) <= 3
        for session in done:
            if isinstance(session, Session):
                found = await manager.load(session.id)
                assert found.is_new == (session.incarnation not in live)
            else:
                assert isinstance(session, (SessionGone, TooManySessions))
        assert await manager.destroy_all(USER) == len(live)


@pytest.mark.parametrize("policy", POLICIES)
async def test_logins_over_a_faulty_network(valkey: Backend, policy: Any) -> None:
    """Lost, repeated and late messages, and every login is tried until its outcome is known."""
    assert valkey.port
    options: Any = {"max_sessions": 3, "when_full": policy}
    faults = (Fault.CUT, Fault.SWALLOW, Fault.DROP, Fault.TWICE, Fault.LATE)
    direct = valkey.manager(**options)
    async with FaultProxy(valkey.port, seeded(7, 0.2, faults)) as proxy:

        async def persist(number: int) -> Session | None:
            manager = valkey.manager(proxy.url, timeout=0.8, **options)
            session = await direct.load()
            session["name"], session.principal = str(number), USER
            while True:
                try:
                    await manager.save(session)
                except (CommitOutcomeUnknown, StoreUnavailable):
                    continue
                except (SessionGone, TooManySessions):
                    return None
                return session

        async with asyncio.timeout(60):
            done = await asyncio.gather(*map(persist, range(12)))
        await proxy.drained()
        assert proxy.faults.total() > 5
    live = {session.incarnation for session in await direct.sessions_of(USER)}
    admitted = {session.incarnation for session in done if session is not None}
    assert 1 <= len(live) <= 3, "two whose confirmations were repeated may see each other"
    assert admitted == live if policy == "refuse" else live <= admitted


async def test_two_tabs_that_log_in_at_once_count_once(real_backend: Backend) -> None:
    manager = real_backend.manager(max_sessions=1, when_full="refuse")
    for _ in range(5):
        session = await manager.load()
        session["name"] = "tab"
        await manager.save(session)
        tabs = [await manager.load(session.id) for _ in range(4)]
        for tab in tabs:
            tab.principal = USER
        await asyncio.gather(*map(manager.rotate, tabs))
        assert await names(manager) == ["tab"]
        assert await manager.destroy_all(USER) == 1


class Stepper:
    """A machine that is carried through call by call, as a schedule wants it."""

    def __init__(self, machine: Group[Any]) -> None:
        self._machine = machine
        self._parts: list[Stepper] = []
        self._call: Call | None = None
        self.is_done = False
        self.result: Any = None
        self._go(lambda: next(machine))

    def _go(self, on: Callable[[], Any]) -> None:
        try:
            step = on()
            while isinstance(step, Pause):
                step = self._machine.send(None)
        except StopIteration as stop:
            self.is_done, self.result = True, stop.value
        except SessionError as error:
            self.is_done, self.result = True, error
        else:
            self._call = step if isinstance(step, Call) else None
            self._parts = list(map(Stepper, step.machines)) if isinstance(step, Together) else []

    async def step(self, manager: SessionManager, rng: random.Random) -> None:
        if self._call is not None:
            reply = await manager._transport.call(self._call)
            self._go(lambda: self._machine.send(reply))
            return
        if waiting := [part for part in self._parts if not part.is_done]:
            await rng.choice(waiting).step(manager, rng)
        if all(part.is_done for part in self._parts):
            results = [part.result for part in self._parts]
            self._go(lambda: self._machine.send(results))


async def any_schedule(backend: Backend, seed: int, policy: Any) -> None:
    """Logins, rotations, sign-outs and listings, interleaved call by call."""
    rng = random.Random(f"{seed} {policy}")
    limit, logins = rng.choice([1, 2, 3]), rng.randint(2, 6)
    manager = backend.manager(prefix=f"{backend.prefix}:{seed}", max_sessions=limit,
                              when_full=policy, timeout=10)  # fmt: skip
    made, before = manager._settings, rng.randint(0, limit)
    todo: list[tuple[Session | None, Callable[[], Any]]] = []
    for number in range(logins):
        session = await manager.load()
        if number % 2:
            session["cart"] = 1
            await manager.save(session)
        session.principal = USER
        verb = rng.choice([verbs.save, verbs.rotate])
        todo.append((session, partial(verb, made, session)))
    is_counted = True
    for _ in range(before):
        session = await login(manager)
        if policy == "refuse" and rng.random() < 0.3:
            todo.append((session, partial(verbs.rotate, made, session)))
        elif rng.random() < 0.2:
            is_counted = False
            todo.append((None, partial(verbs.destroy, made, session)))
    if rng.random() < 0.3:
        todo.append((None, partial(principals.sessions_of, made, USER)))
    if rng.random() < 0.2:
        is_counted = False
        todo.append((None, partial(principals.destroy_all, made, USER)))
    rng.shuffle(todo)
    running: list[tuple[Session | None, Stepper]] = []
    ended: list[tuple[Session | None, Stepper]] = []
    while todo or running:
        if todo and (not running or rng.random() < 0.4):
            session_, begin = todo.pop()
            running.append((session_, Stepper(begin())))
        else:
            await rng.choice(running)[1].step(manager, rng)
        ended += [one for one in running if one[1].is_done]
        running = [one for one in running if not one[1].is_done]
    live = {session.incarnation for session in await manager.sessions_of(USER)}
    assert len(live) <= limit
    if is_counted:
        assert len(live) == min(limit, before + logins)
    for session_, stepper in ended:
        if isinstance(stepper.result, SessionError):
            assert isinstance(stepper.result, (TooManySessions, SessionGone))
            assert session_ is None or session_.incarnation not in live
        elif session_ is not None and policy == "refuse" and is_counted:
            assert session_.incarnation in live, "who was admitted stays"
    await manager.destroy_all(USER)


async def many_schedules(backend: Backend, policy: str) -> None:
    for seed in range(150):
        await any_schedule(backend, seed, policy)


@pytest.mark.parametrize("policy", POLICIES)
async def test_any_schedule(valkey: Backend, policy: str) -> None:
    await many_schedules(valkey, policy)


def only_before(self: principals._Index, *args: Any, **options: Any) -> Any:
    is_counted = options.get("is_counted", False) and args[0] == "join"
    return ADD(self, *args, **options | {"is_counted": is_counted})


def with_pending(self: principals._Index, *args: Any) -> list[principals._Entry]:
    return [entry._replace(is_joining=False) for entry in ENTRIES(self, *args)]


def keep(self: principals._Index, entry: principals._Entry) -> Group[None]:
    yield from ()


ADD, ENTRIES = principals._Index.add, principals._Index.entries
MUTANTS: dict[str, tuple[str, list[tuple[Any, str, Any]]]] = {
    "refuse without looking after the commit": (
        "refuse",
        [(principals._Index, "add", only_before)],
    ),
    "end_oldest without looking after the commit": (
        "end_oldest",
        [(principals._Index, "add", only_before)],
    ),
    "pending ones count": (
        "refuse",
        [(principals._Index, "entries", with_pending), (principals._Index, "drop", keep)],
    ),
    "nobody keeps a place": (
        "refuse",
        [(Session, "is_newcomer", property(lambda _: True, lambda *_: None))],
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
async def test_mutants_are_caught(
    valkey: Backend, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each rule is needed: without it some schedule fails."""
    policy, patches = MUTANTS[name]
    for owner, attribute, mutant in patches:
        monkeypatch.setattr(owner, attribute, mutant, raising=False)
    with pytest.raises(AssertionError):
        await many_schedules(valkey, policy)
