"""Worker processes of one application, and the browsers that visit it."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench.run import WorkNotDone
from bench.web.load import Browser, load

__all__ = ["Site", "running_site"]

_END_TIMEOUT = 5.0  # seconds; it takes some tenths


class Site:
    """An application, its workers, and browsers that have been there once.

    Each worker has a port of its own and as many of the browsers as the others, as a balancer
    would spread them; on one shared port the kernel may give nearly all of them to one worker.

    Args:
        name: the kind of application.
        ports: of its workers.
        browsers: how many.

    Attributes:
        ports: of its workers.
        browsers: with the cookies they were given.
    """

    def __init__(self, name: str, ports: list[int], browsers: int) -> None:
        self.name = name
        self.ports = ports
        self._counts = not name.endswith("no session")
        self.browsers = [_enter(ports[at % len(ports)]) for at in range(browsers)]
        self._views = browsers if self._counts else 0  # that the pages have shown, all together

    def load(self, seconds: float) -> dict[str, float]:
        """Have all browsers ask for the page for some seconds, and look at their counters.

        Raises:
            WorkNotDone: a request failed, or the counters show more than was asked for.
        """
        outcome = load(self.browsers, seconds)
        if outcome.failed:
            raise WorkNotDone(f"{self.name}: {outcome.failed} requests failed")
        return {
            "answered": outcome.answered,
            "rate": outcome.answered / outcome.seconds,
            "p99": outcome.p99 * 1000,
            "lost": self._lost(outcome.answered) / outcome.answered,
        }

    def _lost(self, answered: int) -> int:
        if not self._counts:
            return 0
        before, browsers = self._views, len(self.browsers)
        self._views = sum(_visit(browser)[0] for browser in self.browsers)
        # wrk stops without waiting for the answers that are under way, one for each browser.
        extra = self._views - before - browsers - answered
        if extra > browsers:
            raise WorkNotDone(f"{self.name} counted {extra} visits more than there were")
        return max(0, -extra)


@contextmanager
def running_site(name: str, url: str, workers: int, browsers: int) -> Iterator[Site]:
    """Run an application in so many processes while the block runs.

    Raises:
        RuntimeError: a worker ended before it served; it has said why on standard error.
    """
    with ExitStack() as stack:
        ports = [stack.enter_context(_worker(name, url)) for _ in range(workers)]
        yield Site(name, ports, browsers)


@contextmanager
def _worker(name: str, url: str) -> Iterator[int]:
    process = subprocess.Popen(  # noqa: S603 - this interpreter
        [sys.executable, "-m", "bench.web.serve", name, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # a Ctrl-C is for us; we end the worker in good order
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        printed = process.stdout.readline().strip()
        if not printed:
            raise RuntimeError(f"a worker ended with status {process.wait()}")
        yield int(printed)
    finally:
        process.stdin.close()
        try:
            process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _enter(port: int) -> Browser:
    _views, cookie = _visit(Browser(port, ""))
    return Browser(port, cookie)


def _visit(browser: Browser) -> tuple[int, str]:
    """Ask for the page once; return what it shows and the cookie it sets, without attributes."""
    connection = http.client.HTTPConnection("127.0.0.1", browser.port, timeout=10)
    try:
        connection.request("GET", "/", headers={"Cookie": browser.cookie} if browser.cookie else {})
        response = connection.getresponse()
        if response.status != 200:
            raise WorkNotDone(f"the page answered {response.status}")
        views: int = json.load(response)["views"]
        return views, response.headers.get("set-cookie", "").partition(";")[0]
    finally:
        connection.close()
