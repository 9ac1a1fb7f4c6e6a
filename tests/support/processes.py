"""Helpers for tests about processes that end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["PATIENCE", "connect", "eventually", "hangs_up", "read_line", "run"]

PATIENCE = 10.0  # seconds after which a test gives up; none waits so long


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds, and fail if it doesn't in time."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def hangs_up(connection: socket.socket) -> bool:
    """Wait for the server behind an idle connection to go away."""
    connection.settimeout(PATIENCE)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def run(script: str) -> subprocess.Popen[str]:
    """Run Python code in a process that can import the library and `support`."""
    tests = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
    )


def read_line(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process of `run` prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def connect(path: str) -> socket.socket:
    """Connect to a server's unix socket and see that it answers."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(path)
    connection.sendall(b"PING\r\n")
    assert connection.recv(7) == b"+PONG\r\n"
    return connection
