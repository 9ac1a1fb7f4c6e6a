"""What the server says about itself: bytes, time in commands, memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from redis.asyncio import Redis

__all__ = ["Server", "Tally"]

_PAGE = 1000  # keys that one SCAN asks for


class Tally(NamedTuple):
    """Totals since the server started, or the difference of two such.

    Attributes:
        received, sent: bytes that the server had from its clients and gave them.
        usec: microseconds in commands, by name; those that a script calls are counted twice, under
            their own name and in the script's EVALSHA.
        calls: how often, by name.
        cpu: microseconds of processor time, that of the kernel for the network included.
    """

    received: int
    sent: int
    usec: Mapping[str, int]
    calls: Mapping[str, int]
    cpu: float

    def since(self, before: Tally) -> Tally:
        """Return what has come to it since another tally."""
        return Tally(
            self.received - before.received,
            self.sent - before.sent,
            {name: usec - before.usec.get(name, 0) for name, usec in self.usec.items()},
            {name: calls - before.calls.get(name, 0) for name, calls in self.calls.items()},
            self.cpu - before.cpu,
        )


class Server:
    """A connection that asks the server about itself."""

    def __init__(self, url: str) -> None:
        self._redis: Redis = Redis.from_url(url)

    async def tally(self) -> Tally:
        """Return the totals."""
        info: dict[str, Any] = await self._redis.info("stats", "commandstats", "cpu")
        commands = {
            name.removeprefix("cmdstat_"): values
            for name, values in info.items()
            if name.startswith("cmdstat_")
        }
        return Tally(
            info["total_net_input_bytes"],
            info["total_net_output_bytes"],
            {name: values["usec"] for name, values in commands.items()},
            {name: values["calls"] for name, values in commands.items()},
            (info["used_cpu_user"] + info["used_cpu_sys"]) * 1e6,
        )

    async def question(self) -> Tally:
        """Return what one call of `tally` itself adds."""
        before = await self.tally()
        return (await self.tally()).since(before)

    async def memory(self) -> dict[bytes | str, int]:
        """Return the bytes that each key takes, with its name and all overhead of the server's."""
        sizes: dict[bytes | str, int] = {}
        cursor = 0
        while True:
            cursor, keys = await self._redis.scan(cursor, count=_PAGE)
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.memory_usage(key, samples=0)
                sizes |= zip(keys, await pipe.execute(), strict=True)
            if not cursor:
                return sizes

    async def aclose(self) -> None:
        """Close the connection."""
        await self._redis.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_details: object) -> None:
        await self.aclose()
