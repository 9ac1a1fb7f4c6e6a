"""Loads a page from a process of its own: with wrk if it is there, else with `bench.web.client`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Browser", "Outcome", "load", "loader"]

_SCRIPT = Path(__file__).with_name("browsers.lua")
_GRACE = 30  # seconds after which a client that does not end is given up


class Browser(NamedTuple):
    """One browser: the port of its worker, and its Cookie header."""

    port: int
    cookie: str


class Outcome(NamedTuple):
    """What came of it.

    Attributes:
        answered: requests answered with 200.
        failed: requests answered otherwise, or not at all.
        seconds: how long it took.
        p99: seconds within which 99 % of the answers came.
    """

    answered: int
    failed: int
    seconds: float
    p99: float


def loader() -> str:
    """Return the name of the client that `load` uses."""
    return "wrk" if shutil.which("wrk") else "a Python client"


def load(browsers: Sequence[Browser], seconds: float) -> Outcome:
    """Have each browser ask for the page, again and again on one connection, for some seconds.

    Raises:
        subprocess.SubprocessError: the client failed.
    """
    wrk = shutil.which("wrk")
    printed = _wrk(wrk, browsers, seconds) if wrk else _python(browsers, seconds)
    return Outcome(**json.loads(printed.strip().splitlines()[-1]))


def _wrk(wrk: str, browsers: Sequence[Browser], seconds: float) -> str:
    lines = "".join(f"{browser.port} {browser.cookie}\n" for browser in browsers)
    number = str(len(browsers))
    # wrk counts whole seconds.
    duration = f"{max(1, round(seconds))}s"
    words = [wrk, "-t", number, "-c", number, "-d", duration, "-s", str(_SCRIPT)]
    words += ["--timeout", f"{_GRACE}s"]  # it calls an answer after 2 seconds an error
    return subprocess.run(  # noqa: S603 - fixed words, and a port of our own
        [*words, f"http://127.0.0.1:{browsers[0].port}/"],
        env=os.environ | {"BENCH_BROWSERS": lines},
        timeout=seconds + _GRACE,
        capture_output=True,
        check=True,
        text=True,
    ).stdout


def _python(browsers: Sequence[Browser], seconds: float) -> str:
    order = {"seconds": seconds, "browsers": [browser._asdict() for browser in browsers]}
    return subprocess.run(
        [sys.executable, "-m", "bench.web.client"],
        input=json.dumps(order),
        timeout=seconds + _GRACE,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
