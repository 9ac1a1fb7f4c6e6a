"""A lean HTTP client for where there is no wrk: one connection for each browser.

Reads what to do from standard input, as JSON, and prints what came of it: `Order` and `Outcome` of
`bench.web.load`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from functools import partial
from typing import Any

_OK = b"HTTP/1.1 200 "


class _Browser(asyncio.Protocol):
    """Asks again whenever it has been answered, until the time is over."""

    def __init__(self, request: bytes, end: float, latencies: list[float]) -> None:
        self.failed = 0
        self.closed = asyncio.get_running_loop().create_future()
        self._request = request
        self._end = end
        self._latencies = latencies
        self._received = b""
        self._length = 0  # of the whole answer; 0 until its head has come
        self._asked = 0.0
        self._is_answered = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._length and (end := self._received.find(b"\r\n\r\n") + 4) > 3:
            head = self._received[:end].lower()
            at = head.index(b"content-length:") + len(b"content-length:")
            self._length = end + int(head[at : head.index(b"\r\n", at)])
        if self._length and len(self._received) >= self._length:
            now = time.perf_counter()
            self._is_answered = True
            if self._received.startswith(_OK):
                self._latencies.append(now - self._asked)
            else:
                self.failed += 1
            if now < self._end:
                self._ask()
            else:
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed += not self._is_answered
        if not self.closed.done():
            self.closed.set_result(exc)

    def _ask(self) -> None:
        self._received, self._length, self._is_answered = b"", 0, False
        self._asked = time.perf_counter()
        self._transport.write(self._request)


async def _drive(order: dict[str, Any]) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    begin = time.perf_counter()
    latencies: list[float] = []
    browsers = []
    for browser in order["browsers"]:
        head = f"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {browser['cookie']}\r\n\r\n"
        make = partial(_Browser, head.encode(), begin + order["seconds"], latencies)
        _, protocol = await loop.create_connection(make, "127.0.0.1", browser["port"])
        browsers.append(protocol)
    await asyncio.gather(*(browser.closed for browser in browsers))
    return {
        "answered": len(latencies),
        "failed": sum(browser.failed for browser in browsers),
        "seconds": time.perf_counter() - begin,
        "p99": sorted(latencies)[len(latencies) * 99 // 100] if latencies else 0.0,
    }


def main() -> None:
    """Do what standard input says."""
    json.dump(asyncio.run(_drive(json.load(sys.stdin))), sys.stdout)


if __name__ == "__main__":
    main()
