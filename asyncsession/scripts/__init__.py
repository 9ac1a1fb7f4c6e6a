"""The Lua scripts, by name, with the SHA-1 under which a server keeps them.

Each file opens with its contract: keys, arguments, replies. A test holds them to it. What they
share stands in numbers.lua and blobs.lua, which go before each, since a script cannot include
another; in that of loads known.lua goes between the two.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import NamedTuple

__all__ = ["SCRIPTS", "Script"]


class Script(NamedTuple):
    """One script.

    Attributes:
        source: its text.
        sha: hex SHA-1 of the text, for EVALSHA.
    """

    source: str
    sha: str


def _text(name: str) -> str:
    return files(__name__).joinpath(f"{name}.lua").read_text("utf-8")


def _read(name: str, *parts: str) -> Script:
    source = "".join(map(_text, (*parts, name)))
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


_NAMES = ("adopt", "commit", "destroy", "index", "original", "touch")
SCRIPTS = {name: _read(name, "numbers", "blobs") for name in _NAMES}
SCRIPTS["load"] = _read("load", "numbers", "known", "blobs")
