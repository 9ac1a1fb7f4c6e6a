"""The servers that the other tests run against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from support.processes import connect, eventually, hangs_up, read_line, run
from support.servers import FLAVOURS, Server, ServerFailed, available, tls_flavour

GetServer = Callable[[str], Server]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_flavour_answers(get_server: GetServer, flavour: str) -> None:
    server = get_server(flavour)
    assert get_server(flavour) is server
    for url in (server.url, server.unix_url):
        with redis.Redis.from_url(url) as client:
            assert client.ping()
            assert client.info("server")["process_id"] == server.pid


def test_some_flavour_is_available() -> None:
    assert available()


def test_server_keeps_port_and_data_through_restart_and_kill() -> None:
    with Server(available()[0], appendonly="yes", appendfsync="always") as server:
        port = server.port
        with redis.Redis.from_url(server.url) as client:
            client.set("key", "value")
        server.restart()
        server.kill()
        assert not server.running
        with pytest.raises(redis.ConnectionError), redis.Redis.from_url(server.url) as client:
            client.ping()
        server.start(maxmemory="100mb")
        assert server.port == port
        with redis.Redis.from_url(server.url) as client:
            assert client.get("key") == b"value"
            assert client.config_get("maxmemory") == {"maxmemory": str(100 * 2**20)}
    assert not server.running
    assert not server.directory.exists()


def test_server_with_a_password() -> None:
    with Server(available()[0], requirepass="secret") as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
        anonymous = redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0))
        with anonymous, pytest.raises(redis.AuthenticationError):
            anonymous.ping()


def test_server_that_does_not_start_says_why() -> None:
    server = Server(available()[0])
    with pytest.raises(ServerFailed, match="no-such-option"):
        server.start(no_such_option=1)
    server.close()


def test_server_with_tls() -> None:
    flavour = tls_flavour()
    if flavour is None:
        pytest.skip("no server here speaks TLS")
    with Server(flavour, tls=True) as server:
        ca_file = str(server.ca_file)
        with redis.Redis.from_url(server.rediss_url, ssl_ca_certs=ca_file) as client:
            assert client.ping()


def test_servers_end_with_a_killed_test_process() -> None:
    script = (
        "import sys; from support.servers import Server, available\n"
        "server = Server(available()[0]).start()\n"
        "print(server.config['unixsocket'], flush=True); sys.stdin.read()"
    )
    with run(script) as process:
        path = read_line(process)
        with connect(path) as connection:
            process.kill()
            assert hangs_up(connection)
    eventually(lambda: not Path(path).parent.parent.exists())
