"""A blocking manager for tests that await: each verb runs in a thread."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self, TypeVar

from asyncsession import Commit, Session, SyncSessionManager
from asyncsession.machine import Settings
from asyncsession.protocol import BlockingTransport, Call, Transport

__all__ = ["InThreads"]

T = TypeVar("T")

_THREADS = 32


class Awaited:
    """A blocking transport as one to be awaited."""

    def __init__(self, transport: BlockingTransport) -> None:
        self.blocking = transport

    async def call(self, call: Call) -> Any:
        return await asyncio.to_thread(self.blocking.call, call)

    async def aclose(self) -> None:
        await asyncio.to_thread(self.blocking.close)


class Waiting:
    """The reverse: a transport to be awaited, on this event loop, for a thread to wait for."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()

    def call(self, call: Call) -> Any:
        called = self._transport.call(call)
        return asyncio.run_coroutine_threadsafe(called, self._loop).result()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._transport.aclose(), self._loop).result()


class InThreads:
    """The verbs of `SessionManager`, done by a `SyncSessionManager`."""

    def __init__(self, manager: SyncSessionManager) -> None:
        self.blocking = manager
        self._threads = ThreadPoolExecutor(_THREADS)

    @property
    def _settings(self) -> Settings:
        return self.blocking._settings

    @property
    def _transport(self) -> Transport:
        return Awaited(self.blocking._transport)

    @_transport.setter
    def _transport(self, transport: Transport) -> None:
        self.blocking._transport = (
            transport.blocking if isinstance(transport, Awaited) else Waiting(transport)
        )

    async def load(self, session_id: str | None = None) -> Session:
        return await self._run(self.blocking.load, session_id)

    async def load_through(self, source: Any, peer_id: str | None) -> Session:
        return await self._run(self.blocking.load_through, source, peer_id)

    async def save(self, session: Session) -> Commit:
        return await self._run(self.blocking.save, session)

    @asynccontextmanager
    async def session(self, session_id: str | None = None) -> AsyncIterator[Session]:
        block = self.blocking.session(session_id)
        session = await self._run(block.__enter__)
        try:
            yield session
        except BaseException:
            if not await self._run(block.__exit__, *sys.exc_info()):
                raise
        else:
            await self._run(block.__exit__, None, None, None)

    async def update(self, session_id: str | None, change: Callable[[Session], Any]) -> Session:
        loop = asyncio.get_running_loop()

        def plain(session: Session) -> None:
            result = change(session)
            if inspect.iscoroutine(result):
                asyncio.run_coroutine_threadsafe(result, loop).result()

        return await self._run(self.blocking.update, session_id, plain)

    async def rotate(self, session: Session) -> Commit:
        return await self._run(self.blocking.rotate, session)

    async def refresh(self, session: Session) -> None:
        await self._run(self.blocking.refresh, session)

    async def touch(self, session: Session) -> None:
        await self._run(self.blocking.touch, session)

    async def destroy(self, session: Session | str) -> None:
        await self._run(self.blocking.destroy, session)

    async def sessions_of(self, principal: str, *, current: Session | None = None) -> list[Session]:
        return await self._run(partial(self.blocking.sessions_of, principal, current=current))

    async def destroy_all(self, principal: str, *, keep: Session | None = None) -> int:
        return await self._run(partial(self.blocking.destroy_all, principal, keep=keep))

    async def aclose(self) -> None:
        await self._run(self.blocking.close)
        self._threads.shutdown(wait=False)  # they have nothing left to do
        self._threads = ThreadPoolExecutor(_THREADS)

    async def _run(self, verb: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, verb, *args)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.aclose()
