"""A worker: uvicorn on a free port, for as long as its standard input is open."""

from __future__ import annotations

import os
import socket
import sys
import threading

import uvicorn

from bench.web.app import create_app


def main(kind: str, url: str) -> None:
    """Print the port, and serve until the parent closes the pipe, on purpose or by dying."""
    # asyncio switches TCP_NODELAY on only where the protocol is named; without it answers wait for
    # the client's delayed acknowledgements.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # before the port is known: who connects now waits for uvicorn
    config = uvicorn.Config(
        create_app(kind, url),
        loop="asyncio",
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)

    def stop_with_parent() -> None:
        os.read(0, 1)  # not sys.stdin: its lock may be asked for when the interpreter ends
        server.should_exit = True

    threading.Thread(target=stop_with_parent, daemon=True).start()
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    server.run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
