"""A PostgreSQL server of the machine's, if it has one, for the length of a run."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import psycopg

from bench.server import watched

__all__ = ["postgres_version", "running_postgres"]

_DEBIAN = Path("/usr/lib/postgresql")
_USERS = "postgres", "nobody"  # as whom root runs it, since it refuses to be run by root
_PATIENCE = 20.0  # seconds; it takes one
_CONNECTIONS = 400  # a thread of every worker has one


@contextmanager
def running_postgres() -> Iterator[dict[str, Any] | None]:
    """Run a server while the block runs; yield Django's settings of a database in it.

    It has the default settings, so that it writes each commit to the disk. None is yielded where
    there is no PostgreSQL.

    Raises:
        RuntimeError: it does not start; the message holds what it printed.
    """
    binaries = _binaries()
    if binaries is None:
        yield None
        return
    user = _user()
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name,
        tempfile.TemporaryFile() as log,
    ):
        if user is not None:
            shutil.chown(name, user)
        data = f"{name}/data"
        made = subprocess.run(  # noqa: S603 - the machine's own binaries
            [binaries / "initdb", "-D", data, "-U", "bench", "--auth=trust", "--no-sync"],
            user=user,
            cwd="/",
            capture_output=True,
            check=False,
            text=True,
        )
        if made.returncode:
            raise RuntimeError(f"initdb: {made.stderr}")
        options = {
            "unix_socket_directories": name,
            "listen_addresses": "",
            "max_connections": _CONNECTIONS,
        }
        words = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        command = [str(binaries / "postgres"), "-D", data, *words]
        process = watched(command, name, log, end_by="QUIT", user=user)
        try:
            _wait(f"host={name} user=bench dbname=postgres", log)
            yield {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": "postgres",
                "USER": "bench",
                "HOST": name,
                "CONN_MAX_AGE": None,
            }
        finally:
            process.communicate()


def _wait(address: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            psycopg.connect(address).close()
        except psycopg.OperationalError as error:  # nobody listens yet
            if time.monotonic() > deadline:
                log.seek(0)
                raise RuntimeError(f"PostgreSQL: {log.read().decode()}") from error
            time.sleep(0.01)
        else:
            return


@cache
def postgres_version() -> str | None:
    """Return the version that `running_postgres` would run, None where there is none."""
    binaries = _binaries()
    if binaries is None:
        return None
    printed = subprocess.run(  # noqa: S603 - the machine's own binaries
        [binaries / "postgres", "--version"], capture_output=True, check=True, text=True
    ).stdout
    return printed.split()[2]


def _binaries() -> Path | None:
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    newest = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parent.parent.name))
    return newest[-1].parent if newest else None


def _user() -> str | None:
    """Return as whom to run it: ourselves, unless we are root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(user for user in _USERS if user in known)
