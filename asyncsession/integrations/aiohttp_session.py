"""A storage for applications that stay on the API of aiohttp-session.

    aiohttp_session.setup(app, Storage(manager))

    async def page(request: web.Request) -> web.Response:
        session = await aiohttp_session.get_session(request)
        session["views"] = session.get("views", 0) + 1
        return web.Response(text=str(session["views"]))

What handlers get is a session of aiohttp-session's with one of ours in the place of its dict. So
there are no two states to keep alike: what was changed, nested or not, is known without
`changed()`, and is merged with what other requests did. When it is saved is aiohttp-session's
decision: for ordinary responses, raised ones included. Before a stream or a WebSocket is prepared,
and during it, the application calls `await storage.save_session(request, response, session)`.

- `new_session(request)`, for logins: at the end of the request the session moves to a new id and
  keeps nothing of its former content. Requests under way land in the successor. Left empty, it
  ends instead.
- `session.invalidate()`: at the end of the request the session ends for good. What is put into it
  afterwards begins another one.
- `session.max_age = seconds`: the cookie is sent again with that age. How long the store keeps the
  session is the manager's to say.
- `session.identity` is the handle, which is no secret; `session.created` when it was first saved.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Unpack

import aiohttp_session
from aiohttp import web

from asyncsession.errors import ConfigurationError, SessionError
from asyncsession.integrations.aiohttp_visit import dress
from asyncsession.integrations.answers import answer_to, note
from asyncsession.integrations.cookies import Cookie, CookieOptions, cookie_of
from asyncsession.integrations.exchange import Closing, Exchange, Outage, ReadThrough, Terms
from asyncsession.manager import SessionManager
from asyncsession.session import Session

__all__ = ["Storage", "unwrap"]


def unwrap(session: aiohttp_session.Session) -> Session:
    """Return our session behind one of aiohttp-session's, for what that API lacks.

    Such as `unwrap(session).principal = "user:42"`, or `await manager.rotate(unwrap(session))`.

    Raises:
        ConfigurationError: it does not come from a `Storage`.
    """
    return _facade(session).kept


class Storage(aiohttp_session.AbstractStorage):
    """Keeps the sessions of aiohttp-session in a manager's store.

    The client gets 503 with `Retry-After` while the store is not available, 409 where the session
    was changed by another request in a way that its merge policies refuse, and 500 once where it
    cannot be read. These are raised as aiohttp's HTTP exceptions, with the error as their cause.

    Args:
        manager: loads and saves; the application's to open, to share, to close.
        outage, read_through: as for `asyncsession.integrations.aiohttp.setup`.
        cookie: as for `asyncsession.integrations.aiohttp.setup`; unlike in aiohttp-session it is
            Secure and SameSite=Lax unless they say otherwise. It is HttpOnly always.

    Raises:
        ConfigurationError: what cannot work, such as a cookie that browsers would refuse.
    """

    def __init__(
        self,
        manager: SessionManager,
        *,
        outage: Outage = "error",
        read_through: ReadThrough | None = None,
        **cookie: Unpack[CookieOptions],
    ) -> None:
        self._cookie = cookie_of(cookie)
        self._terms = Terms(manager, self._cookie, outage, read_through=read_through)
        self._terms.check()
        super().__init__(
            cookie_name=self._cookie.name,
            domain=self._cookie.domain,
            max_age=self._cookie.max_age,
            path=self._cookie.path,
            secure=self._cookie.secure,
            samesite=self._cookie.same_site.capitalize(),
        )

    async def new_session(self) -> aiohttp_session.Session:
        """Return a session to begin with, whatever the request brings."""
        return _Facade(Session(), self._cookie, None)

    async def load_session(self, request: web.Request) -> aiohttp_session.Session:
        """Return the session of a request.

        Raises:
            HTTPServiceUnavailable: the store cannot be reached, and `outage` is `"error"`.
            HTTPInternalServerError: what is stored cannot be read; the cookie is cleared.
        """
        exchange = self._exchange(request)
        with _answering(exchange):
            session = await exchange.load()
            exchange.read_all()  # errors that a handler lets pass do not come by here
            return _Facade(session, self._cookie, exchange)

    async def save_session(
        self,
        request: web.Request,
        response: web.StreamResponse,
        session: aiohttp_session.Session,
    ) -> None:
        """Save what has changed, and put the cookie on a response that has not left yet.

        Raises:
            HTTPConflict: others changed a key whose policy refuses to merge.
            HTTPServiceUnavailable: the store cannot be reached, or did not answer.
            HTTPForbidden: one session too many for its principal.
            InvalidSessionValue, SessionTooLarge: what cannot be kept.
            ConfigurationError: a session that does not come from a `Storage`.
        """
        facade = _facade(session)
        exchange = facade.exchange or self._exchange(request)
        with _answering(exchange):
            if facade.exchange is None:
                await self._begin(exchange, facade)
            elif facade.kept is not exchange.session:
                await self._end(exchange, facade.kept)
            await exchange.commit()
        dress(response.headers, facade.closing(exchange))

    def _exchange(self, request: web.Request) -> Exchange:
        exchange = Exchange(self._terms, request.raw_headers, request.method)
        exchange.is_asked = True
        return exchange

    async def _begin(self, exchange: Exchange, facade: _Facade) -> None:
        """Give a request the session that it began with `new_session`.

        The one it came with is rotated rather than replaced: requests under way, and others that
        still come with the old id, then leave the cookie alone that this response brings.
        """
        manager, fresh = self._terms.manager, facade.kept
        former = await exchange.load()
        if not fresh.modified:
            await self._end(exchange, fresh)
        elif former.is_new:
            await manager.save(fresh)
            exchange.session = fresh
        else:
            former.clear()
            await manager.rotate(former)  # with nothing in it: another rotation may be faster
            if former.is_stale:  # and then its session is not for this client to put things into
                await manager.save(fresh)
                exchange.session = fresh
            else:
                former.update(fresh)
                former.principal = fresh.principal
                await manager.save(former)
                facade.keep(former)
        facade.exchange = exchange

    async def _end(self, exchange: Exchange, fresh: Session) -> None:
        """End the session of a request, and let it go on with another one."""
        assert exchange.session is not None
        await self._terms.manager.destroy(exchange.session)
        await exchange.commit()
        exchange.session = fresh


class _Facade(aiohttp_session.Session):
    """A session of aiohttp-session's before one of ours.

    Attributes:
        kept: ours.
        exchange: the request's; None for a session begun by `new_session`, which knows no request.
    """

    def __init__(self, kept: Session, cookie: Cookie, exchange: Exchange | None) -> None:
        super().__init__(None, data=None, new=kept.is_new, max_age=cookie.max_age)
        self._changed = True  # always to be saved: ours knows whether there is anything to do
        self._cookie = cookie
        self._is_aged = False
        self.exchange = exchange
        self.keep(kept)

    def keep(self, kept: Session) -> None:
        """Stand before another session of ours from now on."""
        self.kept = kept
        self._mapping = kept  # type: ignore[assignment]  # it is used as a mapping only

    @property
    def identity(self) -> str | None:
        """A public name of the session, which changes with rotation; None for a new one."""
        return None if self.kept.is_new else self.kept.handle

    @property
    def created(self) -> int:
        """When the session was first saved, in seconds since 1970; now for a new one."""
        created = self.kept.created_at
        return int(time.time() if created is None else created.timestamp())

    @property
    def max_age(self) -> int | None:
        """Seconds that the browser keeps the cookie; None until it is closed."""
        return self._cookie.max_age

    @max_age.setter
    def max_age(self, value: int | None) -> None:
        self._cookie = replace(self._cookie, max_age=value)
        self._is_aged = True

    def invalidate(self) -> None:
        """End the session when it is saved; until then it is empty."""
        fresh = Session()
        fresh.is_stale = self.kept.is_stale
        self.keep(fresh)

    def set_new_identity(self, identity: object) -> None:  # noqa: ARG002
        """Refuse: the ids of sessions are issued by the store (OWASP: strict ids).

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError("set_new_identity(): identities are issued by the store")

    def closing(self, exchange: Exchange) -> Closing:
        """Return what the headers of the response have to say."""
        kept, cookie = self.kept, self._cookie
        if not self._is_aged or kept.is_new or kept.is_destroyed or kept.is_stale:
            return exchange.closing()
        return Closing((cookie.header, cookie.issue(kept.id)), cookie.varies)


def _facade(session: aiohttp_session.Session) -> _Facade:
    if not isinstance(session, _Facade):
        raise ConfigurationError(f"a session of Storage, not {type(session).__qualname__}")
    return session


_EXCEPTIONS = {
    exception.status_code: exception
    for exception in (
        web.HTTPForbidden,
        web.HTTPConflict,
        web.HTTPInternalServerError,
        web.HTTPServiceUnavailable,
    )
}


@contextmanager
def _answering(exchange: Exchange) -> Iterator[None]:
    """Raise the errors that have an answer as HTTP exceptions of aiohttp's."""
    try:
        yield
    except SessionError as error:
        answer = answer_to(error)
        if answer is None:
            raise
        note(error)
        exception = _EXCEPTIONS[answer.status](text=answer.text, headers=answer.headers())
        dress(exception.headers, exchange.closing())
        raise exception from error
