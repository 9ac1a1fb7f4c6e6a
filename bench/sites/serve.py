"""Workers: forked from this process, which has imported everything, one for each line it reads.

A line is an `Order` as JSON; the answer is a line with the worker's port, or with what went wrong.
A worker serves until this process ends, and this process until its standard input does.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
import waitress

from bench.sites.kinds import KINDS, Place
from bench.sites.pages import URL

__all__ = ["THREADS", "Order"]

THREADS = 16  # of a WSGI worker; as many requests as the browser has under way

_PRELOADED = (
    "bench.sites.byhand",
    "bench.sites.django_site",
    "bench.sites.flask_site",
    "bench.sites.locks",
    "django.contrib.sessions.middleware",
    "django.core.management.commands.migrate",
    "django.db.backends.postgresql.base",
    "django.db.backends.sqlite3.base",
    "django_redis.client",
    "django_redis.serializers.pickle",
    "flask_session.redis",
)


class Order(NamedTuple):
    """What a worker is to serve.

    Attributes:
        kind: the name of one of `KINDS`.
        redis: the URL of a server.
        directory: for files that the workers of a site share.
        postgres: settings of a Django database, if there is one.
    """

    kind: str
    redis: str
    directory: str
    postgres: dict[str, Any] | None


def main() -> None:
    """Fork workers until the parent closes the pipe, on purpose or by dying."""
    logging.disable()  # what fails is counted by the browser
    for name in _PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    ending, end = os.pipe()  # the other end is ours alone, and closes when we end
    workers = []
    for line in iter(sys.stdin.readline, ""):
        answer, answering = os.pipe()
        workers.append(os.fork())
        if workers[-1] == 0:
            os.close(end)
            os.close(answer)
            _work(Order(*json.loads(line)), ending, answering)
        os.close(answering)
        with os.fdopen(answer) as answers:
            sys.stdout.write(answers.readline() or "it ended before it served\n")
        sys.stdout.flush()
    os.close(end)
    for worker in workers:
        os.waitpid(worker, 0)


def _work(order: Order, ending: int, answering: int) -> None:
    """Serve; end with the process, whatever happens."""
    threading.Thread(target=_end_with_parent, args=[ending], daemon=True).start()
    try:
        kind = KINDS[order.kind]
        os.environ[URL] = order.redis
        place = Place(order.redis, Path(order.directory), order.postgres)
        application = kind.create(place)
        # asyncio switches TCP_NODELAY on only where the protocol is named.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # before the port is known: who connects now waits
        os.write(answering, f"{listener.getsockname()[1]}\n".encode())
        os.close(answering)
        if kind.interface == "wsgi":
            waitress.serve(application, sockets=[listener], threads=THREADS, _quiet=True)
        else:
            config = uvicorn.Config(application, loop="asyncio", log_config=None, lifespan="off")
            uvicorn.Server(config).run(sockets=[listener])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _end_with_parent(ending: int) -> None:
    os.read(ending, 1)
    os.kill(os.getpid(), signal.SIGKILL)  # it has nothing to tidy up


if __name__ == "__main__":
    main()
