"""A WebSocket that ends with its session. Part of the ASGI middleware; see there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import anyio

from asyncsession.integrations.exchange import Exchange
from asyncsession.integrations.messages import Message, Receive, Send
from asyncsession.integrations.watch import SESSION_ENDED, watch

__all__ = ["Line", "SessionEnded"]

_REASON = "the session has ended"

_log = logging.getLogger("asyncsession")


class SessionEnded(OSError):
    """Nothing can be sent any more: the WebSocket was closed because its session has ended.

    An OSError, as ASGI asks for on a connection that is gone; frameworks take it for that.
    """


class Line:
    """A WebSocket, between an application and its client, that can be cut.

    Attributes:
        is_asked: the application, or we, have received the client's wish to connect.
        is_answered: that has been accepted or denied.
        is_cut: it was closed by us.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self.is_asked = False
        self.is_answered = False
        self.is_cut = False
        self._is_over = False
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        """Return what comes from the client; once the line is cut, that it has been closed."""
        if not self.is_cut:
            # Whoever waits here while the line is cut is woken by the server: closing brings a
            # disconnect, as any end of the connection does (ASGI, "Disconnect").
            message = await self._receive()
            self.is_asked = True
            self._is_over = self._is_over or message["type"] == "websocket.disconnect"
            if not self.is_cut:
                return message
        return {"type": "websocket.disconnect", "code": SESSION_ENDED, "reason": _REASON}

    async def send(self, message: Message) -> None:
        """Pass on a message of the application.

        Raises:
            SessionEnded: the line is cut. Closing it once more does nothing.
        """
        if self.is_cut:
            if message["type"] == "websocket.close":
                return
            raise SessionEnded(_REASON)
        self.is_answered = True
        self._is_over = self._is_over or message["type"] == "websocket.close"
        await self._send(message)

    async def cut(self) -> None:
        """Close the connection for the reason that its session has ended, unless it is closed."""
        if self._is_over or self.is_cut:
            return
        self.is_answered = self.is_cut = True
        with contextlib.suppress(OSError):  # the client was faster
            await self._send({"type": "websocket.close", "code": SESSION_ENDED, "reason": _REASON})

    @contextlib.asynccontextmanager
    async def watched(self, exchange: Exchange, every: float | None) -> AsyncIterator[None]:
        """Cut the line when the session of `exchange` ends while the block runs.

        Args:
            exchange: whose session may be loaded only later.
            every: seconds between two looks; None to look never.
        """
        if every is None:
            yield
            return
        watcher = asyncio.create_task(self._watch(exchange, every))
        try:
            yield
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])
            if not watcher.cancelled() and (error := watcher.exception()):
                _log.error("the watch over a WebSocket's session failed", exc_info=error)

    async def _watch(self, exchange: Exchange, every: float) -> None:
        while exchange.session is None:  # noqa: ASYNC110  a lazy one, which may never come
            await anyio.sleep(every)
        await watch(exchange.terms.manager, exchange.session, every)
        await self.cut()
