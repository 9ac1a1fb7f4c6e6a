"""Mutants of the protocol: the library with one of its safeguards taken out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import pytest

from asyncsession.draft import Draft
from asyncsession.scripts import SCRIPTS, Script
from support.compiled import only_interpreted

__all__ = ["MUTANTS", "ScriptMutant", "apply", "marks", "rewrite"]


class ScriptMutant(NamedTuple):
    """A replacement in the text of a script."""

    script: str
    old: str
    new: str


def _counts(patch: pytest.MonkeyPatch) -> None:
    """Make commit ids of version numbers."""
    stamp = Draft.stamp

    def count(self: Draft) -> None:
        stamp(self)
        self._id = (self.session.version + 1).to_bytes(16, "big")

    patch.setattr(Draft, "stamp", count)


MUTANTS: dict[str, ScriptMutant | Callable[[pytest.MonkeyPatch], None]] = {
    "no commit id": ScriptMutant(
        "commit",
        "if string.find(blob, id, 1, true) then",
        "if false then",
    ),
    "length for a version": ScriptMutant(
        "commit",
        "sub(blob, base - TRAILER + 1, base) == tip then",
        "base <= #blob then",
    ),
    "ids forgotten at compaction": ScriptMutant(
        "commit",
        "history = table.concat(ids)",
        "history = ''",
    ),
    "what is forgotten is not noted": ScriptMutant(
        "commit",
        "forgotten = math.max(forgotten, math.min(number(history, keep, 6), now + SLACK))",
        "",
    ),
    "no tombstone": ScriptMutant(
        "destroy",
        "redis.call('SET', KEYS[1], mark, 'PX', ARGV[2])",
        "redis.call('DEL', KEYS[1])",
    ),
    "commits create what is gone": ScriptMutant(
        "commit",
        "if not creating then return GONE end",
        "",
    ),
    "tombstones are no obstacle": ScriptMutant(
        "commit",
        ("if kind == 'D' and #blob == HEAD then return GONE end\n    return UNREADABLE"),
        "blob, log = head .. mark .. bytes(2^47, 6) .. ('\\0'):rep(16), HEADER\n"
        "    base, hidden = nil, 0",
    ),
    "guards unchecked": ScriptMutant(
        "commit",
        "if guards ~= '' then",
        "if false then",
    ),
    "compaction drops the tail": ScriptMutant(
        "commit",
        "bytes(#body, 4) .. body .. sub(blob, base + 1, last)",
        "bytes(#body, 4) .. body",
    ),
    "a counter for a commit id": _counts,
}


def marks(name: str) -> list[pytest.MarkDecorator]:
    """Return the marks of a test with this mutant."""
    return [] if isinstance(MUTANTS[name], ScriptMutant) else [only_interpreted]


def apply(name: str, patch: pytest.MonkeyPatch) -> None:
    """Turn the library of this process into a mutant, until `patch` is undone."""
    mutant = MUTANTS[name]
    if not isinstance(mutant, ScriptMutant):
        mutant(patch)
        return
    rewrite(patch, *mutant)


def rewrite(patch: pytest.MonkeyPatch, script: str, old: str, new: str) -> None:
    """Replace what stands once in the text of a script, until `patch` is undone."""
    source = SCRIPTS[script].source
    assert source.count(old) == 1, "this no longer fits the script"
    changed = source.replace(old, new)
    sha = hashlib.sha1(changed.encode(), usedforsecurity=False).hexdigest()
    patch.setitem(SCRIPTS, script, Script(changed, sha))
