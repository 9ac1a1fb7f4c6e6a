"""The two faces of a session engine, so that one test says what holds of both."""

from __future__ import annotations

import asyncio
from typing import Any

import django

from asyncsession.ids import is_session_id
from asyncsession.integrations.django import SessionStore

__all__ = ["HAS_AWAITED_MAPPING", "Way"]

HAS_AWAITED_MAPPING = django.VERSION >= (5, 1)


class Way:
    """Calls a method of a store: in a thread, or the one to await."""

    def __init__(self, is_awaited: bool) -> None:
        self.is_awaited = is_awaited

    async def __call__(self, store: SessionStore, method: str, *args: Any) -> Any:
        if self.is_awaited:
            return await getattr(store, f"a{method}")(*args)
        method = {"set": "__setitem__"}.get(method, method)
        return await asyncio.to_thread(getattr(store, method), *args)

    async def stored(self, **values: Any) -> str:
        """Return the key of a new session with these values."""
        store = SessionStore()
        await self(store, "update", values)
        await self(store, "save")
        assert is_session_id(store.session_key)
        return str(store.session_key)

    async def shown(self, key: str | None) -> dict[str, Any]:
        """Return what a session holds."""
        return dict(await self(SessionStore(key), "items"))
