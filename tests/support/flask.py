"""Flask applications, servers and browsers for tests of the integration."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import flask
import httpx
import waitress.server
from waitress import wasyncore
from werkzeug.serving import make_server

from asyncsession import SyncSessionManager, merge
from asyncsession.integrations.cookies import Cookie
from asyncsession.integrations.flask import SessionInterface
from support.prefork import PATIENCE, browsing

__all__ = [
    "CLEARED",
    "SERVERS",
    "Gate",
    "at_once",
    "cookie_of",
    "count",
    "create_app",
    "get",
    "look",
    "make_app",
    "mark",
    "open_manager",
    "plain",
    "sent_by",
    "serve",
    "stored",
    "unreachable_manager",
]

T = TypeVar("T")

CLEARED = Cookie(secure=False).clear()
"""What clears the cookie of an application with Flask's default options."""

_SLOW = 0.05  # seconds in which other requests change the same session


@contextmanager
def open_manager(**options: Any) -> Iterator[SyncSessionManager]:
    """Yield a manager on a real server of this process, with a prefix of its own."""
    policies: dict[str, Any] = {"views": merge.counter, "seat": merge.reject}
    defaults: dict[str, Any] = {"prefix": secrets.token_hex(4), "merge": policies}
    with SyncSessionManager("embedded://web", **{**defaults, "max_bytes": 2048, **options}) as made:
        yield made


@contextmanager
def unreachable_manager() -> Iterator[SyncSessionManager]:
    """Yield a manager whose Redis refuses connections."""
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{bound.getsockname()[1]}"
        with SyncSessionManager(url, timeout=0.1) as manager:
            yield manager


def make_app(
    manager: SyncSessionManager,
    *views: Callable[..., Any],
    config: dict[str, Any] | None = None,
    **options: Any,
) -> flask.Flask:
    """Return an application that serves each view under its name, by GET and POST."""
    app = flask.Flask(__name__)
    app.config |= config or {}
    app.session_interface = SessionInterface(manager, **options)
    for view in views:
        app.add_url_rule(f"/{view.__name__}", view_func=view, methods=["GET", "POST"])
    return app


def plain() -> str:
    """Answer, and leave the session alone."""
    return "hello"


def count() -> str:
    """Count the views in the session."""
    flask.session["views"] = flask.session.get("views", 0) + 1
    return str(flask.session["views"])


def look() -> flask.Response:
    """Show the session."""
    return flask.jsonify(dict(flask.session))


def get(app: flask.Flask, path: str, session_id: str = "", method: str = "GET") -> Any:
    """Have a browser that keeps nothing send a request; return the response."""
    headers = cookie_of(session_id) if session_id else {}
    return app.test_client(use_cookies=False).open(path, method=method, headers=headers)


def stored(manager: SyncSessionManager, **values: Any) -> str:
    """Return the id of a new session with these values."""
    with manager.session() as session:
        session.update(values)
    return session.id


def cookie_of(session_id: str) -> dict[str, str]:
    """Return the request headers that send an id."""
    return {"Cookie": f"session={session_id}"}


def sent_by(response: Any) -> list[str]:
    """Return the Set-Cookie headers of a response of Flask's client, or of httpx."""
    headers = response.headers
    found: list[str] = (
        headers.getlist("set-cookie")
        if hasattr(headers, "getlist")
        else headers.get_list("set-cookie")
    )
    return found


@contextmanager
def _werkzeug(app: Any) -> Iterator[int]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    server.daemon_threads = True  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def _waitress(app: Any) -> Iterator[int]:
    server: Any = waitress.server.create_server(app, host="127.0.0.1", port=0, threads=16)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.effective_port
    finally:
        # It serves for as long as there is something in its map.
        server.trigger.pull_trigger(partial(wasyncore.close_all, server._map, True))
        thread.join()
        server.task_dispatcher.shutdown()


SERVERS: dict[str, Callable[[Any], Any]] = {"werkzeug": _werkzeug, "waitress": _waitress}


@contextmanager
def serve(app: Any, server: str = "werkzeug") -> Iterator[httpx.Client]:
    """Serve a WSGI application in threads; yield a browser that keeps cookies."""
    with SERVERS[server](app) as port, browsing(port) as browser:
        yield browser


def at_once(*calls: Callable[[], T]) -> list[T]:
    """Make calls in a thread each, and return what they return."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result(PATIENCE) for future in [threads.submit(call) for call in calls]]


class Gate:
    """A view that reads its session, waits, and then changes it."""

    def __init__(self, **values: Any) -> None:
        self._entered, self._open = threading.Event(), threading.Event()
        self._values = values

    def slow(self) -> str:
        """Serve a request."""
        dict(flask.session)
        self._entered.set()
        assert self._open.wait(PATIENCE)
        flask.session.update(self._values)
        return "slow"

    def hold(
        self, request: Callable[[], httpx.Response], meanwhile: Callable[[], Any]
    ) -> httpx.Response:
        """Let `meanwhile` happen while a request for `slow` waits; return the response to it."""
        with ThreadPoolExecutor(1) as threads:
            future = threads.submit(request)
            try:
                assert self._entered.wait(PATIENCE)
                meanwhile()
            finally:
                self._open.set()
            return future.result(PATIENCE)


def mark(item: str) -> str:
    """Count, put the item into a list and set a key of its own; return the process."""
    session = flask.session
    session["views"] = session.get("views", 0) + 1
    session.setdefault("items", []).append(item)
    session[f"item:{item}"] = True
    threading.Event().wait(_SLOW)
    return str(os.getpid())


def create_app(store: str, prefix: str) -> flask.Flask:
    """Return the application that gunicorn serves."""
    manager = SyncSessionManager(store, prefix=prefix, merge={"views": merge.counter})
    app = make_app(manager)
    app.add_url_rule("/mark/<item>", view_func=mark)
    return app
