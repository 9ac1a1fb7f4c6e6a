"""What users write. It is type-checked and never run."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, assert_type

from aiohttp import web as web_aiohttp
from fastapi import FastAPI
from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from asyncsession import (
    Commit,
    CommitOutcomeUnknown,
    Session,
    SessionConflict,
    SessionGone,
    SessionManager,
    SessionTooLarge,
    SyncSessionManager,
    TooManySessions,
    merge,
)
from asyncsession.integrations.aiohttp import get_session, setup
from asyncsession.integrations.asgi import load_session
from asyncsession.integrations.fastapi import CurrentSession, SessionMiddleware
from asyncsession.integrations.headers import Header
from asyncsession.migration import Starsessions


def longest(base: Any, ours: str, theirs: str) -> str:
    return max(ours, theirs, key=len)


manager = SessionManager(
    "redis://localhost:6379/0",
    prefix="shop",
    idle_timeout=timedelta(hours=1),
    absolute_timeout=86_400,
    merge={"views": merge.counter, "cart:*": merge.union, "draft": longest},
    default_merge=merge.last_write,
    max_bytes=10_000,
    timeout=2.5,
    max_sessions=5,
    when_full="refuse",
)
SessionManager(Redis())

app = FastAPI()
app.add_middleware(SessionMiddleware, manager=manager, secure=False)


@app.get("/")
async def page(session: CurrentSession) -> dict[str, int]:
    session["views"] = session.get("views", 0) + 1
    assert_type(session, Session)
    return {"views": session["views"]}


async def verbs(session_id: str | None) -> None:
    async with manager:
        session = await manager.load(session_id)
        assert_type(session, Session)
        session["prefs"]["theme"] = "dark"
        session.setdefault("cart", []).append("apple")
        commit = await manager.save(session)
        assert_type(commit, Commit)
        assert_type(commit.overwritten, tuple[str, ...])
        async with manager.session(session_id) as other:
            assert_type(other.principal, str | None)
            other.principal = "user:42"
        assert_type(await manager.rotate(session), Commit)
        assert_type(session.created_at, datetime | None)
        assert_type(await manager.sessions_of("user:42"), list[Session])
        for device in await manager.sessions_of("user:42", current=session):
            assert_type(device.last_seen, datetime | None)
            assert_type(device.is_current or device.is_unreadable, bool)
            assert_type(device.handle, str)
        assert_type(await manager.destroy_all("user:42", keep=session), int)
        await manager.touch(session)
        await manager.refresh(session)
        await manager.destroy(session)
        await manager.destroy("some id")


async def updates(session_id: str) -> None:
    def plain(session: Session) -> None:
        session["stock"] -= 1

    async def coroutine(session: Session) -> None:
        session["stock"] -= 1

    assert_type(await manager.update(session_id, plain), Session)
    await manager.update(session_id, coroutine)
    await manager.update(session_id, lambda session: session.update(a=1))
    await manager.update(session_id, lambda session: session.pop("a", None))


def blocking(session_id: str | None) -> None:
    with SyncSessionManager(connections=8, merge={"views": merge.counter}) as blocking_manager:
        session = blocking_manager.load(session_id)
        assert_type(session, Session)
        assert_type(blocking_manager.save(session), Commit)
        with blocking_manager.session(session_id) as other:
            assert_type(other.principal, str | None)
        assert_type(blocking_manager.update(session_id, lambda s: s.update(a=1)), Session)
        blocking_manager.update(session_id, lambda s: s.pop("a", None))
        assert_type(blocking_manager.rotate(session), Commit)
        assert_type(blocking_manager.sessions_of("user:42", current=session), list[Session])
        assert_type(blocking_manager.destroy_all("user:42", keep=session), int)
        source = Starsessions(BlockingRedis(), prefix="starsessions.")
        assert_type(blocking_manager.load_through(source, "peer id"), Session)
    SyncSessionManager(BlockingRedis()).close()


async def web(request: Request, aiohttp_request: web_aiohttp.Request) -> None:
    def on_error(scope: object, error: Exception) -> PlainTextResponse | None:
        return PlainTextResponse("again", 409) if isinstance(error, SessionConflict) else None

    app = Starlette()
    app.add_middleware(
        SessionMiddleware,
        manager=manager,
        header=Header(),
        lazy=True,
        outage="anonymous",
        on_error=on_error,
        watch=None,
        keep_on_exception=True,
    )
    assert_type(await load_session(request), Session)
    setup(web_aiohttp.Application(), manager, secure=False, outage="anonymous")
    assert_type(await get_session(aiohttp_request), Session)


async def errors(session: Session) -> str:
    try:
        await manager.save(session)
    except SessionConflict as conflict:
        return ", ".join(conflict.keys)
    except SessionTooLarge as too_large:
        return f"{too_large.bytes} of {too_large.limit}: {too_large.largest[0][0]}"
    except TooManySessions as too_many:
        return f"signed in {too_many.limit} times already"
    except (SessionGone, CommitOutcomeUnknown):
        return "log in again"
    return "saved"
