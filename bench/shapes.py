"""What the sessions hold: the same JSON values for all contenders, of a wanted size."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "COUNTER",
    "DESCRIPTION",
    "LIFETIME",
    "MANY_KEYS",
    "ONE_VALUE",
    "Shape",
    "describe",
    "json_bytes",
]

COUNTER = "n"
LIFETIME = 86_400  # seconds without use after which a session ends

DESCRIPTION = (
    "A session holds a counter, the user (id, name, address, roles), preferences, a CSRF token, a "
    "cart of small dicts, a list of numbers of recently seen products and, up to the wanted size, "
    "one form draft after the other, each a dict of about 200 bytes under a key of its own. Sizes "
    "are those of compact JSON. The values are such as JSON has, since that is what the peers keep."
)


@dataclass(frozen=True)
class Shape:
    """A way to lay a session's content out, and where in it the counter is."""

    name: str
    wrap: Callable[[dict[str, Any]], dict[str, Any]]
    unwrap: Callable[[Mapping[str, Any]], Any]

    def build(self, kilobytes: float) -> dict[str, Any]:
        """Return a session of about so many KB (1,024 bytes) of JSON."""
        return self.wrap(_content(kilobytes))

    def count(self, session: MutableMapping[str, Any]) -> None:
        """Do what a request does in most scenarios: add one to the counter, and touch no more."""
        self.unwrap(session)[COUNTER] += 1

    def counted(self, session: Mapping[str, Any]) -> int:
        """Return what the counter shows."""
        counted: int = self.unwrap(session)[COUNTER]
        return counted


MANY_KEYS = Shape("many keys", lambda content: content, lambda session: session)
ONE_VALUE = Shape("one value", lambda content: {"all": content}, lambda session: session["all"])
"""The same content in one dict under one key: what is touched then is the whole."""


def json_bytes(value: Any) -> int:
    """Return how long `value` is as compact JSON."""
    return len(json.dumps(value, separators=(",", ":")))


def describe(kilobytes: float) -> str:
    """Return a size as people write it: `0.3 KB`, `64 KB`."""
    return f"{kilobytes:g} KB"


def _content(kilobytes: float) -> dict[str, Any]:
    numbers = random.Random(kilobytes)  # noqa: S311 - the same session in every run
    content: dict[str, Any] = {
        COUNTER: 0,
        "user": {"id": 4711, "name": "A. N. Other", "email": "ano@example.org", "roles": ["buyer"]},
        "prefs": {"theme": "dark", "language": "en"},
        "csrf": f"{numbers.getrandbits(128):032x}",
        "cart": [{"sku": "A-1000", "count": 2}, {"sku": "B-2000", "count": 1}],
    }
    wanted, size = kilobytes * 1024, json_bytes(content)
    if wanted > size:
        content["cart"] += [_item(numbers) for _ in range(3)]
        content["recent"] = [numbers.randrange(100_000) for _ in range(12)]
        size = json_bytes(content)
    while size < wanted:
        key, draft = f"draft:{len(content)}", _draft(numbers)
        content[key] = draft
        size += json_bytes({key: draft}) - 1
    return content


def _item(numbers: random.Random) -> dict[str, Any]:
    return {"sku": f"A-{numbers.randrange(10_000)}", "count": numbers.randrange(1, 9)}


def _draft(numbers: random.Random) -> dict[str, Any]:
    return {
        "title": f"Order {numbers.randrange(10**6)}",
        "text": " ".join(f"word{numbers.randrange(1000)}" for _ in range(12)),
        "options": [numbers.randrange(100) for _ in range(6)],
        "express": numbers.random() < 0.5,
        "coupon": None,
        "total": round(numbers.uniform(1, 500), 2),
    }
