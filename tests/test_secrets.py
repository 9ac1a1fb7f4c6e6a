"""Ids are secrets: no key, log record, repr, error or trace shows one, nor any value."""

from __future__ import annotations

import asyncio
import logging
import traceback

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from support.backends import Backend
from support.proxy import Fault, FaultProxy, is_script
from support.web import cookie, serve

from asyncsession import SessionError, SessionManager, merge
from asyncsession.ids import index_key, session_handle, store_key
from asyncsession.integrations.asgi import SessionMiddleware

VALUE = "hunter2-is-a-value"
PRINCIPAL = "user:jane@example.org"


async def use_everything(manager: SessionManager) -> tuple[set[str], list[str]]:
    """Go through every verb; return the ids that were in use, and all texts that came up."""
    texts = []
    session = await manager.load()
    ids = {session.id}
    session.principal, session["secret"] = PRINCIPAL, {"deep": VALUE}
    await manager.save(session)
    slow = await manager.load(session.id)
    await manager.rotate(session)
    ids |= {session.id, slow.id}
    texts += [repr(session), str(session), repr(slow), repr(manager), repr(session.log)]
    rejecting = await manager.load(session.id)
    session["guarded"], rejecting["guarded"] = VALUE, VALUE + "2"
    await manager.save(session)

    async def fails(operation: object) -> None:
        try:
            await operation  # type: ignore[misc]
        except (SessionError, ZeroDivisionError) as error:
            texts.append("".join(traceback.format_exception(error)))
            texts.append(repr(error))
        else:
            raise AssertionError("this was to fail")

    await fails(manager.save(rejecting))
    session["large"] = VALUE * 5000
    await fails(manager.save(session))
    session["large"] = [VALUE, object()]
    await fails(manager.save(session))
    del session["large"]
    texts += list(map(repr, await manager.sessions_of(PRINCIPAL)))
    await manager.destroy_all(PRINCIPAL)
    slow["late"] = VALUE
    await fails(manager.save(slow))
    return ids, texts


async def test_nothing_shows_an_id_or_a_value(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    manager = backend.manager(merge={"guarded": merge.reject})
    ids, texts = await use_everything(manager)
    texts += [record.getMessage() for record in caplog.records]
    texts += [key.decode() for key in await backend.keys()]
    assert len(texts) > 12
    for text in texts:
        assert VALUE not in text
        assert PRINCIPAL not in text
        for session_id in ids:
            assert session_id not in text
            assert session_id.partition(".")[2] not in text


async def test_redis_never_receives_an_id(valkey: Backend) -> None:
    assert valkey.port
    sent = bytearray()

    def listen(request: list[bytes]) -> Fault:
        if is_script(request):
            sent.extend(b"\n".join(request))
        return Fault.PASS

    async with FaultProxy(valkey.port, listen) as proxy:
        ids, _ = await use_everything(valkey.manager(proxy.url, merge={"guarded": merge.reject}))
    assert len(sent) > 1000
    for session_id in ids:
        assert session_id.partition(".")[2].encode() not in sent


async def test_a_web_application_logs_nothing(
    valkey: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    manager = valkey.manager(merge={"guarded": merge.reject})
    session = await manager.load()
    session["secret"] = VALUE
    await manager.save(session)
    ids = {session.id}
    await manager.rotate(session)
    ids.add(session.id)

    async def change(request: Request) -> Response:
        request.session["secret"] = VALUE + "2"
        if "fail" in request.query_params:
            raise RuntimeError("on purpose")
        if "destroy" in request.query_params:
            await manager.destroy(request.session.id)  # type: ignore[attr-defined]
        return PlainTextResponse("changed")

    routes = [Route("/", change, methods=["GET", "POST"])]
    options = {"manager": manager, "secure": False, "keep_on_exception": True}
    app = Starlette(routes=routes, middleware=[Middleware(SessionMiddleware, **options)])  # type: ignore[arg-type]
    statuses = []
    async with serve(app) as browser:
        for session_id in [*sorted(ids), "abc." + "z" * 32]:
            for request in ("GET /", "POST /", "GET /?fail", "GET /?destroy"):
                method, path = request.split()
                response = await browser.request(method, path, headers=cookie(session_id))
                statuses.append(response.status_code)
                browser.cookies.clear()
    assert {200, 409, 500} <= set(statuses)
    logged = "\n".join(
        record.getMessage() + "".join(traceback.format_exception(*(record.exc_info or (None,) * 3)))
        for record in caplog.records
        if not record.name.startswith(("httpx", "httpcore"))  # the browser's own
    )
    assert "was not saved" in logged
    assert VALUE not in logged
    for session_id in ids:
        assert session_id.partition(".")[2] not in logged


async def test_outages_show_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with SessionManager("redis://user:pass-word@127.0.0.1:1/0", timeout=0.2) as manager:
        session = await manager.load()
        session["a"] = VALUE
        texts = [repr(manager)]
        for operation in (manager.save(session), manager.load(session.id)):
            (error,) = await asyncio.gather(operation, return_exceptions=True)
            assert isinstance(error, SessionError)
            texts.append("".join(traceback.format_exception(error)))
    texts += [record.getMessage() for record in caplog.records]
    for text in texts:
        assert session.id.partition(".")[2] not in text
        assert VALUE not in text
        assert "pass-word" not in text


def test_keys_show_neither_id_nor_principal() -> None:
    session_id = "abc." + "x" * 32
    key = store_key("session", session_handle(session_id))
    assert key.startswith("session:{abc}:")
    assert "x" * 8 not in key
    assert "jane" not in index_key("session", PRINCIPAL)
