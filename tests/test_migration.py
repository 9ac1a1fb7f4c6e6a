"""A session of another library is taken over once, by whoever comes first, and ends once."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.backends import WITH_SOAK, Backend
from support.migrating import DATA, Browser, Theirs, of_user, open_theirs
from support.proxy import Fault, FaultProxy

from asyncsession import SessionGone, StoreUnavailable
from asyncsession.ids import is_session_id

STORES = WITH_SOAK


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
async def browser(theirs: Theirs) -> Browser:
    """One whose session starsessions itself has written."""
    return await theirs.write()


async def test_a_session_is_taken_over_once(theirs: Theirs, browser: Browser) -> None:
    before = await theirs.redis.get(browser.original)
    session = await browser.come()
    assert dict(session) == DATA
    assert (session.is_new, session.version, session.modified) == (False, 1, False)
    assert is_session_id(session.id)
    session["cart"].append("b")
    await browser.manager.save(session)
    again = await browser.come()
    assert again.id == session.id
    assert dict(again) == {"user": 42, "cart": ["a", "b"]}
    assert dict(await browser.manager.load(session.id)) == dict(again)
    assert await theirs.redis.get(browser.original) == before
    assert 3000 < await theirs.redis.ttl(browser.original) <= 3600
    assert len(await theirs.ours()) == 2


async def test_what_is_handed_out_is_as_if_nobody_had_read_it(theirs: Theirs) -> None:
    for principal in (None, of_user):
        browser = await theirs.put(principal=principal)
        for _ in range(2):
            session = await browser.come()
            assert session.guards() == frozenset()
            assert not session.modified


async def test_the_old_id_is_not_adopted(theirs: Theirs, browser: Browser) -> None:
    session = await browser.come()
    assert browser.peer_id not in session.id
    assert (await browser.manager.load(browser.peer_id)).is_new
    other = theirs.backend.manager(prefix=f"{theirs.backend.prefix}:other")
    assert (await browser.come(other)).id != session.id, "nor can the id be computed from it"


async def test_an_id_that_is_not_in_the_store_is_never_adopted(
    theirs: Theirs, browser: Browser
) -> None:
    for planted in ("0" * 32, secrets.token_hex(16), browser.peer_id[::-1]):
        other = Browser(theirs, planted)
        session = await other.come()
        session["a"] = 1
        await other.manager.save(session)
        assert (await other.come()).is_new
    assert await theirs.ours(b":was:") == []


async def test_unknown_ids_store_nothing(theirs: Theirs) -> None:
    manager, source = theirs.backend.manager(), theirs.source()
    before = set(await theirs.redis.keys())

    async def some() -> None:
        for _ in range(50):
            await manager.load_through(source, secrets.token_hex(16))

    await asyncio.gather(*(some() for _ in range(10)))
    assert await theirs.ours() == []
    assert set(await theirs.redis.keys()) <= before


@pytest.mark.parametrize("principal", [None, of_user])
async def test_parallel_first_requests_converge(real: Theirs, principal: Any) -> None:
    browser = await real.write(principal=principal)
    managers = [real.backend.manager() for _ in range(4)]
    for _ in range(3):
        sessions = await asyncio.gather(*(browser.come(managers[n % 4]) for n in range(32)))
        assert len({session.id for session in sessions}) == 1
        assert {session.principal for session in sessions} == {principal and "user:42"}
    assert len(await real.sessions()) == 1
    assert sessions[0].version == (2 if principal else 1), "one commit for each step"
    if principal:
        assert len(await browser.manager.sessions_of("user:42")) == 1


async def test_parallel_requests_work_on_one_session(real: Theirs) -> None:
    browser = await real.write()

    async def request(number: int) -> None:
        session = await browser.come()
        session["cart"].append(number)
        await browser.manager.save(session)

    await asyncio.gather(*map(request, range(16)))
    assert sorted((await browser.come())["cart"][1:]) == list(range(16))


async def test_a_logout_is_not_undone_by_the_old_cookie_starsessions_58(
    theirs: Theirs, browser: Browser
) -> None:
    """The original is still there, and so is the cookie."""
    session, slow = await browser.come(), await browser.come()
    await browser.manager.destroy(session)
    for _ in range(2):
        again = await browser.come()
        assert (again.is_new, dict(again)) == (True, {})
        slow["late"] = 1
        with pytest.raises(SessionGone):
            await browser.manager.save(slow)
        await theirs.forget_tombstones()
    assert await theirs.redis.exists(browser.original)
    assert await theirs.sessions() == []


async def test_the_first_request_may_be_the_logout(theirs: Theirs, browser: Browser) -> None:
    await browser.manager.destroy(await browser.come())
    await theirs.forget_tombstones()
    assert (await browser.come()).is_new


async def test_logouts_among_first_requests(real: Theirs) -> None:
    """However they interleave, there is one session, and it stays ended."""
    for _ in range(20):
        browser = await real.put()
        managers = [real.backend.manager(), browser.manager]

        async def look(number: int, browser: Browser = browser, managers: Any = managers) -> str:
            session = await browser.come(managers[number % 2])
            return "" if session.is_new else session.id

        async def logout(browser: Browser = browser) -> str:
            session = await browser.come()
            found = "" if session.is_new else session.id
            await browser.manager.destroy(session)
            return found

        seen = await asyncio.gather(
            *map(look, range(4)), logout(), *map(look, range(4)), logout(), *map(look, range(4))
        )
        assert len(set(seen) - {""}) == 1
        await real.forget_tombstones()
        assert (await browser.come()).is_new


async def test_a_rotated_session_is_not_shown_to_the_old_cookie(
    theirs: Theirs, browser: Browser
) -> None:
    session = await browser.come()
    session["secret"] = 1
    await browser.manager.rotate(session)
    stale = await browser.come()
    assert (stale.is_new, stale.is_stale, dict(stale)) == (True, True, {})
    await theirs.forget_tombstones()
    gone = await browser.come()
    assert (gone.is_new, gone.is_stale, dict(gone)) == (True, False, {})
    assert (await browser.manager.load(session.id))["secret"] == 1


@pytest.mark.parametrize("timeouts", [{"idle_timeout": 0.2}, {"absolute_timeout": 0.2}])
async def test_an_expired_session_is_not_read_again(
    theirs: Theirs, browser: Browser, timeouts: dict[str, Any]
) -> None:
    manager = theirs.backend.manager(**timeouts)
    assert not (await browser.come(manager)).is_new
    async with asyncio.timeout(5):
        while await theirs.sessions():  # noqa: ASYNC110  the server tells nobody
            await asyncio.sleep(0.02)
    assert await theirs.redis.exists(browser.original)
    assert (await browser.come(manager)).is_new
    assert await theirs.sessions() == []


async def test_coming_with_the_old_cookie_is_use(theirs: Theirs, browser: Browser) -> None:
    """A client that does not get our cookie, such as a WebSocket, keeps its session."""
    await browser.come(theirs.backend.manager(idle_timeout=10))
    (key,) = await theirs.sessions()
    await browser.come(theirs.backend.manager(idle_timeout=1000))
    assert await theirs.redis.pttl(key) > 900_000


@pytest.mark.parametrize("lasts", [10, 40 * 86_400, None])
async def test_the_mark_outlives_the_original_and_the_session(
    theirs: Theirs, lasts: int | None
) -> None:
    session = await (await theirs.put(lasts)).come()
    left = await theirs.redis.pttl(await theirs.mark())
    if lasts is None:
        assert left == -1
    else:
        longest = max(lasts, 14 * 86_400) * 1000
        assert longest < left <= longest + 86_400_000
    assert session.expires_at is not None
    assert session.created_at is not None
    assert (session.expires_at - session.created_at).days == 14, "it begins when it is taken over"


async def test_the_session_lives_on_without_the_original(theirs: Theirs, browser: Browser) -> None:
    session = await browser.come()
    await theirs.redis.delete(browser.original)
    assert (await browser.come()).id == session.id


UNREADABLE = {
    "junk": b"\x80\x04junk",
    "no mapping": b"[1, 2]",
    "too large": json.dumps({"hunter2": "x" * 70_000}).encode(),
    "far too large": b'{"hunter2": 1' + b" " * 600_000 + b"}",
    "reserved key": b'{"\\u0000principal": "user:1", "hunter2": 1}',
    "lone surrogate": b'{"hunter2": "\\ud800"}',
    "too deep": b'{"hunter2": ' + b"[" * 200 + b"]" * 200 + b"}",
}


@pytest.mark.parametrize("kind", UNREADABLE)
async def test_an_unreadable_original_is_no_endless_error_spring_session_1939(
    theirs: Theirs, browser: Browser, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    await theirs.redis.set(browser.original, UNREADABLE[kind], ex=100)
    for _ in range(2):
        session = await browser.come()
        assert (session.is_new, dict(session)) == (True, {})
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    for secret in (browser.peer_id, "xxx", "user:1"):
        assert secret not in caplog.text
    assert await theirs.redis.get(browser.original) == UNREADABLE[kind], "left as it is"
    assert await theirs.ours() == [], "and not marked: what reads it may be mended"
    await theirs.redis.set(browser.original, b'{"a": 1}', ex=100)
    assert dict(await browser.come()) == {"a": 1}


async def test_an_original_of_another_type_is_unreadable(
    theirs: Theirs, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    await theirs.redis.delete(browser.original)
    await theirs.redis.hset(browser.original, "a", "1")
    assert (await browser.come()).is_new
    assert "is not taken over" in caplog.text


@pytest.mark.parametrize("nothing", [b"", b"{}", b'{"__metadata__": {"created": 1}}'])
async def test_an_empty_original_is_none(
    theirs: Theirs, browser: Browser, nothing: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await theirs.redis.set(browser.original, nothing, ex=100)
    assert (await browser.come()).is_new
    assert await theirs.ours() == []
    assert not caplog.records


async def test_libraries_and_prefixes_do_not_meet(theirs: Theirs, browser: Browser) -> None:
    prefix = f"{theirs.prefix}other."
    await theirs.redis.set(prefix + browser.peer_id, b'{"b": 2}', ex=100)
    assert dict(await browser.come(source=theirs.source(prefix=prefix))) == {"b": 2}
    assert dict(await browser.come()) == DATA
    assert len(await theirs.sessions()) == 2


async def test_the_old_id_is_a_secret_in_all_that_is_ours(
    valkey: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    assert valkey.port
    sent = bytearray()

    def listen(request: list[bytes]) -> Fault:
        sent.extend(b"\n".join(request))
        return Fault.PASS

    async with open_theirs(valkey) as theirs, FaultProxy(valkey.port, listen) as proxy:
        browser, manager = await theirs.write(principal=of_user), valkey.manager(proxy.url)
        session = await browser.come(manager)
        await browser.come(manager)
        keys = await theirs.ours(b"")
        stored = [await valkey.redis.dump(key) for key in keys]
        assert len(keys) == 3
        await manager.destroy(session)
        await browser.come(manager)
        await theirs.redis.set(browser.original, b"junk", ex=100)
        await browser.come(valkey.manager(prefix=f"{valkey.prefix}:other"))
    texts = [repr(browser.source), repr(manager), repr(session), caplog.text, *map(str, keys)]
    assert "is not taken over" in caplog.text
    assert len(sent) > 1000
    for secret in (browser.peer_id, session.id.partition(".")[2]):
        assert secret.encode() not in sent
        assert not [blob for blob in stored if secret.encode() in blob]
        assert not [text for text in texts if secret in text]


async def test_either_store_may_be_down(valkey: Backend) -> None:
    nowhere = "redis://127.0.0.1:1/0"
    async with open_theirs(valkey) as theirs:
        browser, manager = await theirs.write(), valkey.manager(timeout=0.4)
        with pytest.raises(StoreUnavailable):
            await browser.come(manager, theirs.source(nowhere))
        with pytest.raises(StoreUnavailable):
            await browser.come(valkey.manager(nowhere, timeout=0.4))
        assert await theirs.ours() == []
        session = await browser.come(manager)
        assert not session.is_new
        again = await browser.come(manager, theirs.source(nowhere))
        assert again.id == session.id, "theirs is not asked any more"


async def test_the_originals_may_be_on_another_server(valkey: Backend, theirs: Theirs) -> None:
    browser, manager = await theirs.write(), valkey.manager()
    sessions = await asyncio.gather(*(browser.come(manager) for _ in range(4)))
    assert {session.id for session in sessions} == {(await browser.come(manager)).id}
    assert dict(sessions[0]) == DATA
    assert await theirs.ours() == []
    assert await theirs.redis.exists(browser.original)
