"""The browser: parallel requests with one session cookie, and a look at what is left of them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx

from asyncsession.demo.ways import OWN_KEY

__all__ = ["UPDATES", "Result", "lost_updates", "race"]

UPDATES = 3  # that one request makes: 1 more in a counter, an item in the cart, a key of its own
_TIMEOUT = 30.0  # seconds; the server gives up before
_OPENING = "opening"


@dataclass(frozen=True)
class Result:
    """What one race measured.

    Attributes:
        way: of keeping the session, a key of `WAYS`.
        acknowledged: requests answered 2xx.
        failed: requests answered otherwise, or not at all.
        lost: updates of acknowledged requests that are not in the session at the end.
        seconds: from the first request to the last answer.
        latencies: seconds of each acknowledged request.
        attempts: of all acknowledged requests together.
    """

    way: str
    acknowledged: int
    failed: int
    lost: int
    seconds: float
    latencies: tuple[float, ...]
    attempts: int

    @property
    def updates(self) -> int:
        """How many updates were acknowledged."""
        return self.acknowledged * UPDATES

    @property
    def p99(self) -> float:
        """Seconds within which 99 % of the acknowledged requests were answered."""
        if not self.latencies:
            return math.nan
        return sorted(self.latencies)[math.ceil(0.99 * len(self.latencies)) - 1]


def lost_updates(session: Mapping[str, Any], items: Collection[str]) -> int:
    """Count what the acknowledged requests for `items` changed and `session` does not show."""
    views: int = session.get("views", 0)
    cart = set(session.get("cart", ()))
    return (
        max(0, len(items) - views)
        + sum(item not in cart for item in items)
        + sum(OWN_KEY + item not in session for item in items)
    )


async def race(
    url: str, way: str, requests: int, parallel: int, on_answer: Callable[[], None]
) -> Result:
    """Fire `requests` requests of one browser, `parallel` at a time, and read the session back.

    Args:
        url: of the demo's server.
        way: of keeping the session, a key of `WAYS`.
        requests: how many.
        parallel: how many of them are under way at once.
        on_answer: called after each.

    Raises:
        httpx.HTTPError: the server does not answer at all.
    """
    acknowledged: list[str] = []
    latencies: list[float] = []
    attempts = 0
    items = iter(range(requests))

    async def fire(tab: httpx.AsyncClient) -> None:
        nonlocal attempts
        for number in items:
            item = f"item-{number}"
            begun = time.perf_counter()
            try:
                response = await tab.post(f"visit/{item}")
            except httpx.HTTPError:
                response = None
            if response is not None and response.is_success:
                latencies.append(time.perf_counter() - begun)
                acknowledged.append(item)
                attempts += response.json()["attempts"]
            on_answer()

    async with AsyncExitStack() as stack:
        browser = await stack.enter_async_context(_connection(f"{url}/{way}/"))
        # Comes back with the cookie. Its three updates count when the losses are counted.
        (await browser.post(f"visit/{_OPENING}")).raise_for_status()
        # One client for each connection: a pool costs httpx more time than the requests do.
        tabs = [
            await stack.enter_async_context(_connection(f"{url}/{way}/", browser.cookies))
            for _ in range(parallel)
        ]
        # So that no way pays for opening connections.
        await asyncio.gather(*(tab.get("session") for tab in tabs))
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for tab in tabs:
                tasks.create_task(fire(tab))
        seconds = time.perf_counter() - begun
        session = (await browser.get("session")).raise_for_status().json()
    return Result(
        way=way,
        acknowledged=len(acknowledged),
        failed=requests - len(acknowledged),
        lost=lost_updates(session, [_OPENING, *acknowledged]),
        seconds=seconds,
        latencies=tuple(latencies),
        attempts=attempts,
    )


def _connection(url: str, cookies: httpx.Cookies | None = None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url,
        cookies=cookies,
        timeout=_TIMEOUT,
        trust_env=False,  # a proxy of the environment has no business on the loopback
        verify=False,  # noqa: S501  nothing here is TLS, and certificates take long to load
    )
