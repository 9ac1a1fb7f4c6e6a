"""SyncSessionManager in processes that are patched, fork, or are interrupted all the time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.processes import run
from support.servers import Server


@pytest.fixture
def server(get_server: Callable[[str], Server]) -> Server:
    return get_server("valkey9")


STRIKING = """
import random, signal
from asyncsession import SyncSessionManager

def interrupt(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
manager = SyncSessionManager({url!r}, connections=1)
ids = []
for number in range(4):
    with manager.session() as session:
        session["owner"] = number
    ids.append(session.id)
struck = 0
while struck < 2000:
    number = random.randrange(4)
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.0006))
        while True:
            assert manager.load(ids[number])["owner"] == number
    except KeyboardInterrupt:
        struck += 1
assert manager.load(ids[0])["owner"] == 0
print("whole", manager._transport._pool._idle.qsize())
"""


def test_signals_at_any_moment_cost_no_connection_for_good(server: Server) -> None:
    """A slot that is lost for each would soon leave none; hiredis must not write out numbers."""
    process = run(STRIKING.format(url=server.url))
    assert process.communicate(timeout=60)[0] == "whole 1\n"


FORKING = """
import os, sys, threading
from asyncsession import SyncSessionManager, merge

CHILDREN, COMMITS = 4, 50
manager = SyncSessionManager({url!r}, merge={{"n": merge.counter}}, connections={connections})
with manager.session() as session:
    session["n"] = 0

def ports():
    sockets = [connection._get_socket() for connection in manager._transport._pool._open]
    return {{socket.getsockname()[1] for socket in sockets if socket is not None}}

def work():
    for _ in range(COMMITS):
        with manager.session(session.id) as mine:
            mine["n"] += 1

busy = [threading.Thread(target=work) for _ in range({threads})]
for thread in busy:
    thread.start()
inherited, children = ports(), []
for _ in range(CHILDREN):
    child = os.fork()
    if not child:
        manager.load(session.id)
        fresh = bool(ports()) and not ports() & inherited
        work()
        os._exit(0 if fresh else 1)
    children.append(child)
work()
for thread in busy:
    thread.join()
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print(codes, manager.load(session.id)["n"] == COMMITS * (CHILDREN + 1 + {threads}))
"""


@pytest.mark.parametrize(("threads", "connections"), [(0, 32), (2, 1)])
def test_forked_children_use_nothing_of_their_parents(
    server: Server, threads: int, connections: int
) -> None:
    """Also where at the fork another thread was holding the only connection."""
    values = {"url": server.url, "threads": threads, "connections": connections}
    process = run(FORKING.format(**values))
    assert process.communicate(timeout=30)[0] == "[0, 0, 0, 0] True\n"


GREENLETS = """
from gevent import monkey; monkey.patch_all()
import gevent, random
from asyncsession import SyncSessionManager, merge

def added(base, ours, theirs):
    return ours + theirs - base

policies = {{"n": merge.counter, "sum": added}}
manager = SyncSessionManager({url!r}, merge=policies, connections=8, timeout=10)
with manager.session() as session:
    session["n"] = session["sum"] = 0
ids = []
for number in range(20):
    with manager.session() as mine:
        mine["owner"] = number
    ids.append(mine.id)
at_once = most = 0

def work(number):
    global at_once, most
    at_once += 1
    most = max(most, at_once)
    with manager.session(session.id) as mine:
        mine["n"] += 1
        mine["sum"] += 1
    at_once -= 1

gevent.joinall([gevent.spawn(work, number) for number in range(100)], raise_error=True)
final = manager.load(session.id)

killed = 0
def ask(number):
    assert manager.load(ids[number])["owner"] == number

for _ in range(10):
    asking = [gevent.spawn(ask, number) for number in range(20)]
    gevent.sleep(random.random() / 200)
    doomed = random.sample(asking, 8)
    gevent.killall(doomed)
    gevent.joinall(asking, raise_error=True)
    killed += sum(isinstance(one.value, gevent.GreenletExit) for one in doomed)
for number in range(20):
    ask(number)
print(final["n"], final["sum"], most > 8, killed > 0, len(manager._transport._pool._open) <= 8)
"""


def test_greenlets(server: Server) -> None:
    pytest.importorskip("gevent")
    process = run(GREENLETS.format(url=server.url))
    assert process.communicate(timeout=60)[0] == "100 100 True True True\n"
