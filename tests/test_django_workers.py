"""Django on gunicorn with two processes, and one browser that does many things at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import redis
from support.django import COOKIE
from support.flask import at_once
from support.prefork import gunicorn
from support.servers import Server

from asyncsession import SyncSessionManager

PARALLEL = 20
WAVES = 10  # until both processes have served; which one accepts is the kernel's choice


@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_parallel_requests_on_two_processes_made_by_a_fork(
    get_server: Callable[[str], Server], worker: str
) -> None:
    prefix = f"django-{worker}"
    url = f"{get_server('valkey9').url}?client_name={prefix}"
    with (
        gunicorn("support.django_prefork", url, prefix, worker, preload=True) as browser,
        redis.Redis.from_url(url.partition("?")[0]) as server,
    ):
        key = browser.get("/visit/first").cookies[COOKIE]
        items, processes = ["first"], set()
        for wave in range(WAVES):
            names = [f"{wave}-{number}" for number in range(PARALLEL)]
            for answer in at_once(*(partial(browser.get, f"/visit/{name}") for name in names)):
                assert (answer.status_code, answer.cookies[COOKIE]) == (200, key)
                processes.add(answer.headers["X-Process"])
            items += names
            if len(processes) == 2:
                break
        connections = [one for one in server.client_list() if one["name"] == prefix]
    assert len(processes) == 2
    assert len(connections) >= 3, "that of the parent, and those of each process, which are its own"
    with SyncSessionManager(url, prefix=prefix) as manager:
        session = manager.load(key)
    assert session["views"] == len(items)
    assert sorted(session["cart"]) == sorted(items)
    assert all(session[f"item:{item}"] for item in items)
