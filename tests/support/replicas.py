"""A primary and a replica of it, with a way between them that can be slow, or carry nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

from redis import Redis

from support.processes import PATIENCE
from support.servers import Server

__all__ = ["Pair"]

_CHUNK = 65_536


class _Line:
    """Passes bytes on from the primary to the replica and back, in threads of its own.

    Attributes:
        port: where the replica connects.
        delay: seconds for which each piece of the primary's is kept.
        is_open: while it is not set, nothing of the primary's is passed on; nothing is lost.
    """

    def __init__(self, target: int) -> None:
        self.delay = 0.0
        self.is_open = threading.Event()
        self.is_open.set()
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.is_open.set()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                replica, _ = self._listener.accept()
                primary = socket.create_connection(("127.0.0.1", self._target))
                for one in (replica, primary):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += [replica, primary]
                for ends in ((primary, replica), (replica, primary)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                if source.getpeername()[1] == self._target:
                    time.sleep(self.delay)
                    self.is_open.wait()
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Pair:
    """A primary and its replica, both of one flavour."""

    def __init__(self, flavour: str) -> None:
        # Over a pipe, it takes some servers a second to believe that the replica is there; and at
        # 10 Hz it takes them 0.1 s to see that a WAIT is over.
        self.primary = Server(flavour, repl_diskless_sync="no", hz=100).start()
        self.line = _Line(self.primary.port)
        self.replica = Server(flavour).start(replicaof=f"127.0.0.1 {self.line.port}")
        self.wait_until_in_step()

    @property
    def url(self) -> str:
        """Of the primary."""
        return self.primary.url

    def wait_until_in_step(self) -> None:
        """Wait until the replica confirms what the primary writes."""
        deadline = time.monotonic() + PATIENCE
        with Redis(port=self.primary.port) as primary:
            # What was written before there was a replica has no offset, and is taken for confirmed.
            while not primary.info("replication")["connected_slaves"]:
                assert time.monotonic() < deadline, "no replica"
            while not primary.set("in step", 1) or primary.wait(1, 20) < 1:
                assert time.monotonic() < deadline, "no replication"

    def waits(self) -> int:
        """Return how often the primary was asked to wait."""
        with Redis(port=self.primary.port) as primary:
            calls: int = primary.info("commandstats").get("cmdstat_wait", {"calls": 0})["calls"]
            return calls

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let nothing that is written meanwhile get to the replica before the end."""
        self.line.is_open.clear()
        try:
            yield
        finally:
            self.line.is_open.set()

    @contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Have all that is written meanwhile get to the replica later."""
        self.line.delay = seconds
        try:
            yield
        finally:
            self.line.delay = 0.0

    def close(self) -> None:
        self.line.close()
        self.replica.close()
        self.primary.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()
