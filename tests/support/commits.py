"""What a call of the commit script asks for."""

from __future__ import annotations

from typing import Any, NamedTuple

from asyncsession.protocol import Call

__all__ = ["ISSUED", "Terms", "at_another_time", "terms"]

ISSUED = slice(28, 34)
"""Where the terms say when a commit was first sent."""


class Terms(NamedTuple):
    """The first argument, unpacked.

    Attributes:
        id, head, issued, idle, absolute, limit: as the script's contract says.
        length: of the base; 0 to create.
        base: the stamp, the id and the number of commits of the base; empty to create.
        guards: what follows.
    """

    id: bytes
    head: bytes
    issued: int
    idle: int
    absolute: int
    limit: int
    length: int
    base: bytes
    guards: bytes


def terms(call: Call) -> Terms:
    """Return the terms of a commit."""
    packed: Any = call.args[0]

    def number(start: int, end: int) -> int:
        return int.from_bytes(packed[start:end], "big")

    return Terms(
        packed[:16],
        packed[16:28],
        number(28, 34),
        number(34, 40),
        number(40, 46),
        number(46, 50),
        number(50, 54),
        packed[54:82],
        packed[82:],
    )


def at_another_time(packed: bytes, ms: int) -> bytes:
    """Return the terms of a commit that was issued so many ms later."""
    issued = int.from_bytes(packed[ISSUED], "big") + ms
    return packed[: ISSUED.start] + issued.to_bytes(6, "big") + packed[ISSUED.stop :]
