"""One request to an aiohttp application with sessions. Part of that integration; see there."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web
from multidict import CIMultiDict

from asyncsession.integrations.answers import Answer
from asyncsession.integrations.exchange import UNSHARED, Closing, Exchange, Terms
from asyncsession.integrations.watch import SESSION_ENDED, watch
from asyncsession.manager import SessionManager
from asyncsession.session import Session

__all__ = ["Visit", "cut", "dress", "is_up", "response_of"]

_log = logging.getLogger("asyncsession")


class Visit:
    """One request on its way through an application with sessions.

    Attributes:
        exchange: its session, and the rules for it.
        is_open: the application is at work on it, and has not returned a response.
        is_started: the application has begun to send a response by itself.
        failure: what its commit raised.
        refused: the response that it meant to begin so when that happened.
        override: what goes out instead of the application's response, if that is known already.
        websocket: the response, if the request has become a WebSocket.
    """

    __slots__ = (
        "_every",
        "_outer",
        "_watcher",
        "exchange",
        "failure",
        "is_open",
        "is_started",
        "override",
        "refused",
        "websocket",
    )

    def __init__(self, exchange: Exchange, outer: Visit | None, every: float | None) -> None:
        self.exchange = exchange
        self.is_open = True
        self.is_started = False
        self.failure: Exception | None = None
        self.refused: web.StreamResponse | None = None
        self.override: web.StreamResponse | None = None
        self.websocket: web.WebSocketResponse | None = None
        self._outer = outer
        self._every = every
        self._watcher: asyncio.Task[None] | None = None

    def visit_on(self, terms: Terms[SessionManager]) -> Visit | None:
        """Return the visit that serves a session on such terms already: this, or one around it."""
        if not self.is_open:
            return None
        mine = self.exchange.terms
        if mine.manager is terms.manager and mine.carrier == terms.carrier:
            return self
        return None if self._outer is None else self._outer.visit_on(terms)

    async def load(self) -> Session:
        """Return the session."""
        self.exchange.is_asked = True
        session = await self.exchange.load()
        self._begin_watch()
        return session

    def attend(self, websocket: web.WebSocketResponse) -> None:
        """Take note that the request becomes a WebSocket."""
        self.websocket = websocket
        self._begin_watch()

    async def stop(self) -> None:
        """Watch no longer."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
            if not self._watcher.cancelled() and (error := self._watcher.exception()):
                _log.error("the watch over a WebSocket's session failed", exc_info=error)

    def _begin_watch(self) -> None:
        session, every = self.exchange.session, self._every
        if self.websocket is None or session is None or every is None or self._watcher is not None:
            return
        self._watcher = asyncio.create_task(self._watch(self.websocket, session, every))

    async def _watch(
        self, websocket: web.WebSocketResponse, session: Session, every: float
    ) -> None:
        while True:
            await watch(self.exchange.terms.manager, session, every)
            if is_up(websocket):  # other signal handlers may have taken their time
                break
        await cut(websocket)


async def cut(websocket: web.WebSocketResponse) -> None:
    """Close a WebSocket for the reason that its session has ended, unless it is closed."""
    await websocket.close(code=SESSION_ENDED, message=b"the session has ended")


def is_up(websocket: web.WebSocketResponse) -> bool:
    """Tell whether a WebSocket can be closed: it is prepared, and its client still there."""
    return websocket.get_extra_info("socket") is not None  # aiohttp < 3.12 is prepared too early


def dress(headers: CIMultiDict[str], closing: Closing) -> None:
    """Put on the headers of a response what has to be said about the session."""
    if closing.carried is not None:
        name, value = closing.carried
        if value not in headers.getall(name, ()):
            headers.add(name, value)
        headers.setdefault("Cache-Control", UNSHARED)
    if closing.vary is not None:
        sent = ",".join(headers.getall("Vary", ())).split(",")
        fields = [field for each in sent if (field := each.strip())]
        if not {closing.vary.lower(), "*"} & {field.lower() for field in fields}:
            headers["Vary"] = ", ".join([*fields, closing.vary])


def response_of(answer: Answer) -> web.Response:
    """Return an answer of ours as a response of aiohttp's."""
    return web.Response(status=answer.status, body=answer.text.encode(), headers=answer.headers())
