"""Servers that are not reached: definite, named, nothing written; at once where no retry helps."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from redis.asyncio import Redis
from support.refusals import both
from support.servers import Server, tls_flavour

from asyncsession import CommitOutcomeUnknown, Session, SessionManager, StoreUnavailable
from asyncsession.ids import store_key
from asyncsession.transport import link


@pytest.fixture(scope="module")
def encrypted() -> Iterator[Server]:
    flavour = tls_flavour()
    if flavour is None:
        pytest.skip("no server here was built with TLS")
    with Server(flavour, tls=True) as server:
        yield server


async def test_a_certificate_that_nobody_vouches_for(encrypted: Server) -> None:
    async with both(encrypted.rediss_url, patience=10) as pair, asyncio.timeout(8):
        await pair.is_unreachable("CERTIFICATE_VERIFY_FAILED")


async def test_a_certificate_of_another_host(encrypted: Server) -> None:
    url = f"{encrypted.rediss_url}?ssl_ca_certs={encrypted.ca_file}".replace(
        "127.0.0.1", "127.0.0.2"
    )
    async with Redis.from_url(encrypted.url) as redis:
        await redis.config_set("bind", "127.0.0.1 127.0.0.2")
    async with both(url, patience=10) as pair, asyncio.timeout(8):
        await pair.is_unreachable("CERTIFICATE_VERIFY_FAILED")


async def test_without_tls_to_a_port_that_wants_it(encrypted: Server) -> None:
    async with both(f"redis://127.0.0.1:{encrypted.tls_port}", patience=0.4) as pair:
        await pair.is_unreachable(": (Connection|Timeout)Error: |does not speak the protocol")


async def test_with_tls_to_a_port_without(encrypted: Server) -> None:
    """The server takes the handshake for the beginning of a command, and waits for the rest."""
    async with both(f"rediss://127.0.0.1:{encrypted.port}", patience=0.4) as pair:
        await pair.is_unreachable("no answer in time|Timeout connecting|WRONG_VERSION")


async def test_a_name_that_dns_does_not_know() -> None:
    async with both("redis://nobody.invalid:6379", patience=2) as pair:
        await pair.is_unreachable("nobody.invalid")


@pytest.mark.parametrize("host", ["a" * 64, "a" * 300, "a..b", "\u3002"])
async def test_a_name_that_dns_cannot_know(host: str) -> None:
    async with both(f"redis://{host}:6379", patience=0.2) as pair:
        await pair.is_unreachable("Error|no answer in time")


async def test_a_port_where_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with both(f"redis://127.0.0.1:{taken.getsockname()[1]}", patience=0.4) as pair:
            await pair.is_unreachable("Error 111")


@contextmanager
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        yield listening


async def test_a_listener_that_never_answers() -> None:
    with listener() as hole:
        async with both(f"redis://127.0.0.1:{hole.getsockname()[1]}", patience=0.4) as pair:
            await pair.is_unreachable("no answer in time|Timeout")


async def test_an_address_that_swallows_all_packets() -> None:
    """The kernel drops what is to open a connection that nobody is going to accept."""
    with listener() as hole:
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(hole.getsockname())
            async with both(f"redis://127.0.0.1:{hole.getsockname()[1]}", patience=0.4) as pair:
                await pair.is_unreachable("no answer in time|Timeout connecting")
        finally:
            for filler in fillers:
                filler.close()


@asynccontextmanager
async def speaking(answer: bytes) -> AsyncIterator[str]:
    """Listen, answer whatever comes with this and hang up; the value is the URL."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\0\0\0\0",
        b"220 mail\r\n",
        b"<html>",
    ],
    ids=["HTTP", "SSH", "zeros", "SMTP", "HTML"],
)
async def test_a_server_of_another_kind(answer: bytes) -> None:
    async with speaking(answer) as url, both(url, patience=10) as pair, asyncio.timeout(8):
        await pair.is_unreachable("does not speak the protocol of Redis")


@pytest.mark.parametrize("answer", [b"+OK\r\n", b"-\r\n", b":1\r\n$-1\r\n", b""])
async def test_a_server_that_almost_speaks_it(answer: bytes) -> None:
    async with speaking(answer) as url, both(url, patience=0.3) as pair:
        await pair.is_unreachable("refused: .")


async def test_more_calls_than_a_lane_takes_are_refused_or_unknown_and_that_is_true(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of what was refused while the server was silent nothing is done later."""
    monkeypatch.setattr(link, "_MAX_WAITING", 16)
    with Server("valkey9") as server:
        async with (
            SessionManager(server.url, timeout=0.6) as manager,
            Redis.from_url(server.url) as redis,
        ):
            await manager.load("abc." + "x" * 32)
            sessions = [Session() for _ in range(64)]
            for session in sessions:
                session["a"] = 1
            os.kill(server.pid, signal.SIGSTOP)
            outcomes: list[Any] = await asyncio.gather(
                *map(manager.save, sessions), return_exceptions=True
            )
            os.kill(server.pid, signal.SIGCONT)
            kinds = {type(outcome) for outcome in outcomes}
            assert kinds == {StoreUnavailable, CommitOutcomeUnknown}
            later = await manager.load()
            later["a"] = 1
            await manager.save(later)  # behind all that was sent before
            for session, outcome in zip(sessions, outcomes, strict=True):
                if type(outcome) is StoreUnavailable:
                    assert not await redis.exists(store_key("session", session.handle))
                    await manager.save(session)
                else:
                    await manager.save(session)
                    assert session.version == 1, "once"
