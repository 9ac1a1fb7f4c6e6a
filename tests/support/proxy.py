"""A TCP proxy before a Redis server that loses, repeats and delays messages on purpose.

It knows RESP2 well enough to tell requests and replies apart, so that a fault hits exactly one
request. What it does stays possible on a real network: a stream can't skip a message. So a reset
takes all unanswered requests of its connection along, and after a `LOST` or `SWALLOW` everything
that follows on that connection has the same fate, without `decide` being asked.

A request that was forwarded is always executed: a connection to the server is half-closed and read
to its end, never torn down under an unread request (unless the proxy itself is closed).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Self

from support.faults import Decide, Fault, is_script, seeded
from support.resp import Frames, arguments

__all__ = ["Decide", "Fault", "FaultProxy", "is_script", "seeded"]

_CHUNK = 65_536
# What a connection has to be told again before a request can be repeated on another one.
_HANDSHAKE = frozenset({b"AUTH", b"HELLO", b"SELECT"})
# From bytes (or a connection) in the kernel to a request in `_forward` an event loop takes three or
# four turns.
_TURNS = 10
_ABORTIVE_CLOSE = struct.pack("ii", 1, 0)


class FaultProxy:
    """A faulty way to a server on 127.0.0.1.

    Args:
        port: the server's port.
        decide: asked about each request, in the order of arrival.
        delay: seconds for `TWICE`, `DELAY` and `LATE`, or a function that is asked for each.

    Attributes:
        faults: how often each fault happened (`PASS` is not counted).
        requests: whole requests received.
        bytes_up: bytes received from clients.

    Leaving the context raises what `decide` raised.
    """

    def __init__(
        self, port: int, decide: Decide, *, delay: float | Callable[[], float] = 0.05
    ) -> None:
        self.decide = decide
        self._delay = delay
        self.faults: Counter[Fault] = Counter()
        self.requests = 0
        self.bytes_up = 0
        self.port = 0
        self._target = port
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []
        self._owed = 0  # replies that the server has yet to give
        self._settled = asyncio.Event()
        self._settled.set()

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"redis://127.0.0.1:{self.port}/0"

    def delay(self) -> float:
        """Return for how many seconds a message is held up."""
        return self._delay() if callable(self._delay) else self._delay

    async def drained(self) -> None:
        """Wait until the server has answered all that was or will be delivered to it.

        That includes what clients on this event loop have sent and the proxy has not yet read.
        """
        quiet_turns = 0
        while quiet_turns < _TURNS:
            quiet_turns = quiet_turns + 1 if self._settled.is_set() else 0
            await self._settled.wait()
            await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *details: object) -> None:
        assert self._server is not None
        self._server.close()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        await _discard(*self._clients)  # accepted, but cancelled before they were served
        await self._server.wait_closed()
        if self._failures:
            raise BaseExceptionGroup("in the fault proxy", self._failures)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None or not self._server.is_serving():  # it came as we were leaving
            writer.transport.abort()
            return
        self._clients.add(writer)
        self.owe(1)  # whatever the client has sent by the time we can read it
        self._spawn(self._serve(reader, writer))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failures.append(failure)

    def owe(self, replies: int) -> None:
        """Keep count of the replies that the server still has to give."""
        self._owed += replies
        if self._owed:
            self._settled.clear()
        else:
            self._settled.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            try:
                upstream = await asyncio.open_connection("127.0.0.1", self._target)
            except asyncio.CancelledError:
                writer.close()
                raise
            except ConnectionError:  # the server is down: the client finds itself hung up on
                await _discard(writer)
                return
            finally:
                self.owe(-1)
            await _Link(self, (reader, writer), upstream).run()
        finally:
            self._clients.discard(writer)

    def deliver_late(self, handshake: Sequence[bytes], request: bytes) -> None:
        """Send `request` over a connection of its own, later."""
        self.owe(1)
        self._spawn(self._deliver_late([*handshake, request]))

    async def _deliver_late(self, requests: Sequence[bytes]) -> None:
        try:
            await asyncio.sleep(self.delay())
            with contextlib.suppress(OSError):  # the server is down: lost for good
                reader, writer = await asyncio.open_connection("127.0.0.1", self._target)
                try:
                    writer.write(b"".join(requests))
                    missing, replies = len(requests), Frames()
                    while missing > 0 and (data := await reader.read(_CHUNK)):
                        missing -= sum(1 for _ in replies.feed(data))
                finally:
                    await _discard(writer)
        finally:
            self.owe(-1)


class _Link:
    """One client's connection, and the connection to the server that belongs to it."""

    def __init__(
        self,
        proxy: FaultProxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._client_reader, self._client = client
        self._server_reader, self._server = server
        self._unanswered: deque[tuple[Fault, bytes]] = deque()
        self._handshake: list[bytes] = []
        self._sticky: Fault | None = None
        self._mute = False  # no reply is passed on any more

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                up = group.create_task(self._up())
                await self._down()
                up.cancel()
        finally:
            self._proxy.owe(-len(self._unanswered))
            await _discard(self._client, self._server)

    async def _up(self) -> None:
        requests = Frames()
        with contextlib.suppress(ConnectionError):  # either side is gone
            while data := await self._client_reader.read(_CHUNK):
                self._proxy.bytes_up += len(data)
                for request in requests.feed(data):
                    if not await self._forward(request):
                        return
        self._hang_up()

    async def _forward(self, request: bytes) -> bool:
        """Do to one request what was decided; False if it was the connection's last."""
        proxy, words = self._proxy, arguments(request)
        proxy.requests += 1
        fault = self._sticky or proxy.decide(words)
        if fault is not Fault.PASS:
            proxy.faults[fault] += 1
        if fault in (Fault.LOST, Fault.SWALLOW):
            self._sticky = fault
        if fault is Fault.LATE:
            proxy.deliver_late(self._handshake, request)
        if fault in (Fault.LATE, Fault.DROP):
            self._hang_up(reset=True)
            return False
        if fault is Fault.LOST:
            return True
        if words and words[0].upper() in _HANDSHAKE:
            self._handshake.append(request)
        self._unanswered.append((fault, request))
        proxy.owe(1)
        if fault is Fault.DELAY:
            await asyncio.sleep(proxy.delay())
        if not self._server.is_closing():
            self._server.write(request)
        await self._server.drain()
        return fault is not Fault.CUT

    async def _down(self) -> None:
        replies = Frames()
        with contextlib.suppress(ConnectionError):
            while data := await self._server_reader.read(_CHUNK):
                for reply in replies.feed(data):
                    self._answer(reply)
                with contextlib.suppress(ConnectionError):  # the client is gone; go on reading
                    await self._client.drain()
        self._hang_up()

    def _answer(self, reply: bytes) -> None:
        fault = Fault.PASS  # a word of the server's own, such as "max number of clients reached"
        if self._unanswered:
            fault, request = self._unanswered.popleft()
            if fault is Fault.TWICE and not reply.startswith(b"-"):
                self._proxy.deliver_late(self._handshake, request)
            self._proxy.owe(-1)
        if fault is Fault.SWALLOW:
            self._mute = True
        if self._mute or self._client.is_closing():
            return
        self._client.write(reply[: len(reply) // 2] if fault is Fault.CUT else reply)
        if fault is Fault.CUT:
            self._hang_up(reset=True)

    def _hang_up(self, *, reset: bool = False) -> None:
        """The client is gone, or is sent away; the server still gets and does all it was sent."""
        self._mute = True
        if reset and not self._client.is_closing():
            raw: socket.socket = self._client.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORTIVE_CLOSE)
            self._client.transport.abort()
        with contextlib.suppress(OSError):
            self._server.write_eof()


async def _discard(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.transport.abort()
    for writer in writers:
        with contextlib.suppress(OSError):
            await writer.wait_closed()
