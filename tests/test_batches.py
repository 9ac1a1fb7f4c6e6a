"""Commits of one session that meet in a process go together; each is told what became of it."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from support.backends import Backend
from support.proxy import Fault, FaultProxy, is_script
from support.servers import Server

from asyncsession import CommitOutcomeUnknown, Session, SessionManager, StoreUnavailable, merge
from asyncsession.outcome import Commit
from asyncsession.protocol import Call, Lost, Refused
from asyncsession.transport import batches
from asyncsession.transport.batches import Batches

COUNTER = {"n": merge.counter}


async def counting(manager: SessionManager, count: int) -> list[Session]:
    """Return a session as so many requests have loaded and changed it."""
    async with manager.session() as session:
        session["n"] = 0
    sessions = [await manager.load(session.id) for _ in range(count)]
    for number, each in enumerate(sessions):
        each["n"] += 1
        each[f"own {number}"] = True
    return sessions


def spied(manager: SessionManager, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list that takes how many commits each call carries."""
    sizes: list[int] = []
    call = manager._transport.call

    async def spy(step: Call) -> Any:
        if step.script == "commit":
            sizes.append(1 if len(step.args) < 4 else len(step.args) // 2)
        return await call(step)

    monkeypatch.setattr(manager._transport, "call", spy)
    return sizes


async def test_those_that_come_meanwhile_go_together(
    valkey: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = valkey.manager(merge=COUNTER)
    sessions = await counting(manager, 12)
    sizes = spied(manager, monkeypatch)
    commits = await asyncio.gather(*map(manager.save, sessions))
    assert sizes == [1, 11]
    assert [commit.attempts for commit in commits] == [1] * 12
    assert [commit.version for commit in commits] == list(range(2, 14)), "in the order they came"
    for number, (session, commit) in enumerate(zip(sessions, commits, strict=True)):
        assert session["n"] == number + 1
        assert commit.merged == (("n",) if number else ())
        assert set(session) == {"n"} | {f"own {other}" for other in range(number + 1)}
    assert (await manager.load(sessions[0].id))["n"] == 12


async def test_whoever_is_alone_goes_at_once(
    valkey: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = valkey.manager(merge=COUNTER)
    (session,) = await counting(manager, 1)
    others = [(await counting(manager, 1))[0] for _ in range(3)]
    sizes = spied(manager, monkeypatch)
    await asyncio.gather(*map(manager.save, [session, *others]))
    assert sizes == [1] * 4, "other sessions are none of its business"
    assert not manager._batches._queues[asyncio.get_running_loop()]._waiting


@pytest.mark.parametrize("managers", [1, 2])
async def test_counters_need_one_attempt_each(backend: Backend, managers: int) -> None:
    """Two managers are two processes, as far as they know."""
    each = [backend.manager(merge=COUNTER, timeout=10) for _ in range(managers)]
    async with each[0].session() as session:
        session["n"] = 0
    session_id = session.id
    attempts: list[int] = []

    async def count(number: int) -> None:
        manager = each[number % managers]
        for turn in range(10):
            loaded = await manager.load(session_id)
            loaded["n"] += 1
            loaded[f"own {number}"] = turn
            attempts.append((await manager.save(loaded)).attempts)

    await asyncio.gather(*map(count, range(24)))
    stored = await each[-1].load(session_id)
    assert stored["n"] == 240
    assert all(stored[f"own {number}"] == 9 for number in range(24))
    assert attempts == [1] * 240


@pytest.mark.parametrize("seed", range(4))
async def test_cancelling_one_of_them_leaves_the_others(valkey: Backend, seed: int) -> None:
    """What was cancelled was done once or not at all, and saving it again tells."""
    manager = valkey.manager(merge=COUNTER)
    rng = random.Random(seed)
    for _ in range(12):
        sessions = await counting(manager, 10)
        saves = [asyncio.create_task(manager.save(session)) for session in sessions]
        for _ in range(rng.randrange(12)):
            await asyncio.sleep(0)
        for save in rng.sample(saves, 3):
            save.cancel()
        results = await asyncio.gather(*saves, return_exceptions=True)
        assert {type(one) for one in results} - {asyncio.CancelledError} == {Commit}
        stored = await manager.load(sessions[0].id)
        assert stored["n"] == sum(f"own {number}" in stored for number in range(10))
        for number, result in enumerate(results):
            assert f"own {number}" in stored or isinstance(result, asyncio.CancelledError)
        await asyncio.gather(*map(manager.save, sessions))
        assert (await manager.load(sessions[0].id))["n"] == 10


@pytest.mark.parametrize("fault", [Fault.DROP, Fault.CUT, Fault.SWALLOW, Fault.LOST, Fault.LATE])
async def test_a_connection_that_is_lost_with_a_batch_on_it(valkey: Backend, fault: Fault) -> None:
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS, delay=0.02) as proxy:
        manager = valkey.manager(proxy.url, merge=COUNTER, timeout=1)
        for skipped in range(3):
            sessions = await counting(manager, 8)
            seen = 0

            def decide(request: list[bytes], skipped: int = skipped) -> Fault:
                nonlocal seen
                seen += is_script(request)
                return fault if is_script(request) and seen == skipped + 1 else Fault.PASS

            proxy.decide = decide
            await asyncio.gather(*map(manager.save, sessions))
            proxy.decide = lambda _: Fault.PASS
            stored = await manager.load(sessions[0].id)
            assert stored.version == 9
            assert set(stored) == {"n"} | {f"own {number}" for number in range(8)}
            assert stored["n"] == 8
        assert proxy.faults[fault] > 1


async def test_a_server_without_memory_has_done_none_of_them() -> None:
    """A refusal of the call is one of each commit, and definite."""
    server = Server("valkey9")
    await asyncio.to_thread(server.start)
    try:
        async with SessionManager(server.url, merge=COUNTER, timeout=0.3) as manager:
            sessions = await counting(manager, 6)
            await asyncio.to_thread(server.run, "CONFIG", "SET", "maxmemory", 1)
            results = await asyncio.gather(*map(manager.save, sessions), return_exceptions=True)
            assert {type(result) for result in results} == {StoreUnavailable}
            await asyncio.to_thread(server.run, "CONFIG", "SET", "maxmemory", 0)
            assert (await manager.load(sessions[0].id))["n"] == 0
            await asyncio.gather(*map(manager.save, sessions))
            assert (await manager.load(sessions[0].id))["n"] == 6
    finally:
        await asyncio.to_thread(server.close)


class Stub:
    """A transport that answers when it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[Call, asyncio.Future[Any]]] = []

    async def call(self, call: Call) -> Any:
        answer = asyncio.get_running_loop().create_future()
        self.calls.append((call, answer))
        return await answer

    async def aclose(self) -> None:
        pass

    def sizes(self) -> list[int]:
        return [len(call.args) // 2 for call, _ in self.calls]


def plain(number: int, *, timeout: float = 5, size: int = 1) -> Call:
    return Call("commit", ("key",), (b"terms %d" % number, bytes(size)), timeout)


async def begun(work: Batches, stub: Stub, calls: list[Call]) -> list[asyncio.Future[Any]]:
    tasks: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(work.call(call, stub.call)) for call in calls
    ]
    await turns()
    return tasks


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_each_is_given_its_own_reply() -> None:
    stub = Stub()
    tasks = await begun(Batches(), stub, [plain(number) for number in range(4)])
    assert stub.sizes() == [1]
    stub.calls[0][1].set_result("zero")
    await turns()
    assert stub.sizes() == [1, 3]
    assert stub.calls[1][0].args[::2] == (b"terms 1", b"terms 2", b"terms 3")
    stub.calls[1][1].set_result(["one", "two", "three"])
    assert await asyncio.gather(*tasks) == ["zero", "one", "two", "three"]


@pytest.mark.parametrize("reply", ["one", ["one"], ["one", "two", "three"], None])
async def test_a_reply_that_is_not_to_so_many_commits_is_nobodys(reply: Any) -> None:
    stub = Stub()
    tasks = await begun(Batches(), stub, [plain(number) for number in range(3)])
    stub.calls[0][1].set_result("zero")
    await turns()
    stub.calls[1][1].set_result(reply)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [str, Lost, Lost]


@pytest.mark.parametrize("fault", [Lost("x"), Refused("x", passing=False), ValueError("x")])
async def test_what_became_of_the_call_became_of_each(fault: Exception) -> None:
    stub = Stub()
    tasks = await begun(Batches(), stub, [plain(number) for number in range(3)])
    stub.calls[0][1].set_exception(Lost("of the first alone"))
    await turns()
    stub.calls[1][1].set_exception(fault)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [Lost, type(fault), type(fault)]
    assert str(results[1]) == "x"
    if isinstance(fault, Refused):
        assert {result.passing for result in results[1:]} == {False}  # type: ignore[union-attr]


async def test_a_batch_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_MOST", 3)
    stub = Stub()
    sizes = [1, 10, 10, 10, 10, 2**18, 10, 10]
    tasks = await begun(Batches(), stub, [plain(n, size=size) for n, size in enumerate(sizes)])
    for at in range(5):
        call, answer = stub.calls[at]
        answer.set_result(list(call.args[::2]) if len(call.args) > 2 else call.args[0])
        await turns()
    assert stub.sizes() == [1, 3, 1, 1, 2]
    assert await asyncio.gather(*tasks) == [b"terms %d" % number for number in range(8)]


async def test_commits_of_a_large_session_that_know_different_logs_go_apart() -> None:
    """The script would have to go through all of it for each, and hold up the server."""

    def based(number: int, length: int, tip: bytes) -> Call:
        terms = b"%50d" % number + length.to_bytes(4, "big") + tip * 28
        return Call("commit", ("key",), (terms, b"frame"), 5)

    async def sizes(length: int) -> tuple[list[int], list[int]]:
        stub = Stub()
        calls = [based(number, length, tip) for number, tip in enumerate((b"a", *[b"b", b"c"] * 4))]
        tasks = await begun(Batches(), stub, calls)
        while not all(task.done() for task in tasks):
            call, answer = stub.calls[-1]
            answer.set_result(list(call.args[::2]) if len(call.args) > 2 else call.args[0])
            await turns()
        assert [task.result() for task in tasks] == [call.args[0] for call in calls]
        sent: list[Any] = [terms for call, _ in stub.calls for terms in call.args[::2]]
        return stub.sizes(), [int(terms[:50]) for terms in sent]

    assert await sizes(1_000_000) == ([1, 4, 4], [0, 1, 3, 5, 7, 2, 4, 6, 8])
    assert await sizes(1000) == ([1, 8], list(range(9)))


@pytest.mark.parametrize("other", [
    Call("commit", ("key",), (b"terms", b"frame", b"snapshot"), 5),
    Call("commit", ("key", "new"), (b"terms", b"frame", b"", b"handle"), 5),
    Call("load", ("key",), (b"terms",), 5),
    Call("touch", ("key",), (b"head", b"idle"), 5),
])  # fmt: skip
async def test_what_is_no_plain_commit_goes_by_itself(other: Call) -> None:
    stub = Stub()
    tasks = await begun(Batches(), stub, [other, plain(0), other, other])
    assert [call for call, _ in stub.calls] == [other, plain(0), other, other]
    for _, answer in stub.calls:
        answer.set_result("done")
    assert await asyncio.gather(*tasks) == ["done"] * 4


async def test_whoever_is_out_of_time_before_it_was_sent_was_not_done() -> None:
    stub = Stub()
    tasks = await begun(Batches(), stub, [plain(0), plain(1, timeout=0.01), plain(2), plain(3)])
    with pytest.raises(Refused) as refused:
        await tasks[1]
    assert refused.value.passing
    tasks[2].cancel()
    stub.calls[0][1].set_result("zero")
    await turns()
    assert stub.calls[1][0].args == plain(3).args, "the others are not sent at all"
    stub.calls[1][1].set_result("three")
    assert await tasks[3] == "three"


@pytest.mark.parametrize("others", [0, 1])
async def test_whoever_is_out_of_time_just_before_it_is_sent_was_not_done(others: int) -> None:
    """The reply that it waited for and its own alarm come in the same turn of the loop."""
    stub, timeout = Stub(), 0.02
    work = Batches()
    late = [plain(number, timeout=timeout) for number in (1, 2)]
    tasks = await begun(work, stub, [plain(0), *late, *map(plain, range(3, 3 + others))])
    loop = asyncio.get_running_loop()
    ends = loop.time() + 2 * timeout
    while loop.time() < ends:  # a busy loop
        pass
    stub.calls[0][1].set_result("zero")
    for task in tasks[1:3]:
        with pytest.raises(Refused):
            await task
    await turns()
    assert [call.args for call, _ in stub.calls[1:]] == [plain(3).args] * others
    for _, answer in stub.calls[1:]:
        answer.set_result("three")
    await asyncio.gather(*tasks[3:])
    assert not work._queues[loop]._waiting


async def test_whoever_is_out_of_time_after_it_was_sent_may_have_been_done() -> None:
    stub = Stub()
    tasks = await begun(Batches(), stub, [plain(0), plain(1, timeout=0.05), plain(2)])
    stub.calls[0][1].set_result("zero")
    with pytest.raises(Lost):
        await tasks[1]
    assert stub.calls[1][0].timeout > 4, "the call is waited for as long as any of them is"
    stub.calls[1][1].set_result(["one", "two"])
    assert await tasks[2] == "two"


@pytest.mark.parametrize("begins", [False, True])
async def test_whoever_cancels_the_task_that_carries_them_holds_nobody_up(begins: bool) -> None:
    stub = Stub()
    work = Batches()
    tasks = await begun(work, stub, [plain(0), plain(1), plain(2)])
    before = asyncio.all_tasks()
    stub.calls[0][1].set_result("zero")
    await asyncio.sleep(0)  # the one that was sent ends; its task begins the next
    if begins:
        await turns()
    carrying = asyncio.all_tasks() - before
    assert len(carrying) == 1
    carrying.pop().cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    kind = Lost if begins else Refused
    assert [type(result) for result in results] == [str, kind, kind]
    (later,) = await begun(work, stub, [plain(3)])
    stub.calls[-1][1].set_result("three")
    assert await later == "three"


def test_a_loop_that_ended_with_commits_on_their_way_leaves_nothing_behind() -> None:
    stub = Stub()
    work = Batches()

    async def abandon() -> None:
        await begun(work, stub, [plain(0), plain(1)])

    async def go_on() -> Any:
        (task,) = await begun(work, stub, [plain(2)])
        stub.calls[-1][1].set_result("two")
        return await task

    asyncio.run(abandon())
    assert asyncio.run(go_on()) == "two"


async def test_an_unknown_outcome_is_told_to_each_and_saving_again_finishes_it(
    valkey: Backend,
) -> None:
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        manager = valkey.manager(proxy.url, merge=COUNTER, timeout=0.3)
        sessions = await counting(manager, 5)
        proxy.decide = lambda request: Fault.SWALLOW if is_script(request) else Fault.PASS
        results = await asyncio.gather(*map(manager.save, sessions), return_exceptions=True)
        assert {type(one) for one in results} <= {CommitOutcomeUnknown, StoreUnavailable}
        proxy.decide = lambda _: Fault.PASS
        await asyncio.gather(*map(manager.save, sessions))
        assert (await manager.load(sessions[0].id))["n"] == 5
