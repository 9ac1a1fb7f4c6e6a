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
    for name, value in start.get("headers", ()):
        match name.lower():
            case b"vary":
                fields += [field.strip() for field in value.split(b",") if field.strip()]
                continue
            case b"cache-control":
                is_declared = True
        headers.append((name, value))
    if not {vary.lower().encode("ascii"), b"*"} & {field.lower() for field in fields}:
        fields.append(vary.encode("ascii"))
    headers.append((b"vary", b", ".join(fields)))
    if carried is not None:
        name, value = carried
        headers.append((name.encode("ascii"), value.encode("ascii")))
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
