"""ASGI in a few words: its types, the headers of a response, and responses of our own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from asyncsession.integrations.answers import Answer
from asyncsession.integrations.exchange import UNSHARED, Closing

__all__ = ["ASGIApp", "Message", "Receive", "Scope", "Send", "dressed", "responding"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


def dressed(start: Message, closing: Closing) -> Message:
    """Return the message that starts a response, with the headers that are ours to add."""
    carried, vary = closing
    if vary is None:
        return start
    headers, fields, is_declared = [], [], False
    for header in start.get("headers", ()):
        name = header[0].lower()
        if name == b"vary":
            fields += [field.strip() for field in header[1].split(b",") if field.strip()]
            continue
        if name == b"cache-control":
            is_declared = True
        headers.append(header)
    added = vary.encode("ascii")
    if not fields:
        headers.append((b"vary", added))
    else:
        if not {added.lower(), b"*"} & {field.lower() for field in fields}:
            fields.append(added)
        headers.append((b"vary", b", ".join(fields)))
    if carried is not None:
        headers.append((carried[0].encode("ascii"), carried[1].encode("ascii")))
        if not is_declared:
            # A shared cache that hands out one client's id logs others in (CVE-2023-30861).
            headers.append((b"cache-control", UNSHARED.encode("ascii")))
    return {**start, "headers": headers}


def responding(answer: Answer) -> ASGIApp:
    """Return an application that sends `answer`, also as a WebSocket's denial response."""

    async def respond(scope: Scope, _receive: Receive, send: Send) -> None:
        prefix, body = "", answer.text.encode("utf-8")
        headers = [
            (name.encode("ascii"), value.encode("ascii")) for name, value in answer.headers()
        ]
        if scope["type"] == "websocket":
            prefix = "websocket."  # and no length: uvicorn before 0.52.1 adds a second one
        else:
            headers.append((b"content-length", b"%d" % len(body)))
        start = {"type": f"{prefix}http.response.start", "status": answer.status}
        await send({**start, "headers": headers})
        await send({"type": f"{prefix}http.response.body", "body": body})

    return respond
