"""WSGI applications on gunicorn, by two processes."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from support.processes import read_line, run

__all__ = ["PATIENCE", "browsing", "gunicorn", "main"]

PATIENCE = 30.0  # seconds after which a test gives up; none waits so long


@contextmanager
def browsing(port: int) -> Iterator[httpx.Client]:
    """Yield a browser that keeps cookies and no connections."""
    limits = httpx.Limits(max_connections=60, max_keepalive_connections=0)
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, limits=limits, timeout=PATIENCE, trust_env=False) as browser:
        yield browser


@contextmanager
def gunicorn(
    module: str, store: str, prefix: str, worker: str, *, preload: bool = False
) -> Iterator[httpx.Client]:
    """Serve what `create_app(store, prefix)` of a module returns; yield a browser.

    Args:
        module: by its name.
        store: the URL of the sessions' store.
        prefix: of their keys.
        worker: the kind of gunicorn's workers.
        preload: make the application before the fork, and not once in each process.
    """
    script = (
        "from support.prefork import main\n"
        f"main({module!r}, {store!r}, {prefix!r}, {worker!r}, {preload!r})"
    )
    process = run(script)
    try:
        with browsing(int(read_line(process))) as browser:
            yield browser
    finally:
        process.communicate(timeout=PATIENCE)


def main(module: str, store: str, prefix: str, worker: str, preload: bool) -> None:
    """Serve until the standard input ends, which it does with the parent; print the port."""
    from gunicorn.app.base import BaseApplication

    class Server(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            listener = socket.create_server(("127.0.0.1", 0), backlog=128)
            listener.set_inheritable(True)
            settings = {
                "bind": f"fd://{listener.detach()}",
                "workers": 2,
                "worker_class": worker,
                "threads": 1 if worker == "sync" else 20,  # else gunicorn takes gthread
                "preload_app": preload,
                "when_ready": _say_port,
                "control_socket_disable": True,
                "loglevel": "critical",
            }
            for name, value in settings.items():
                if name in self.cfg.settings:
                    self.cfg.set(name, value)

        def load(self) -> Any:
            return importlib.import_module(module).create_app(store, prefix)

    Server().run()


def _say_port(arbiter: Any) -> None:
    threading.Thread(target=_stop_with_parent, args=(arbiter.pid,), daemon=True).start()
    sys.stdout.write(f"{arbiter.LISTENERS[0].sock.getsockname()[1]}\n")
    sys.stdout.flush()


def _stop_with_parent(pid: int) -> None:
    sys.stdin.read()
    os.kill(pid, signal.SIGTERM)
