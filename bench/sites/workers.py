"""Worker processes of several sites at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.sites.kinds import Kind
from bench.sites.serve import Order

__all__ = ["running_workers"]


@contextmanager
def running_workers(
    kinds: Sequence[Kind],
    processes: int,
    url: str,
    directory: Path,
    postgres: dict[str, Any] | None = None,
) -> Iterator[dict[str, list[int]]]:
    """Run so many workers of each site while the block runs; yield their ports by name.

    Args:
        kinds: of the sites.
        processes: workers of each site.
        url: of the Redis server.
        directory: each site gets one of its own in it.
        postgres: settings of a Django database, if there is one.

    Raises:
        RuntimeError: a worker ended; it has said why on standard error.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "bench.sites.serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # a Ctrl-C is for us; we end the workers in good order
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ports: dict[str, list[int]] = {}
        for at, kind in enumerate(kinds):
            own = directory / str(at)
            own.mkdir()
            ports[kind.name] = []
            for _ in range(processes):
                process.stdin.write(json.dumps(Order(kind.name, url, str(own), postgres)) + "\n")
                process.stdin.flush()
                printed = process.stdout.readline().strip()
                if not printed.isdigit():
                    raise RuntimeError(f"{kind.name}: {printed}")
                ports[kind.name].append(int(printed))
        yield ports
