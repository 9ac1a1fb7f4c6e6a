"""A process of clients: tasks on a `SessionManager`, or threads on a `SyncSessionManager`."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection, wait
from random import Random
from typing import Any

import pytest

from asyncsession import SessionManager, SyncSessionManager
from support import mutants
from support.chaos.client import POLICIES, Client, Diary, Do, Interrupted
from support.chaos.plan import Plan

__all__ = ["PREFIX", "Report", "SharedBoard", "main"]

PREFIX = "chaos"

Report = Diary | str
"""What a process sends when it has ended: what its clients did, or the traceback of a failure."""

_RECORD = 96  # bytes of a board's record, which are a name, a space and an id
_LANES = 8  # managers for tasks in a process, each with a connection of its own
_CONNECTIONS = 16  # of a manager for threads
_CANCELLED = 0.03  # of the calls of tasks
_TURNS = 24  # of the event loop: most calls have been answered by then
_LATEST = 0.02  # seconds after which a call is cancelled that is given time
_HOURS = 48


class SharedBoard:
    """A board in memory that processes share."""

    def __init__(self, slots: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._records: Any = context.Array(ctypes.c_char, slots * _RECORD)

    def get(self, slot: int) -> tuple[str, str]:
        """Return a session's name and its id."""
        at = slot * _RECORD
        with self._records.get_lock():
            record = self._records[at : at + _RECORD]
        name, _, session_id = record.rstrip(b"\0").decode().partition(" ")
        return name, session_id

    def put(self, slot: int, name: str, session_id: str) -> None:
        """Put a session there."""
        at = slot * _RECORD
        with self._records.get_lock():
            self._records[at : at + _RECORD] = f"{name} {session_id}".encode().ljust(_RECORD, b"\0")


def main(
    plan: Plan, number: int, url: str, board: SharedBoard, progress: Any, pipe: Connection
) -> None:
    """Run the clients of process `number`, and send a `Report`.

    Args:
        plan: of the run.
        number: from 0.
        url: of the store.
        board: the sessions that all share.
        progress: an array of how many commits each process was acknowledged.
        pipe: for the report.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        _prepare(plan, number, patch)
        crew = _Crew(plan, number, board, progress)
        try:
            if number % 2:
                crew.run_threads(url)
            else:
                asyncio.run(crew.run_tasks(url))
        except BaseException:
            pipe.send(traceback.format_exc())
        else:
            crew.diary.note = _nothing  # which cannot be sent
            pipe.send(crew.diary)


def _prepare(plan: Plan, number: int, patch: pytest.MonkeyPatch) -> None:
    if plan.mutant:
        mutants.apply(plan.mutant, patch)
    if plan.kept_ids:
        kept = f"local KEPT_IDS = {plan.kept_ids}"
        mutants.rewrite(patch, "commit", "local KEPT_IDS = 1024", kept)
    if "exhausted" in plan.faults and number == 0:
        patch.setattr("asyncsession.transport.link._MAX_WAITING", 2)
    if "clock" in plan.faults:
        skew = plan.random(f"clock {number}").uniform(-_HOURS, _HOURS) * 3600
        real = time.time
        patch.setattr(time, "time", lambda: real() + skew)


class _Crew:
    def __init__(self, plan: Plan, number: int, board: SharedBoard, progress: Any) -> None:
        self._plan = plan
        self._number = number
        self._progress = progress
        self.diary = Diary(self._note)
        self._clients = [
            Client(
                f"{number:02}{client:02}",
                self._random(f"client {client}"),
                board,
                plan.sessions,
                plan.longest,
                self.diary,
            )
            for client in range(plan.clients)
        ]

    def _random(self, purpose: str) -> Random:
        return self._plan.random(f"{self._number} {purpose}")

    def _note(self) -> None:
        self._progress[self._number] += 1

    def _is_done(self) -> bool:
        done: int = sum(self._progress)
        return done >= self._plan.commits

    def _options(self) -> dict[str, Any]:
        return {"prefix": PREFIX, "merge": POLICIES, "timeout": self._plan.timeout}

    async def run_tasks(self, url: str) -> None:
        """Run the clients as tasks."""
        managers = [SessionManager(url, **self._options()) for _ in range(_LANES)]
        async with asyncio.TaskGroup() as group:
            for number, client in enumerate(self._clients):
                chance = self._random(f"cancelling {number}")
                group.create_task(self._task(client, managers[number % _LANES], chance))
        for manager in managers:
            await manager.aclose()

    async def _task(self, client: Client, manager: SessionManager, chance: Random) -> None:
        cancelled = _CANCELLED if "cancel" in self._plan.faults else 0
        work = client.work(self._is_done)
        go_on: Callable[[], Do] = partial(next, work)
        while (step := _step(go_on)) is not None:
            try:
                if step.verb == "wait":
                    reply = await asyncio.sleep(*step.args)
                else:
                    reply = getattr(manager, step.verb)(*step.args)
                    reply = await (_cut(reply, chance) if chance.random() < cancelled else reply)
            except Exception as error:  # the client knows which may come
                go_on = partial(work.throw, error)
            else:
                go_on = partial(work.send, reply)

    def run_threads(self, url: str) -> None:
        """Run the clients as threads."""
        with (
            SyncSessionManager(url, connections=_CONNECTIONS, **self._options()) as manager,
            ThreadPoolExecutor(len(self._clients)) as threads,
        ):
            running = [threads.submit(self._thread, one, manager) for one in self._clients]
            for thread in running:
                thread.result()

    def _thread(self, client: Client, manager: SyncSessionManager) -> None:
        work = client.work(self._is_done)
        go_on: Callable[[], Do] = partial(next, work)
        while (step := _step(go_on)) is not None:
            call = time.sleep if step.verb == "wait" else getattr(manager, step.verb)
            try:
                reply = call(*step.args)
            except Exception as error:  # as above
                go_on = partial(work.throw, error)
            else:
                go_on = partial(work.send, reply)


def _step(go_on: Callable[[], Do]) -> Do | None:
    """Return what a client asks for next, or None if it has ended."""
    try:
        return go_on()
    except StopIteration:
        return None


async def _cut(call: Coroutine[Any, Any, Any], chance: Random) -> Any:
    """Await a call, and cancel it after some turns of the loop or after some time."""
    task = asyncio.create_task(call)
    if chance.random() < 0.5:
        for _ in range(chance.randrange(_TURNS)):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(chance.uniform(0, _LATEST))
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        raise Interrupted from None


def _nothing() -> None:
    return None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
