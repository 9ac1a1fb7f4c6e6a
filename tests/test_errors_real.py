"""Errors of real servers: definite, named, nothing written, and over when the cause is.

The causes are real: a full memory, a disk that cannot be written, a replica, a busy script, a
server that is loading, rights that are missing, a node of a Cluster.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from support.refusals import both, contents, every_verb, saved
from support.servers import Server

from asyncsession import CommitOutcomeUnknown, SessionManager, StoreUnavailable
from asyncsession.ids import store_key
from asyncsession.session import Session

DEPLOYING = Path(__file__).parent.parent / "docs" / "deploying.md"


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    with Server("valkey9") as server:
        yield server


@pytest.fixture
async def server(own_server: Server) -> AsyncIterator[Server]:
    """A server that the test may configure, empty and as it was at first."""
    yield own_server
    async with Redis.from_url(own_server.url) as redis:
        await redis.replicaof("no", "one")
        for name, value in {"maxmemory": "0", "min-replicas-to-write": "0", "save": "",
                            "maxclients": "1000"}.items():  # fmt: skip
            await redis.config_set(name, value)
        await redis.flushall()


async def fill_memory(redis: Redis, server: Server) -> None:
    await redis.config_set("maxmemory", "1")


async def free_memory(redis: Redis, server: Server) -> None:
    await redis.config_set("maxmemory", "0")


async def become_replica(redis: Redis, server: Server) -> None:
    await redis.replicaof("127.0.0.1", "1")


async def become_primary(redis: Redis, server: Server) -> None:
    await redis.replicaof("no", "one")


async def want_replicas(redis: Redis, server: Server) -> None:
    await redis.config_set("min-replicas-to-write", "1")


async def want_no_replicas(redis: Redis, server: Server) -> None:
    await redis.config_set("min-replicas-to-write", "0")


async def break_disk(redis: Redis, server: Server) -> None:
    """Have a background save fail: where its file belongs, there is a directory."""
    (server.directory / "dump.rdb").mkdir()
    await redis.config_set("save", "3600 1")
    await redis.bgsave()
    await saved_with(redis, "err")


async def mend_disk(redis: Redis, server: Server) -> None:
    await asyncio.to_thread(shutil.rmtree, server.directory / "dump.rdb")
    await redis.bgsave()
    await saved_with(redis, "ok")
    await asyncio.to_thread((server.directory / "dump.rdb").unlink)


async def saved_with(redis: Redis, status: str) -> None:
    """Wait until a background save has ended so."""
    while (await redis.info("persistence"))["rdb_last_bgsave_status"] != status:
        pass


Step = Callable[[Redis, Server], Any]
REFUSALS: dict[str, tuple[Step, Step]] = {
    "OOM": (fill_memory, free_memory),
    "READONLY": (become_replica, become_primary),
    "NOREPLICAS": (want_replicas, want_no_replicas),
    "MISCONF": (break_disk, mend_disk),
}


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_server_that_takes_no_writes(server: Server, code: str) -> None:
    cause, cure = REFUSALS[code]
    async with Redis.from_url(server.url) as redis, both(server.url) as pair:
        await pair.begin()
        before = await contents(redis)
        await cause(redis, server)
        await pair.is_refused(f": {code}: ")
        assert await contents(redis) == before
        await cure(redis, server)
        await pair.recovers()


@pytest.mark.parametrize("code", ["OOM", "NOREPLICAS", "MISCONF"])
async def test_reading_goes_on_where_nothing_can_be_written(server: Server, code: str) -> None:
    """Also when the idle timeout should be put off; the session then ends when it would have."""
    cause, _ = REFUSALS[code]
    async with (
        Redis.from_url(server.url) as redis,
        both(server.url, idle_timeout=100) as short,
        both(server.url, idle_timeout=1000) as long,
    ):
        sessions = await short.each(saved)
        keys = await redis.keys()
        await cause(redis, server)
        ids = iter(sessions)
        assert await long.each(lambda manager: value_of(manager, next(ids).id)) == [1, 1]
        assert [await redis.ttl(key) <= 100 for key in keys] == [code != "OOM"] * 2
        if code == "MISCONF":
            await mend_disk(redis, server)


async def value_of(manager: Any, session_id: str) -> Any:
    return (await manager.load(session_id))["a"]


async def test_a_replica_says_so_when_it_should_put_off_a_timeout(server: Server) -> None:
    """Else a manager that mostly reads would stay with it after a failover, and sessions end."""
    async with Redis.from_url(server.url) as redis, SessionManager(server.url) as manager:
        session = await saved(manager)
        await redis.pexpire(store_key("session", session.handle), 5000)
        await become_replica(redis, server)
        load = asyncio.create_task(manager.load(session.id))
        while (
            not (await redis.info("commandstats")).get("cmdstat_pexpire", {}).get("rejected_calls")
        ):
            assert not load.done()
        await become_primary(redis, server)
        assert dict(await load) == {"a": 1}


async def test_a_key_of_another_type(server: Server) -> None:
    async with Redis.from_url(server.url) as redis, both(server.url) as pair:

        async def check(manager: Any) -> None:
            session = Session()
            session["a"] = 1
            key = store_key(manager._settings.prefix, session.handle)
            await redis.sadd(key, "x")
            for verb, argument in ((manager.load, session.id), (manager.save, session)):
                with pytest.raises(StoreUnavailable, match=": WRONGTYPE: "):
                    await verb(argument)
            assert await redis.smembers(key) == {b"x"}
            await redis.delete(key)
            await manager.save(session)
            assert await value_of(manager, session.id) == 1

        await pair.each(check)


async def test_a_script_of_somebody_else_that_does_not_end(server: Server) -> None:
    async with (
        Redis.from_url(server.url) as redis,
        Redis.from_url(server.url) as other,
        both(server.url) as pair,
    ):
        await pair.begin()
        before = await contents(redis)
        await redis.config_set("busy-reply-threshold", "1")
        loop = asyncio.ensure_future(other.eval("while true do end", 0))
        while not await is_answered(redis, "BUSY"):
            assert not loop.done()
        await pair.is_refused(": BUSY: ")
        await redis.script_kill()
        with suppress(ResponseError):
            await loop
        assert await contents(redis) == before
        await pair.recovers()


async def is_answered(redis: Redis, code: str) -> bool:
    """Tell whether a server answers with such an error."""
    try:
        await redis.ping()
    except ResponseError as error:
        return str(error).startswith(code)
    except RedisConnectionError as error:  # which LOADING is
        return error.status_code == code
    return False


async def test_a_server_that_is_loading() -> None:
    store = Server("valkey9")
    try:
        await asyncio.to_thread(store.start)
        async with both(store.url, patience=0.8) as pair:
            async with Redis.from_url(store.url) as redis:
                await pair.begin()
                await redis.mset({f"k{number}": "x" for number in range(6_000)})
                before = await contents_of(redis)
                await redis.save()
            await asyncio.to_thread(store.stop)
            slow = {"key_load_delay": 100, "loading_process_events_interval_bytes": 1024}
            store.config |= slow
            await asyncio.to_thread(store._launch)
            await asyncio.to_thread(wait_for_loading, store)
            await pair.is_refused(": LOADING: ")
            await asyncio.to_thread(store._wait_until_ready, float("inf"))
            async with Redis.from_url(store.url) as redis:
                assert await contents_of(redis) == before
            await pair.recovers()
    finally:
        await asyncio.to_thread(store.close)


def wait_for_loading(store: Server) -> None:
    while True:
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(str(store.config["unixsocket"]))
            probe.sendall(b"PING\r\n")
            answer = probe.recv(16)
            assert not answer.startswith(b"+PONG"), "it loads too fast to be seen"
            if answer.startswith(b"-LOADING"):
                return


async def contents_of(redis: Redis) -> dict[Any, Any]:
    """Return the sessions that a server holds."""
    return {key: await redis.get(key) for key in sorted(await redis.keys("*sync:*"))}


async def test_no_connection_left(server: Server) -> None:
    async with Redis.from_url(server.url) as redis, both(server.url) as pair:
        await redis.config_set("maxclients", "1")
        try:
            # It hangs up at once: what was said before may not be read any more.
            await pair.is_unreachable(": ERR: max number of clients reached|: ConnectionError: ")
            assert not await redis.keys()
        finally:
            await redis.config_set("maxclients", "1000")
        await pair.each(every_verb)


def rights() -> list[str]:
    """Return the words of the ACL command in the docs."""
    (rule,) = re.findall(r"(?ms)^```\n(ACL SETUSER.*?)^```", DEPLOYING.read_text("utf-8"))
    return str(rule).split()


COMMANDS = [word.removeprefix("+") for word in rights() if re.fullmatch(r"\+\w+", word)]


def granted(server: Server) -> str:
    """Return the URL of the user in the docs, in a database that has to be selected."""
    return f"redis://app:secret@127.0.0.1:{server.port}/1"


@pytest.mark.parametrize("command", COMMANDS)
async def test_each_right_of_the_docs_is_needed_and_named(server: Server, command: str) -> None:
    async with Redis.from_url(server.url) as redis:
        await redis.execute_command("ACL", "DELUSER", "app")  # type: ignore[no-untyped-call]
        await redis.execute_command(*rights(), "~async:*", "~sync:*", f"-{command}")  # type: ignore[no-untyped-call]
        await redis.script_flush()
        async with both(granted(server)) as pair:

            async def check(manager: Any) -> None:
                # What is missing after the commit leaves open whether that may stay.
                expected = (StoreUnavailable, CommitOutcomeUnknown)
                with pytest.raises(expected, match=f"NOPERM: .*'{command}'"):
                    await every_verb(manager)

            await pair.each(check)
            await redis.execute_command("ACL", "SETUSER", "app", f"+{command}")  # type: ignore[no-untyped-call]
            await pair.each(every_verb)


@pytest.mark.parametrize("flavour", ["redis8", "redis-system"])
async def test_missing_rights_on_other_servers(
    get_server: Callable[[str], Server], flavour: str
) -> None:
    """Which say so in other words, and Redis 7.0 does not say which command it was."""
    store = await asyncio.to_thread(get_server, flavour)
    async with Redis.from_url(store.url) as redis:
        for lacking in ("-set", "-evalsha"):
            await redis.execute_command(*rights(), "~async:*", "~sync:*", lacking)  # type: ignore[no-untyped-call]
            async with both(granted(store)) as pair:

                async def check(manager: Any) -> None:
                    with pytest.raises(StoreUnavailable, match=": NOPERM: "):
                        await saved(manager)

                await pair.each(check)
        await redis.execute_command("ACL", "DELUSER", "app")  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("command", ["pexpire", "setrange"])
async def test_a_missing_right_leaves_a_large_session_as_it_is(
    server: Server, command: str
) -> None:
    """A commit puts its frame into the room behind it, which takes two commands."""
    async with Redis.from_url(f"redis://127.0.0.1:{server.port}/1") as redis:
        await redis.execute_command(*rights(), "~async:*", "~sync:*")  # type: ignore[no-untyped-call]
        async with both(granted(server)) as pair:
            await pair.begin(form="x" * 10_000)
            before = await contents(redis)
            assert len(before) == 2
            await redis.execute_command("ACL", "SETUSER", "app", f"-{command}")  # type: ignore[no-untyped-call]
            await pair.is_refused(f": NOPERM: .*'{command}'")
            assert await contents(redis) == before
            await redis.execute_command("ACL", "SETUSER", "app", f"+{command}")  # type: ignore[no-untyped-call]
            await pair.recovers()


async def test_keys_that_the_user_may_not_touch(server: Server) -> None:
    async with Redis.from_url(server.url) as redis:
        await redis.execute_command(*rights())  # type: ignore[no-untyped-call]
        async with both(granted(server)) as pair:
            await pair.is_unreachable(": NOPERM: ")
        assert not await redis.keys()


async def test_what_cannot_pass_is_refused_at_once(server: Server) -> None:
    """Without waiting for the deadline, which is ten seconds here."""
    wrong = {
        f"redis://:wrong@127.0.0.1:{server.port}": ": WRONGPASS: |: ERR: AUTH",
        f"redis://nobody:secret@127.0.0.1:{server.port}": ": WRONGPASS: ",
        f"redis://127.0.0.1:{server.port}/99": ": ERR: DB index is out of range",
    }
    for url, name in wrong.items():
        async with both(url, patience=10) as pair, asyncio.timeout(5):
            await pair.is_unreachable(name)


async def test_a_password_that_is_set_meanwhile(server: Server) -> None:
    async with Redis.from_url(server.url) as redis:
        await redis.acl_setuser("late", enabled=True, passwords=["+old"], keys=["*"],
                                categories=["+@all"])  # fmt: skip
        url = f"redis://late:new@127.0.0.1:{server.port}"
        async with both(url) as pair:
            await pair.is_unreachable(": WRONGPASS: ")
            await redis.acl_setuser(
                "late", enabled=True, passwords=["+new"], keys=["*"], categories=["+@all"]
            )
            await pair.each(every_verb)
        await redis.acl_deluser("late")
