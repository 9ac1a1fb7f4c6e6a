"""A Flask site with the pages, given what keeps its sessions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flask

from bench.sites.byhand import ByHand
from bench.sites.pages import PAGES, Page

__all__ = ["create"]


def create(
    set_up: Callable[[flask.Flask], Callable[[], None] | None], *, index: str = "page"
) -> flask.Flask:
    """Return the site.

    Args:
        set_up: gives the application its sessions; returns what ends one, by default
            `session.clear()`.
        index: the page at the root.
    """
    app = flask.Flask("bench")
    app.secret_key = "bench"  # noqa: S105
    end = set_up(app) or (lambda: flask.session.clear())

    def answer(page: Page, argument: str = "") -> dict[str, Any]:
        return page(flask.session, argument)

    def logout(argument: str = "") -> dict[str, Any]:  # noqa: ARG001 - as all pages
        end()
        return {}

    def settle(argument: str = "") -> dict[str, Any]:  # noqa: ARG001
        if isinstance(app.session_interface, ByHand):
            app.session_interface.drain()
        return {}

    views: dict[str, Callable[..., Any]] = {
        name: partial(answer, page) for name, page in PAGES.items()
    }
    for name, view in {**views, "logout": logout, "settle": settle}.items():
        app.add_url_rule(f"/{name}", name, view, methods=["GET"])
        app.add_url_rule(f"/{name}/<argument>", name, view, methods=["GET"])
    app.add_url_rule("/", "index", views[index])
    return app
