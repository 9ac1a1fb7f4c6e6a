"""A real master with replicas, watched by Sentinels, for tests; from the servers of `servers.py`.

All calls block; a test that runs on an event loop makes them in a thread.
"""

from __future__ import annotations

from typing import Any, Self
from urllib.parse import quote

from support.cluster import wait_until
from support.servers import Server

__all__ = ["SERVICE", "SentinelGroup"]

SERVICE = "sessions"

# What Sentinel does every 1 to 10 seconds by itself, in ms; a busy machine is no reason to panic.
# A replica that says it is a master is demoted again after four periods of publishing without news;
# one of which nothing was heard for five periods of pinging is not promoted, and without a master
# each is asked once a second.
_HURRY = {
    "info-period": 100,
    "ping-period": 300,
    "ask-period": 100,
    "publish-period": 400,
    "election-timeout": 1000,
    "tilt-trigger": 10_000,
}


class SentinelGroup:
    """A master, its replicas and their Sentinels.

    Args:
        flavour: of all servers.
        replicas: of the master.
        sentinels: how many there are; a majority is needed for a failover.
        down_after: ms of silence after which a master is taken for down.
        tls: whether the servers that hold data speak TLS as well.
        sentinel_password: what clients need to ask a Sentinel.
        config: options of every server that holds data, such as `requirepass="secret"`.

    Attributes:
        servers: that hold data; the master at the start is the first.
        sentinels: those that watch.
    """

    def __init__(self, flavour: str = "valkey9", *, replicas: int = 2, sentinels: int = 3,
                 down_after: int = 700, tls: bool = False, sentinel_password: str = "",
                 **config: str | int) -> None:  # fmt: skip
        options: dict[str, Any] = {"repl_diskless_sync_delay": 0}
        if "requirepass" in config:
            options["masterauth"] = config["requirepass"]
        self._down_after = down_after
        self._sentinel_password = sentinel_password
        options |= config
        self.servers = [Server(flavour, tls=tls, **options) for _ in range(1 + replicas)]
        own: dict[str, Any] = {"requirepass": sentinel_password} if sentinel_password else {}
        self.sentinels = [Server(flavour, sentinel=True, **own) for _ in range(sentinels)]

    @property
    def url(self) -> str:
        """The address for `SessionManager`, without the Sentinels' own credentials."""
        password = str(self.servers[0].config.get("requirepass", ""))
        credentials = f":{quote(password, safe='')}@" if password else ""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{credentials}{hosts}/{SERVICE}/0"

    @property
    def running(self) -> bool:
        """Whether all servers and Sentinels are alive."""
        return all(server.running for server in (*self.servers, *self.sentinels))

    def start(self) -> Self:
        """Start what is down; the first time, set it up. Return when all is well."""
        is_new = not self.servers[0].port
        for server in (*self.servers, *self.sentinels):
            if not server.running:
                server.start()
        if is_new:
            self._set_up()
        self.wait_ready()
        return self

    def _set_up(self) -> None:
        master, *replicas = self.servers
        for replica in replicas:
            replica.run("REPLICAOF", "127.0.0.1", master.port)
        for sentinel in self.sentinels:
            self._hurry(sentinel)
            if self._sentinel_password:
                sentinel.run("SENTINEL", "CONFIG", "SET", "sentinel-pass", self._sentinel_password)
            majority = len(self.sentinels) // 2 + 1
            sentinel.run("SENTINEL", "MONITOR", SERVICE, "127.0.0.1", master.port, majority)
            options: dict[str, str | int] = {
                "down-after-milliseconds": self._down_after,
                "failover-timeout": 3000,
                "parallel-syncs": 2,
            }
            if password := master.config.get("requirepass"):
                options["auth-pass"] = password
            for name, value in options.items():
                sentinel.run("SENTINEL", "SET", SERVICE, name, value)

    def _hurry(self, sentinel: Server) -> None:
        sentinel.run("SENTINEL", "DEBUG", *(word for pair in _HURRY.items() for word in pair))

    def wait_ready(self) -> None:
        """Wait until every live Sentinel sees all that is alive, and the replicas have the data."""
        wait_until(self._is_ready, "a master, replicas and Sentinels that are well")

    def _is_ready(self) -> bool:
        master = self.master()
        replicas = [one for one in self.servers if one.running and one is not master]
        if master.run("ROLE")[0] != "master":
            return False
        for replica in replicas:
            role = replica.run("ROLE")
            if role[0] != "slave" or role[2] != master.port or role[3] != "connected":
                return False
        return all(self._sees(sentinel, master, len(replicas)) for sentinel in self._live())

    def _sees(self, sentinel: Server, master: Server, replicas: int) -> bool:
        state = _pairs(sentinel.run("SENTINEL", "MASTER", SERVICE))
        seen = [_pairs(one) for one in sentinel.run("SENTINEL", "REPLICAS", SERVICE)]
        well = [
            one
            for one in seen
            if one["flags"] == "slave" and one["master-link-status"] == "ok"
            and one["master-port"] == str(master.port)
        ]  # fmt: skip
        return (
            state["flags"] == "master"
            and state["port"] == str(master.port)
            and int(state["num-other-sentinels"]) >= len(self._live()) - 1
            and len(well) == replicas
        )

    def _live(self) -> list[Server]:
        return [sentinel for sentinel in self.sentinels if sentinel.running]

    def master(self) -> Server:
        """Return the master that all live Sentinels agree on.

        Raises:
            TimeoutError: they do not.
        """
        named: set[str] = set()

        def agree() -> bool:
            asked = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
            named.clear()
            named.update(sentinel.run(*asked)[1] for sentinel in self._live())
            return len(named) == 1

        wait_until(agree, "Sentinels that agree")
        return next(server for server in self.servers if str(server.port) in named)

    def replicas(self) -> list[Server]:
        """Return the live servers that are not the master."""
        master = self.master()
        return [server for server in self.servers if server.running and server is not master]

    def kill(self, server: Server) -> None:
        """End a server or a Sentinel as a crash would."""
        server.kill()

    def restart(self, server: Server) -> None:
        """Start a server or a Sentinel that is down, and wait until all is well again."""
        server.start()
        if server in self.sentinels:
            self._hurry(server)
        self.wait_ready()

    def fail_over(self) -> Server:
        """Have another server take the master's place by command, and return it."""
        before = self.master()

        def has_begun() -> bool:
            # INPROG and NOGOODSLAVE are errors, and asked again.
            return bool(self._live()[0].run("SENTINEL", "FAILOVER", SERVICE) == "OK")

        wait_until(has_begun, "a Sentinel that agrees to a failover")
        return self.wait_for_takeover(before)

    def wait_for_takeover(self, before: Server) -> Server:
        """Wait until all live Sentinels name another master than `before`; return it."""

        def has_changed() -> bool:
            master = self.master()
            return master is not before and bool(master.run("ROLE")[0] == "master")

        wait_until(has_changed, "another master")
        return self.master()

    def close(self) -> None:
        """End everything and remove the directories."""
        for server in (*self.sentinels, *self.servers):
            server.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *details: object) -> None:
        self.close()


def _pairs(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
