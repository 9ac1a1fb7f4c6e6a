"""Reading through to what other session libraries have stored, so that switching logs nobody out.

    source = Starsessions("redis://localhost:6379/0", cookie_name="session")
    session = await manager.load_through(source, source.peer_id(value_of_their_cookie))

How it is done, and what it promises: `asyncsession.adoption`. Nothing is ever unpickled, and no
second format is tried on what is not of the one that was named (CVE-2026-39324).
"""

from __future__ import annotations

from asyncsession.migration.aiohttp_session import AiohttpSession
from asyncsession.migration.django_redis import DjangoRedis
from asyncsession.migration.flask_session import FlaskSession
from asyncsession.migration.source import Source
from asyncsession.migration.starsessions import Starsessions

__all__ = ["AiohttpSession", "DjangoRedis", "FlaskSession", "Source", "Starsessions"]
