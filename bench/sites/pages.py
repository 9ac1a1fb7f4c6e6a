"""What the pages do to a session, the same on every site: functions of a mapping, JSON out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, MutableMapping
from typing import Any

from redis import Redis

__all__ = [
    "CART",
    "COUNT",
    "ENTERED",
    "OWN",
    "PAGES",
    "RELEASED",
    "URL",
    "WORK",
    "Page",
    "change",
]

Session = MutableMapping[str, Any]
Page = Callable[[Session, str], dict[str, Any]]

URL = "BENCH_URL"
"""The variable of the environment that names the Redis server."""
COUNT, CART, OWN = "views", "items", "own:"
WORK = 0.005  # seconds between load and save; a query or two
ENTERED, RELEASED = "bench:entered", "bench:released"
"""Lists: a slow page that has loaded its session says so in the first, and waits for the second."""
_PATIENCE = 10  # seconds that a slow page waits at the most


def _visit(session: Session, item: str) -> dict[str, Any]:
    """Count, put the item into a list and set a key of its own, after some work."""
    seen = session.get(COUNT, 0)
    time.sleep(WORK)
    change(session, seen, item)
    return {}


def change(session: Session, seen: int, item: str) -> None:
    """Make a visit's three changes, given the count that it has seen."""
    session[COUNT] = seen + 1
    session[CART] = [*session.get(CART, ()), item]
    session[OWN + item] = True


def _state(session: Session, _argument: str) -> dict[str, Any]:
    """Show what all visits have left."""
    return {
        COUNT: session.get(COUNT, 0),
        CART: list(session.get(CART, ())),
        "own": [key.removeprefix(OWN) for key in session.keys() if key.startswith(OWN)],  # noqa: SIM118 - Django's sessions cannot be iterated over
    }


def _page(session: Session, _argument: str) -> dict[str, Any]:
    session[COUNT] = session.get(COUNT, 0) + 1
    return {COUNT: session[COUNT]}


def _bare(_session: Session, _argument: str) -> dict[str, Any]:
    return {COUNT: 0}


def _login(session: Session, user: str) -> dict[str, Any]:
    session["user"] = user
    return {}


def _who(session: Session, _argument: str) -> dict[str, Any]:
    return {"user": session.get("user"), "seen": session.get("seen")}


def _slow(session: Session, argument: str) -> dict[str, Any]:
    """Look at the session, wait until told to go on, and change it."""
    session.get("user")
    with Redis.from_url(os.environ[URL]) as redis:
        redis.rpush(ENTERED, argument)
        redis.blpop([RELEASED], timeout=_PATIENCE)
    session["seen"] = argument
    return {}


def _cpu(_session: Session, _argument: str) -> dict[str, Any]:
    return {"seconds": time.process_time(), "process": os.getpid()}


PAGES: dict[str, Page] = {
    "page": _page,
    "bare": _bare,
    "visit": _visit,
    "state": _state,
    "login": _login,
    "who": _who,
    "slow": _slow,
    "cpu": _cpu,
}
"""Name to page; the logout is each framework's own."""
