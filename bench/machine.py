"""What a run was measured on and with. No host names, no paths."""

from __future__ import annotations

import os
import platform
import sqlite3
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from redis import Redis

from asyncsession import log
from bench.sites.postgres import postgres_version

__all__ = ["environment"]

_LIBRARIES = (
    "asyncsession", "redis", "hiredis", "msgpack", "starsessions", "aiohttp", "aiohttp-session",
    "litestar", "msgspec", "fastapi", "starlette", "uvicorn", "h11", "httptools", "Flask",
    "Flask-Session", "Django", "django-redis", "psycopg", "waitress",
)  # fmt: skip


def environment(url: str) -> dict[str, Any]:
    """Return the machine, and the versions of all that takes part.

    Args:
        url: of the server that is measured.
    """
    with Redis.from_url(url) as redis:
        info = redis.info("server")
    database = postgres_version()
    name = "Valkey" if "valkey_version" in info else "Redis"
    return {
        "cpu": _cpu(),
        "cores": _cores(),
        "memory": f"{_memory() / 2**30:.0f} GiB",
        "system": platform.system(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "core of asyncsession": "interpreted" if _is_source(log) else "compiled by mypyc",
        "server": f"{name} {info.get('valkey_version', info['redis_version'])}",
        "sqlite": sqlite3.sqlite_version,
        **({"postgresql": database} if database else {}),
        "libraries": {library: found for library in _LIBRARIES if (found := _version(library))},
    }


def _is_source(module: ModuleType) -> bool:
    return str(module.__file__).endswith(".py")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:  # httptools takes part only where it is installed
        return None
