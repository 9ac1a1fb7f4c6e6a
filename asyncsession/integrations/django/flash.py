"""Flash messages: how those of parallel requests are merged.

`django.contrib.messages` keeps all messages of a session in one text, JSON. To a merge that does
not look inside, a message that one request adds and one that another shows are a conflict, and one
of the two would be lost.
"""

from __future__ import annotations

import json
from typing import Any

from asyncsession.delta import apply, diff
from asyncsession.operations import MISSING

__all__ = ["merge_messages"]


def merge_messages(base: Any, ours: Any, theirs: Any) -> Any:
    """Return their messages without those that we have shown, and with those that we have added.

    A merge policy for the session key `_messages` (`MERGE`), which has it by default. What is no
    list of messages, such as what another message storage keeps under this key, is merged as any
    other value.
    """
    lists = [_listed(value) for value in (base, ours, theirs)]
    if any(items is None for items in lists):
        delta = diff(base, ours)
        return theirs if delta is None else apply(theirs, delta)
    before, after, other = lists
    delta = diff(before, after)
    merged = other if delta is None else apply(other, delta)
    return json.dumps(merged, separators=(",", ":")) if merged else MISSING


def _listed(value: Any) -> list[Any] | None:
    """Return the messages in a value, None if it is something else."""
    if value is MISSING:
        return []
    if not isinstance(value, str):
        return None
    try:
        items = json.loads(value)
    except ValueError:
        return None
    return items if isinstance(items, list) else None
