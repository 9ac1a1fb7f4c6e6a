"""The server's process: uvicorn on a free port, for as long as its standard input is open."""

from __future__ import annotations

import os
import socket
import sys
import threading

import uvicorn

from asyncsession.demo.app import create_app


def main() -> None:
    """Print the URL, and serve until the parent closes the pipe, on purpose or by dying."""
    # asyncio switches TCP_NODELAY on only where the protocol is named: without it every answer
    # waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # before the URL is known: who connects now waits for uvicorn
    config = uvicorn.Config(create_app(), log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)

    def stop_with_parent() -> None:
        os.read(0, 1)  # not sys.stdin: its lock may be asked for when the interpreter ends
        server.should_exit = True

    threading.Thread(target=stop_with_parent, daemon=True).start()
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
