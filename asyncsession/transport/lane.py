"""A lane: the way to one server, which carries the calls of all tasks of an event loop.

redis-py spends most of a command's time on lending a connection and waking tasks. On a lane the
commands of one tick of the loop are written together, and replies are read in the order sent. An
idle lane wakes nobody: the caller sends and reads by itself.

What happens on the connection is the matter of its `Link`; the lane opens one when there is none,
and makes callers wait while the link has no room.

Writes that wait for replicas hold up what comes behind them on a connection. So they have a lane of
their own beside this one, which carries them in groups.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection

from asyncsession.protocol import Durability
from asyncsession.transport.faults import BROKEN, after_sending, before_sending
from asyncsession.transport.group import Group
from asyncsession.transport.link import Link, Share
from asyncsession.transport.options import Word

__all__ = ["Lane"]


class Lane:
    """The way to one server, over one connection at a time.

    Args:
        make: a coroutine function that returns a new connection of redis-py's, not connected yet.
    """

    def __init__(self, make: Callable[[], Awaitable[AbstractConnection]]) -> None:
        self._make = make
        self._link: Link | None = None
        self._connecting = asyncio.Lock()
        self._silence = 0.0  # seconds: the longest that a call has ever been given
        self._beside: Lane | None = None  # for writes that wait for replicas
        self._group: Group | None = None
        self._closing: AsyncGenerator[None, None] | None = None

    def call(
        self,
        command: tuple[Word, ...],
        patience: float,
        durability: Durability | None = None,
        share: Share | None = None,
    ) -> Awaitable[Any]:
        """Send a command; its reply can be awaited, or the error that it is.

        Args:
            command: the words.
            patience: seconds after which the reply is not waited for any longer.
            durability: what a write waits for. Then two things come back: the reply, and how
                many replicas have confirmed it.
            share: a name by which others can `join` this call as long as it is not sent, and a note
                for them; None for a command that each has to send for itself.

        Raises:
            NoScriptError: the server does not know the script.
            Refused, Lost: as the transports' protocol says; after `patience` seconds at the latest.
        """
        if durability is not None:
            return self._grouped().call(command, patience, durability)
        if patience > self._silence:
            self._silence = patience
        link = self._link
        if link is not None and link.is_under_way:
            return link.post(command, patience, self._silence, share)
        return self._begin(command, patience)

    def join(self, name: str, patience: float) -> tuple[Awaitable[Any], Any] | None:
        """Wait for the reply to a call that another task has begun, and that is not sent yet.

        Returns:
            What `call` returns, and the note; None if there is no such call.
        """
        if self._link is None:
            return None
        if patience > self._silence:
            self._silence = patience
        return self._link.join(name, patience, self._silence)

    async def together(self, commands: Sequence[tuple[Word, ...]], patience: float) -> list[Any]:
        """Send commands with nothing between them, and return their replies, errors among them.

        Raises:
            Refused, Lost: as the transports' protocol says; after `patience` seconds at the latest.
        """
        self._silence = max(self._silence, patience)
        link: Link | None = None
        try:
            async with asyncio.timeout(patience):
                link = await self.usable()
                sent = link.post_all(commands, self._silence)
                return await asyncio.gather(*sent, return_exceptions=True)
        except TimeoutError as error:
            raise (after_sending(error) if link else before_sending(error)) from error

    async def aclose(self) -> None:
        """Close the connections; whoever still waits on them is told so."""
        if self._group is not None and self._beside is not None:
            await self._group.aclose()
            await self._beside.aclose()
        if self._link is not None:
            await self._link.fail(ConnectionError("the manager was closed"))

    def _grouped(self) -> Group:
        if self._group is None:
            self._beside = Lane(self._make)
            self._group = Group(self._beside.usable)
        return self._group

    async def _begin(self, command: tuple[Word, ...], patience: float) -> Any:
        """Call where there may be no connection, an idle one, or one without room."""
        link = self._link
        if link is None or not link.is_idle or not await link.is_usable():
            time = asyncio.get_running_loop().time
            ends = time() + patience
            try:
                async with asyncio.timeout_at(ends):
                    link = await self.usable()
            except TimeoutError as error:
                raise before_sending(error) from error
            patience = ends - time()
        if link.is_idle:
            return await link.ask(command, patience, self._silence)
        return await link.post(command, patience, self._silence)

    async def usable(self) -> Link:
        """Return a link that has room for another call."""
        while True:
            link = self._link
            if link is None or not await link.is_usable():
                link = await self._connected()
            if link.has_room:
                return link
            await link.room()

    async def _connected(self) -> Link:
        async with self._connecting:
            link = self._link
            if link is not None and await link.is_usable():
                return link
            connection: AbstractConnection | None = None
            try:
                connection = await self._make()
                await connection.connect()  # type: ignore[no-untyped-call]
            except BaseException as error:
                if connection is not None:
                    await connection.disconnect(nowait=True)
                if isinstance(error, BROKEN):
                    raise before_sending(error) from error
                raise
            self._link = Link(connection)
            if self._closing is None:
                self._closing = self._close_with_loop()
                await anext(self._closing)
            return self._link

    async def _close_with_loop(self) -> AsyncGenerator[None, None]:
        """Close the connection when the loop ends, in the only way that a loop tells of that.

        Whoever runs a loop to its end (`asyncio.run`, `async_to_sync`, servers) has it end the
        asynchronous generators that were begun on it. Else the socket would be open until the
        garbage collector finds it.
        """
        try:
            yield
        finally:
            if self._link is not None:
                await self._link.fail(ConnectionError("the event loop ends"))
                await asyncio.sleep(0)  # asyncio closes the socket in the next turn
