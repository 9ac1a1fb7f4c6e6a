"""Fuzz one target, guided by coverage, with a limit on memory and on the time for each input.

    pip install -e '.[fuzz]'
    PYTHONPATH=tests python -m fuzz.run value -max_total_time=300

The target is one of `fuzz.targets`; what follows are options of libFuzzer. What is found is written
to `crash-*`, and run again by giving that file's name. Inputs are as long as a session may be
(`max_bytes`), and each may take a second and some MB.
"""

from __future__ import annotations

import datetime as dt
import sys
import tempfile
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["asyncsession"]):
    from asyncsession.blob import FORMAT, encode_frame, encode_payload
    from asyncsession.delta import Op, diff
    from asyncsession.ids import new_id, session_handle
    from asyncsession.values import pack_value
    from fuzz.targets import TARGETS

_LIMITS = ["-max_len=65536", "-timeout=5", "-rss_limit_mb=400", "-malloc_limit_mb=64"]
"""`rss_limit_mb` is for the whole process, which takes 120 when it begins."""


def seeds() -> Iterator[bytes]:
    """Yield input in good order, for the fuzzer to spoil."""
    values = [
        None, 2**70, -1.5, "text", b"bytes", [1, [2]], {"a": {"b": [1]}, 1: 2}, {1, "a"},
        frozenset([frozenset([2**70])]), dt.datetime.now(dt.UTC), dt.date.today(), dt.time(1),
        dt.timedelta(1, 2, 3), Decimal("1E+5"), uuid.uuid4(), [{"x": n} for n in range(9)],
    ]  # fmt: skip
    packed = [pack_value("key", value) for value in values]
    yield from packed
    deltas = [bytes((op,)) + one for op in Op for one in packed]
    deltas += [diff(one, other) or b"" for one in values for other in values]
    yield from deltas
    yield from (bytes((delta[0] | n % 4 << 6, len(delta) - 1)) + delta[1:]
                for n, delta in enumerate(deltas) if 1 < len(delta) < 256)  # fmt: skip
    changes = {f"k{n}": delta for n, delta in enumerate(deltas[:40]) if delta}
    yield encode_payload(changes)
    framed = encode_frame(changes) + bytes(22)
    yield framed
    yield FORMAT + b"L" + bytes(8) + (b"\1" * 12) + bytes(16) + framed * 2
    name = new_id()
    yield f"cookie\n__Host-session={name}; s={name}".encode()
    yield f"Bearer {name}".encode()
    yield session_handle(name).encode()
    yield b"redis://user:pass@host:1/2?socket_timeout=1&ssl_cert_reqs=none&protocol=3"


def main() -> None:
    """Run until told to stop."""
    name, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], *_LIMITS, *options, corpus], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
