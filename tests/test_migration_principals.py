"""Sessions that were taken over belong to their principal, and end with the principal's others."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.backends import Backend
from support.migrating import Browser, Theirs, of_user, open_theirs

from asyncsession import ConfigurationError


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


async def test_sign_out_everywhere_ends_what_was_taken_over(theirs: Theirs) -> None:
    browser = await theirs.write(principal=of_user)
    assert (await browser.come()).principal == "user:42"
    assert await browser.manager.destroy_all("user:42") == 1
    await theirs.forget_tombstones()
    assert (await browser.come()).is_new


async def test_sign_out_everywhere_ends_what_is_not_taken_over_yet(theirs: Theirs) -> None:
    """The stolen laptop that was not switched on since the switch."""
    browser = await theirs.write(principal=of_user)
    manager = browser.manager
    here = await manager.load()
    here.principal = "user:42"
    await manager.save(here)
    assert await manager.destroy_all("user:42", keep=here) == 0
    for _ in range(2):
        assert (await browser.come()).is_new
        await theirs.forget_tombstones()
    assert not (await manager.load(here.id)).is_new
    assert len(await manager.sessions_of("user:42")) == 1


async def test_a_sign_out_is_remembered_as_long_as_a_session_may_last(theirs: Theirs) -> None:
    browser = await theirs.write(principal=of_user)
    assert await browser.manager.destroy_all("user:42") == 0
    (index,) = await theirs.ours(b":of:")
    assert await theirs.redis.pttl(index) > 13 * 86_400_000
    assert (await browser.come()).is_new


async def test_what_a_sign_out_has_kept_is_not_ended_by_the_old_cookie(theirs: Theirs) -> None:
    browser = await theirs.write(principal=of_user)
    session = await browser.come()
    await browser.manager.destroy_all("user:42", keep=session)
    assert (await browser.come()).id == session.id


async def test_a_principal_that_is_nobody(theirs: Theirs) -> None:
    session = await (await theirs.put(principal=lambda data: None)).come()
    assert (session.principal, session.version) == (None, 1)


async def test_a_principal_that_fails_takes_nothing_over(theirs: Theirs) -> None:
    browser = await theirs.write()

    def wrong(data: Any) -> Any:
        return data["uid"]

    for broken, error in (
        (wrong, KeyError),
        (lambda data: 42, ConfigurationError),
        (lambda data: "", ConfigurationError),
    ):
        with pytest.raises(error):
            await browser.come(source=theirs.source(principal=broken))
    assert await theirs.ours() == []
    assert not (await browser.come()).is_new


async def test_room_is_left_for_the_principal(theirs: Theirs) -> None:
    """Else a session could be taken over, and never be joined."""
    name, manager, outcomes = "user:" + "x" * 800, theirs.backend.manager(max_bytes=4096), set()
    for size in range(2000, 4200, 20):
        browser = Browser(theirs, secrets.token_hex(16), principal=lambda data: name)
        await theirs.redis.set(browser.original, json.dumps({"a": "x" * size}), ex=100)
        session = await browser.come(manager)
        outcomes.add((session.is_new, session.principal))
    assert outcomes == {(False, name), (True, None)}


@pytest.mark.parametrize("when_full", ["end_oldest", "refuse"])
async def test_no_more_sessions_than_a_principal_may_have(real: Theirs, when_full: str) -> None:
    managers = [real.backend.manager(max_sessions=3, when_full=when_full) for _ in range(2)]
    browsers = [await real.put(principal=of_user) for _ in range(8)]

    async def come(number: int) -> Any:
        return await browsers[number].come(managers[number % 2])

    await asyncio.gather(*map(come, range(8)))
    await real.forget_tombstones()
    found = [await come(number) for number in range(8)]
    live = [session for session in found if not session.is_new]
    assert 1 <= len(live) <= 3
    assert {session.principal for session in live} == {"user:42"}
    assert {session.incarnation for session in live} == {
        session.incarnation for session in await managers[0].sessions_of("user:42")
    }
