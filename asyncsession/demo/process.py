"""Starts the server's process, and ends it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["running_server"]

_END_TIMEOUT = 5.0  # seconds; it takes some tenths


@contextmanager
def running_server() -> Iterator[str]:
    """Run the demo's server while the block runs; yield its URL.

    Raises:
        RuntimeError: it ended before it served; it has said why on standard error.
    """
    process = subprocess.Popen(
        # Imported from where this process imports, and never from the current directory.
        [sys.executable, "-P", "-m", "asyncsession.demo.server"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # a Ctrl-C is for us; we end the server in good order
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError(f"the demo's server ended with status {process.wait()}")
        yield url
    finally:
        process.stdin.close()
        try:
            process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
