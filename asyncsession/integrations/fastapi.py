"""Sessions for FastAPI: the middleware, and the session as a dependency.

    app.add_middleware(SessionMiddleware, manager=manager)

    @app.post("/login")
    async def login(session: CurrentSession) -> None:
        session.principal = "user:42"
        await manager.rotate(session)

In tests, `app.dependency_overrides[current_session]` puts another session in its place.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from fastapi import Depends
from fastapi.requests import HTTPConnection

from asyncsession.integrations.asgi import SessionMiddleware, load_session
from asyncsession.session import Session

__all__ = ["CurrentSession", "SessionMiddleware", "current_session"]


async def current_session(connection: HTTPConnection) -> Session:
    """Return the session of a request or WebSocket, as `load_session` does.

    Raises:
        ConfigurationError: `SessionMiddleware` is not switched on.
        StoreUnavailable, InvalidSessionData: of a lazy middleware, which answers them.
    """
    return await load_session(connection)


CurrentSession: TypeAlias = Annotated[Session, Depends(current_session)]
"""The session of the request, as a parameter of a path operation or dependency."""
