"""The session engine: `django.contrib.sessions.backends.base.SessionBase` on a session of ours.

What Django's methods for single keys work on, a dict with its own engines, is our `Session` here: a
mapping that knows what has changed in it. Each method that touches the store is one machine, made
of the managers' verbs, which the blocking manager carries through for `save()` and the other one
for `asave()`.

What becomes of the cookie is decided by Django's `SessionMiddleware`, from `modified`, `is_empty()`
and what `save()` raises. On its own, without `CommitMiddleware`, that never takes a good cookie
from a browser: where a request has nothing to say about the cookie, it is answered with
`SessionInterrupted`, as with Django's own engines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from django.utils.asyncio import async_unsafe

from asyncsession.ids import new_id
from asyncsession.integrations.django.config import current
from asyncsession.integrations.django.plans import PlannedStore
from asyncsession.protocol import Machine
from asyncsession.session import Session

__all__ = ["SessionStore"]

T = TypeVar("T")

_REQUIRED = object()


class SessionStore(PlannedStore):
    """The session of one request: `request.session`.

    Keys are strings; for values see `asyncsession.values.pack_value`. What was changed in place, as
    in `request.session["cart"].append(item)`, is known without `modified = True`.

    Args:
        session_key: as the browser sent it. An id that we have not issued is never adopted.
    """

    # The mapping

    def _get_session(self, no_load: bool = False) -> Session:
        self.accessed = True
        session = self._loaded
        if session is None:
            is_new = no_load or self.session_key is None
            session = self._keep(Session() if is_new else self.load())
        return session

    async def _aget_session(self, no_load: bool = False) -> Session:
        self.accessed = True
        session = self._loaded
        if session is None:
            is_new = no_load or self.session_key is None
            session = self._keep(Session() if is_new else await self.aload())
        return session

    _session = property(_get_session)

    def pop(self, key: str, default: Any = _REQUIRED) -> Any:
        """Remove a key and return its value, or the default if it is given."""
        return self._pop(self._get_session(), key, default)

    async def apop(self, key: str, default: Any = _REQUIRED) -> Any:
        """See `pop`."""
        return self._pop(await self._aget_session(), key, default)

    def clear(self) -> None:
        """Remove every key. One that was not loaded is cleared when it is."""
        self.accessed = self.modified = True
        session = self._loaded
        if session is not None:
            session.clear()
        elif self.session_key is not None:
            self._clears = True

    def _pop(self, session: Session, key: str, default: Any) -> Any:
        if key in session:  # and leave `modified` alone otherwise: it is found out, not counted
            self.modified = True
        return session.pop(key) if default is _REQUIRED else session.pop(key, default)

    # The store

    def load(self) -> Session:
        """Return the session with this key, or a new one if there is none."""
        return self._run(self._loading)

    async def aload(self) -> Session:
        """See `load`."""
        return await self._arun(self._loading)

    def exists(self, session_key: str | None) -> bool:
        """Tell whether there is a live session with this key."""
        return self._run(self._existing, session_key)

    async def aexists(self, session_key: str | None) -> bool:
        """See `exists`."""
        return await self._arun(self._existing, session_key)

    def create(self) -> None:
        """Begin a session with a new key, with what this one holds, and store it even if empty."""
        self._run(self._creating)

    async def acreate(self) -> None:
        """See `create`."""
        await self._arun(self._creating)

    def save(self, must_create: bool = False) -> None:
        """Commit what has changed, merged with what others did meanwhile.

        A session without a key is created, even if it is empty.

        Args:
            must_create: do not go on with a session that there is.

        Raises:
            CreateError: `must_create`, and there is a session with this key.
            UpdateError: the session was ended meanwhile; or another request gave it a new key, and
                there is no `CommitMiddleware`. What was changed is in the session in that case.
            What `SessionManager.save` raises but for `SessionGone`.
        """
        if not self.is_settled:
            self._run(self._saving, must_create)

    async def asave(self, must_create: bool = False) -> None:
        """See `save`."""
        if not self.is_settled:
            await self._arun(self._saving, must_create)

    def delete(self, session_key: str | None = None) -> None:
        """End a session, by default this one. Requests under way do not bring it back."""
        self._run(self._deleting, session_key)

    async def adelete(self, session_key: str | None = None) -> None:
        """See `delete`."""
        await self._arun(self._deleting, session_key)

    def flush(self) -> None:
        """End this session, and begin a new one: what a logout does.

        Raises:
            SessionConflict: another request has given it a new key a moment ago, which this one
                does not know, so that it cannot end it. It is to be sent again.
        """
        self._run(self._flushing)

    async def aflush(self) -> None:
        """See `flush`."""
        await self._arun(self._flushing)

    def cycle_key(self) -> None:
        """Move the session to a new key, as a login does; what is not saved yet goes along.

        The old key loads nothing from then on. Requests that have loaded the session before commit
        to it nevertheless (ASVS 5.0 7.2.4). In a request that `CommitMiddleware` attends to, this
        takes effect when the session is saved, together with the login that it is for; else at
        once.

        Raises:
            SessionInterrupted: the session was ended meanwhile.
            What `SessionManager.rotate` raises but for `SessionGone`.
        """
        self._run(self._cycling)

    async def acycle_key(self) -> None:
        """See `cycle_key`."""
        await self._arun(self._cycling)

    @classmethod
    def clear_expired(cls) -> None:
        """Do nothing: Redis removes what has expired."""

    @classmethod
    async def aclear_expired(cls) -> None:
        """Do nothing: Redis removes what has expired."""

    def kept(self) -> Session:
        """Return our session behind this one, for what Django's interface lacks."""
        return self._get_session()

    async def akept(self) -> Session:
        """See `kept`."""
        return await self._aget_session()

    # For `CommitMiddleware`

    def conclude(self, *, is_safe: bool) -> bool:
        """Commit what the request has changed, before its response leaves.

        Args:
            is_safe: the request only looks (RFC 9110 9.2.1), so that what it put into a session
                whose id was rotated away may be dropped.

        Returns:
            Whether the session was there to be saved; False if it was ended meanwhile.

        Raises:
            SessionConflict: the id was rotated away, so that nothing can be saved.
            What `save` raises but for `UpdateError`.
        """
        return self._run(self._concluding, is_safe)

    async def aconclude(self, *, is_safe: bool) -> bool:
        """See `conclude`."""
        return await self._arun(self._concluding, is_safe)

    # How

    def _get_new_session_key(self) -> str:
        return new_id()

    async def _aget_new_session_key(self) -> str:
        return new_id()

    def _run(self, plan: Callable[..., Machine[T]], *args: Any) -> T:
        _refuse_event_loops()
        manager = current().blocking
        return manager.run(plan(manager.settings, *args))

    async def _arun(self, plan: Callable[..., Machine[T]], *args: Any) -> T:
        manager = current().awaited
        return await manager.run(plan(manager.settings, *args))


@async_unsafe(  # type: ignore[untyped-decorator]
    "The session cannot be loaded or saved in an async context: await its a-methods "
    "(aget, asave, ...), or use sync_to_async."
)
def _refuse_event_loops() -> None:
    """Raise `SynchronousOnlyOperation` where waiting would block an event loop."""
