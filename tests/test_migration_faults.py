"""Taking a session over, whatever breaks on the way: one session, and an end that is one."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from support.backends import Backend
from support.migrating import DATA, Browser, Crash, Theirs, breaking, of_user, open_theirs
from support.proxy import Fault, FaultProxy, is_script, seeded

from asyncsession import InvalidSessionData, Session, StoreUnavailable
from asyncsession.protocol import Code
from asyncsession.scripts import SCRIPTS, Script

LOSSES = (Fault.DROP, Fault.CUT, Fault.SWALLOW, Fault.LOST, Fault.LATE, Fault.TWICE)

TAKING_OVER = ["adopt", "original", "adopt", "load"]
JOINING = ["index", "commit", "index", "load"]


@pytest.fixture
async def theirs(backend: Backend) -> AsyncIterator[Theirs]:
    """On every store."""
    async with open_theirs(backend) as opened:
        yield opened


@pytest.fixture
async def real(real_backend: Backend) -> AsyncIterator[Theirs]:
    """On every real server: for what happens at the same time."""
    async with open_theirs(real_backend) as opened:
        yield opened


@pytest.fixture
async def one(valkey: Backend) -> AsyncIterator[Theirs]:
    """On one real server, over TCP."""
    async with open_theirs(valkey) as opened:
        yield opened


async def cancel() -> None:
    """Cancel the task in which this is run."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def scripts_of(browser: Browser) -> list[str]:
    """Return the scripts that a request runs."""
    calls = breaking(browser)
    await browser.come()
    return [call.script for call in calls]


async def test_what_it_costs(theirs: Theirs) -> None:
    browser = await theirs.put()
    assert await scripts_of(browser) == TAKING_OVER
    assert await scripts_of(browser) == ["adopt", "load"]
    assert await scripts_of(await theirs.put(principal=of_user)) == [*TAKING_OVER, *JOINING]
    assert await scripts_of(Browser(theirs, secrets.token_hex(16))) == ["adopt", "original"]
    assert await scripts_of(Browser(theirs, "nonsense")) == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("principal", [None, of_user])
async def test_a_crash_at_any_step_is_healed_by_the_next_request(
    real: Theirs, when: str, principal: Any
) -> None:
    for at in range(1, len(TAKING_OVER) + (len(JOINING) if principal else 0) + 1):
        await real.clear()
        browser = await real.put(principal=principal)
        breaking(browser, at, when)
        with pytest.raises(Crash):
            await browser.come()
        session = await browser.come()
        assert dict(session) == DATA, f"step {at}"
        assert len(await real.sessions()) == 1
        if principal:
            assert session.principal == "user:42"
            assert len(await browser.manager.sessions_of("user:42")) == 1
            assert await browser.manager.destroy_all("user:42") == 1
        else:
            await browser.manager.destroy(session)
        await real.forget_tombstones()
        assert (await browser.come()).is_new


@pytest.mark.parametrize("when", ["before", "after"])
async def test_cancelled_at_any_await(real: Theirs, when: str) -> None:
    for at in range(1, len(TAKING_OVER + JOINING) + 1):
        await real.clear()
        browser = await real.put(principal=of_user)

        breaking(browser, at, when, cancel)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(browser.come())
        session = await browser.come()
        assert (dict(session), session.principal) == (DATA, "user:42"), f"step {at}"
        assert len(await real.sessions()) == 1


@pytest.mark.parametrize("step", range(1, len(TAKING_OVER) + 1))
async def test_a_slow_first_request_does_not_undo_a_logout(real: Theirs, step: int) -> None:
    """At whichever step the other request, which logs out, goes by."""
    browser = await real.put()
    fast = Browser(real, browser.peer_id)

    async def logout() -> None:
        session = await fast.come()
        assert not session.is_new
        await fast.manager.destroy(session)
        await real.forget_tombstones()

    breaking(browser, step, "before", logout)
    assert (await browser.come()).is_new
    assert (await fast.come()).is_new
    assert await real.sessions() == []


async def test_rotated_by_another_request_before_it_has_joined(real: Theirs) -> None:
    browser = await real.put(principal=of_user)
    fast = Browser(real, browser.peer_id)

    async def login_as_another() -> None:
        session = await fast.come()
        session.principal = "user:7"
        await fast.manager.rotate(session)

    breaking(browser, len(TAKING_OVER) + 2, "before", login_as_another)
    session = await browser.come()
    assert (session.is_stale, session.is_new, dict(session)) == (True, True, {})
    assert len(await fast.manager.sessions_of("user:7")) == 1


async def test_changed_by_another_request_before_it_has_joined(real: Theirs) -> None:
    """What the application has said of the principal is not overwritten by what the source says."""
    browser = await real.put(principal=of_user)
    fast = Browser(real, browser.peer_id)

    async def become_another() -> None:
        session = await fast.come()
        session.principal = "user:7"
        await fast.manager.save(session)

    breaking(browser, len(TAKING_OVER) + 2, "before", become_another)
    session = await browser.come()
    assert (session.principal, session.version) == ("user:7", 2)


@pytest.mark.parametrize("seed", [1, 2])
async def test_first_requests_through_a_faulty_network(one: Theirs, seed: int) -> None:
    assert one.backend.port
    async with FaultProxy(one.backend.port, seeded(seed, 0.2, LOSSES)) as proxy:
        source = one.source(proxy.url, principal=of_user)
        managers = [one.backend.manager(proxy.url, timeout=2) for _ in range(2)]
        browsers = [await one.put() for _ in range(12)]

        async def begin(browser: Browser) -> None:
            found = await asyncio.gather(
                *(browser.come(managers[number % 2], source) for number in range(6)),
                return_exceptions=True,
            )
            sessions = [result for result in found if isinstance(result, Session)]
            assert {type(result) for result in found} <= {Session, StoreUnavailable}
            assert all(dict(session) == DATA for session in sessions)
            assert len({session.id for session in sessions}) <= 1

        for at in range(0, len(browsers), 4):
            await asyncio.gather(*map(begin, browsers[at : at + 4]))
        await proxy.drained()
        assert sum(proxy.faults.values()) > 20
        await source.aclose()
    direct = one.source(principal=of_user)
    for browser in browsers:
        assert not (await browser.come(source=direct)).is_new
    assert len(await one.sessions()) == len(browsers)
    assert len(await one.backend.manager().sessions_of("user:42")) == len(browsers)


async def test_silence_at_any_step_is_unavailable(one: Theirs) -> None:
    assert one.backend.port
    browser = await one.put(principal=of_user)
    await browser.come()  # the server knows the scripts from here on
    for step in range(1, len(TAKING_OVER + JOINING) + 1):
        await one.clear()
        faults = iter([*[Fault.PASS] * (step - 1), *[Fault.LOST] * 1000])

        def decide(request: list[bytes], faults: Any = faults) -> Fault:
            return next(faults) if is_script(request) else Fault.PASS

        async with FaultProxy(one.backend.port, decide) as proxy:
            source = one.source(proxy.url, principal=of_user)
            manager = one.backend.manager(proxy.url, timeout=0.3)
            async with asyncio.timeout(5):
                with pytest.raises(StoreUnavailable):
                    await browser.come(manager, source)
            await source.aclose()
            await manager.aclose()
            await proxy.drained()


async def late_copy(theirs: Theirs) -> None:
    """A copy of the request that the network has held until the mark had expired does nothing."""
    browser = await theirs.put()
    calls = breaking(browser)
    await browser.manager.destroy(await browser.come())
    await theirs.clear()
    (copy,) = [call for call in calls if len(call.keys) == 2]
    issued = copy.args[7]
    assert isinstance(issued, int)
    for moment in (issued - 16_000, issued + 3_600_000):
        held = copy._replace(args=(*copy.args[:7], moment))
        code, *_ = await browser.manager._transport.call(held)
        assert code == Code.LATE
    assert await theirs.ours() == []


async def once(theirs: Theirs) -> None:
    """Requests at the same time meet, and what they met in does not come back."""
    browser = await theirs.put()
    sessions = await asyncio.gather(*(browser.come() for _ in range(4)))
    assert len({session.id for session in sessions}) == 1
    assert not sessions[0].is_new
    await browser.manager.destroy(sessions[0])
    await theirs.forget_tombstones()
    assert (await browser.come()).is_new


async def for_ever(theirs: Theirs) -> None:
    """The mark of an original that never expires does not expire either."""
    await (await theirs.put(lasts=None)).come()
    assert await theirs.redis.ttl(await theirs.mark()) == -1


MUTANTS: dict[str, tuple[str, str, Callable[[Theirs], Awaitable[None]]]] = {
    "the mark is not set": ("redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])", "", once),
    "the mark is not asked": ("return {OK, now, mark}", "", once),
    "no window": ("if issued > now + SLACK or now > issued + WINDOW then", "if false then",
                  late_copy),
    "the future is no obstacle": ("issued > now + SLACK or ", "", late_copy),
    "every mark expires": ("if ARGV[2] == '0' then", "if false then", for_ever),
}  # fmt: skip


@pytest.mark.parametrize("scenario", [late_copy, once, for_ever])
async def test_the_script_itself_passes(
    theirs: Theirs, scenario: Callable[[Theirs], Awaitable[None]]
) -> None:
    await scenario(theirs)


@pytest.mark.parametrize("name", MUTANTS)
async def test_mutant_is_caught(one: Theirs, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, scenario = MUTANTS[name]
    source = SCRIPTS["adopt"].source
    assert source.count(old) == 1, "the mutant no longer fits the script"
    mutated = source.replace(old, new)
    sha = hashlib.sha1(mutated.encode(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(SCRIPTS, "adopt", Script(mutated, sha))
    with pytest.raises((AssertionError, StoreUnavailable)):
        await scenario(one)


async def test_a_foreign_mark_is_an_error_and_left_alone(theirs: Theirs) -> None:
    browser, foreign = await theirs.put(), b"aS\x02A" + bytes(32)
    await browser.come()
    mark = await theirs.mark()
    await theirs.redis.set(mark, foreign)
    with pytest.raises(InvalidSessionData):
        await browser.come()
    assert await theirs.redis.get(mark) == foreign
