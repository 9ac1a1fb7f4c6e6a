"""Browsers that still have the cookie of another library, and what becomes of their sessions."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from asyncsession import Session, SessionManager
from asyncsession.migration import Starsessions
from asyncsession.protocol import Call, Transport
from support.backends import Backend
from support.peers import write_starsessions

__all__ = ["DATA", "Breaking", "Browser", "Crash", "Theirs", "breaking", "of_user", "open_theirs"]

DATA = {"user": 42, "cart": ["a"]}


def of_user(data: Any) -> str | None:
    """Say whom `DATA` belongs to."""
    return f"user:{data['user']}" if "user" in data else None


class Theirs:
    """The sessions of starsessions that one test has, on the server of our own.

    Attributes:
        prefix: of its keys.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.redis = backend.redis
        self.prefix = f"{backend.prefix}:theirs."
        self._sources: list[Starsessions] = []

    def source(self, url: str | None = None, **options: Any) -> Starsessions:
        """Return a source for them; it is closed when the test ends."""
        source = Starsessions(url or self.backend.url, **({"prefix": self.prefix} | options))
        self._sources.append(source)
        return source

    async def write(self, **options: Any) -> Browser:
        """Have starsessions itself store `DATA`; return the browser that has its cookie."""
        cookie = await write_starsessions(
            self.redis, self.prefix, lambda session: session.update(DATA)
        )
        return Browser(self, cookie.decode(), **options)

    async def put(self, lasts: int | None = 100, **options: Any) -> Browser:
        """Store `DATA` as starsessions does, but for so many seconds (None: for ever)."""
        browser = Browser(self, secrets.token_hex(16), **options)
        await self.redis.set(browser.original, json.dumps(DATA), ex=lasts)
        return browser

    async def ours(self, part: bytes = b":{") -> list[bytes]:
        """Return the keys that are ours, and have this in their names."""
        return [key for key in await self.backend.keys() if part in key and b":theirs." not in key]

    async def sessions(self) -> list[bytes]:
        """Return the keys of our sessions, tombstones included."""
        return [key for key in await self.ours() if b":was:" not in key]

    async def mark(self) -> bytes:
        """Return the key of the one mark that there is."""
        (mark,) = await self.ours(b":was:")
        return mark

    async def forget_tombstones(self) -> None:
        """Remove them, as if the half minute, or the two, for which they stay had passed."""
        for key in await self.sessions():
            if (await self.redis.get(key))[3:4] in b"DM":
                await self.redis.delete(key)

    async def clear(self) -> None:
        """Remove all that is ours."""
        for key in await self.ours(b""):
            await self.redis.delete(key)

    async def aclose(self) -> None:
        for source in self._sources:
            await source.aclose()
            await asyncio.to_thread(source.close)


@asynccontextmanager
async def open_theirs(backend: Backend) -> AsyncIterator[Theirs]:
    """Yield a test's sessions of starsessions."""
    theirs = Theirs(backend)
    try:
        yield theirs
    finally:
        await theirs.aclose()


class Browser:
    """A browser with a cookie of starsessions', and the application that it comes to now.

    Attributes:
        peer_id: what is in the cookie.
        original: the key under which starsessions has stored the session.
    """

    def __init__(self, theirs: Theirs, peer_id: str, **options: Any) -> None:
        self.peer_id = peer_id
        self.original = theirs.prefix + peer_id
        self.source = theirs.source(**options)
        self.manager = theirs.backend.manager()

    async def come(
        self, manager: SessionManager | None = None, source: Starsessions | None = None
    ) -> Session:
        """Send a request with the old cookie, and with none of ours."""
        return await (manager or self.manager).load_through(source or self.source, self.peer_id)


class Crash(BaseException):
    """The process ends here."""


async def _crash() -> None:
    raise Crash


class Breaking:
    """A transport on which one call breaks, before or after it was done."""

    def __init__(
        self, transport: Transport, calls: list[Call], at: int, when: str,
        act: Callable[[], Awaitable[Any]],
    ) -> None:  # fmt: skip
        self._transport = transport
        self._calls = calls
        self._at, self._when, self._act = at, when, act

    async def call(self, call: Call) -> Any:
        self._calls.append(call)
        is_it = len(self._calls) == self._at
        if is_it and self._when == "before":
            await self._act()
        reply = await self._transport.call(call)
        if is_it and self._when == "after":
            await self._act()
        return reply

    async def aclose(self) -> None:
        await self._transport.aclose()


def breaking(
    browser: Browser,
    at: int = 0,
    when: str = "",
    act: Callable[[], Awaitable[Any]] = _crash,
) -> list[Call]:
    """Have something happen at a call to either store; return the list that the calls will fill.

    Args:
        at: the number of the call, from 1; 0 for none.
        when: "before" or "after" it is done.
        act: what happens; by default, a crash.
    """
    calls: list[Call] = []
    for owner, name in ((browser.manager, "_transport"), (browser.source, "transport")):
        setattr(owner, name, Breaking(getattr(owner, name), calls, at, when, act))
    return calls
