"""A browser with many tabs: parallel requests with one cookie, and a look at what they left."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from redis.asyncio import Redis

from bench.run import WorkNotDone
from bench.sites.pages import CART, COUNT, ENTERED, RELEASED

__all__ = ["Browser", "Race", "lost_updates", "open_browser"]

UPDATES = 3  # that one visit makes
_OPENING = "opening"
_TIMEOUT = aiohttp.ClientTimeout(30)
_LOCKED_OUT = 0.5  # seconds; a logout that takes longer waits for the slow request


@dataclass
class Race:
    """What came of a race.

    Attributes:
        seconds: from the first request to the last answer.
        latencies: seconds of each visit that was acknowledged with a status below 300.
        acknowledged: the items of those.
        failed: visits answered otherwise, or not at all.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    failed: int = 0

    def measured(self, states: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return what is lost in the sessions, as each worker shows it, and the speed."""
        items = [_OPENING, *self.acknowledged]
        asked = len(self.acknowledged) + self.failed
        lost = [lost_updates(state, items) for state in states]
        own = [sum(item not in state["own"] for item in items) for state in states]
        ordered = sorted(self.latencies) or [math.nan]
        return {
            "lost": sum(lost) / len(lost) / (len(items) * UPDATES),
            "own keys lost": sum(own) / len(own) / len(items),
            "failed": self.failed / asked,
            "rate": len(self.acknowledged) / self.seconds,
            "p50": ordered[len(ordered) // 2] * 1000,
            "p99": ordered[len(ordered) * 99 // 100] * 1000,
        }


def lost_updates(state: Mapping[str, Any], items: Collection[str]) -> int:
    """Count what the acknowledged visits for `items` changed and the session does not show."""
    cart, own, count = set(state[CART]), set(state["own"]), int(state[COUNT])
    return (
        max(0, len(items) - count)
        + sum(item not in cart for item in items)
        + sum(item not in own for item in items)
    )


class Browser:
    """One browser. Its requests are spread evenly over the workers, as a balancer would.

    Args:
        ports: of the workers.
        http: its connections.
    """

    def __init__(self, ports: Sequence[int], http: aiohttp.ClientSession) -> None:
        self._ports = ports
        self._http = http

    async def race(self, requests: int, tabs: int) -> dict[str, float]:
        """Make so many visits, some at a time, all with the cookie of one session."""
        cookie = await self._enter(f"visit/{_OPENING}")
        items = iter(range(requests))
        race = Race()

        async def tab(number: int) -> None:
            for item in items:
                await self._visit(race, number, cookie, f"item-{item}")

        # So that no site pays for opening connections.
        await asyncio.gather(*(self._json(number, "state", cookie) for number in range(tabs)))
        begin = time.perf_counter()
        await asyncio.gather(*(tab(number) for number in range(tabs)))
        race.seconds = time.perf_counter() - begin
        workers = range(len(self._ports))
        for worker in workers:
            await self._json(worker, "settle", cookie)
        states = [await self._json(worker, "state", cookie) for worker in workers]
        return race.measured(states)

    async def logout_meanwhile(self, redis: Redis) -> dict[str, float]:
        """Log out while a slow request of another tab has loaded the session and not saved it.

        Args:
            redis: a client of the server that the sites use.

        Returns:
            `back`, 1 if the old cookie is logged in afterwards; `left`, 1 if it shows what the slow
            request wrote; `slow`, the status that this one was answered with; `waited`, 1 if the
            logout had to wait for it.
        """
        cookie = await self._enter("login/somebody")
        slow = asyncio.create_task(self._get(0, "slow/request", cookie))
        if await redis.blpop([ENTERED], timeout=10) is None:
            raise WorkNotDone(f"the slow request answered {(await slow)[0]}, and was not in time")
        logout = asyncio.create_task(self._get(1, "logout", cookie))
        done, _ = await asyncio.wait([logout], timeout=_LOCKED_OUT)
        await redis.rpush(RELEASED, "go on")
        status, _ = await slow
        if (await logout)[0] >= 300:
            raise WorkNotDone(f"the logout answered {(await logout)[0]}")
        for worker in range(len(self._ports)):
            await self._json(worker, "settle", cookie)
        shown = [await self._json(worker, "who", cookie) for worker in range(len(self._ports))]
        return {
            "back": float(any(who["user"] for who in shown)),
            "left": float(any(who["seen"] for who in shown)),
            "slow": status,
            "waited": float(not done),
        }

    async def _visit(self, race: Race, tab: int, cookie: str, item: str) -> None:
        begin = time.perf_counter()
        try:
            status, _ = await self._get(tab, f"visit/{item}", cookie)
        except (aiohttp.ClientError, TimeoutError):
            status = 599  # counted as an error
        if status < 300:
            race.latencies.append(time.perf_counter() - begin)
            race.acknowledged.append(item)
        else:
            race.failed += 1

    async def _enter(self, path: str) -> str:
        """Ask for a page without a cookie, and return the Cookie header for the one that is set."""
        url = f"http://127.0.0.1:{self._ports[0]}/{path}"
        async with self._http.get(url) as response:
            text = await response.text()
            if response.status >= 300 or not response.cookies:
                raise WorkNotDone(f"{path} answered {response.status}: {text[:2000]}")
            return "; ".join(f"{m.key}={m.coded_value}" for m in response.cookies.values())

    async def _json(self, tab: int, path: str, cookie: str) -> Any:
        async with self._http.get(self._url(tab, path), headers={"Cookie": cookie}) as response:
            if response.status >= 300:
                raise WorkNotDone(f"{path} answered {response.status}")
            return await response.json()

    async def _get(self, tab: int, path: str, cookie: str) -> tuple[int, bytes]:
        async with self._http.get(self._url(tab, path), headers={"Cookie": cookie}) as response:
            return response.status, await response.read()

    def _url(self, tab: int, path: str) -> str:
        return f"http://127.0.0.1:{self._ports[tab % len(self._ports)]}/{path}"


@asynccontextmanager
async def open_browser(ports: Sequence[int]) -> AsyncIterator[Browser]:
    """Yield a browser with as many connections as it needs."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),  # every request is told which cookie it has
        timeout=_TIMEOUT,
    ) as http:
        yield Browser(ports, http)
