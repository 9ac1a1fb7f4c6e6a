"""SessionManager: the async face of the library. It opens a transport and drives the machines."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import anyio

from asyncsession import adoption, principals, verbs
from asyncsession.cache import DEFAULT_CACHE_BYTES
from asyncsession.errors import ConfigurationError
from asyncsession.merge import MergeFunction, Policy, three_way
from asyncsession.outcome import Commit
from asyncsession.protocol import (
    Apply,
    Call,
    Group,
    Lost,
    Pause,
    Queue,
    Refused,
    Together,
    Transport,
)
from asyncsession.session import Session
from asyncsession.setup import checked_principal, checked_settings
from asyncsession.transport import connect
from asyncsession.transport.batches import Batches
from asyncsession.turns import Turn, Turns

__all__ = ["SessionManager"]

T = TypeVar("T")

_MAX_LANES = 64


class SessionManager:
    """Loads and saves sessions. One per process and event loop is enough; tasks may share it.

    Args:
        url: `redis://`, `rediss://`, `unix://` with redis-py's options; `embedded://name`, a real
            Valkey server of this process; `memory://name`, fakeredis in this process;
            `redis+cluster://` with nodes of a Redis Cluster, or `redis+sentinel://` with Sentinels
            and the name of what they watch (`docs/topologies.md`); or a client of `redis.asyncio`,
            whose connection settings are used for connections of our own.
        prefix: of every Redis key. Managers that share sessions share it.
        idle_timeout: seconds or timedelta without use after which a session ends.
        absolute_timeout: seconds or timedelta after which it ends whatever happens (ASVS 7.3.2).
        merge: session key, or pattern such as `"cart:*"`, to a policy of `asyncsession.merge` or
            a function `f(base, ours, theirs) -> value`.
        default_merge: the policy of all other keys.
        max_bytes: what a session may take, packed.
        cache_bytes: memory for what was last seen of sessions, so that a load fetches only what
            came after it; 0 for none. Every load asks the server nevertheless.
        timeout: seconds that one operation may take with all its retries; at most 10.
        max_sessions: how many sessions one principal may have at a time (ASVS 5.0 7.1.2); None for
            any number. It is looked after when a session becomes the principal's.
        when_full: what a login does that would be one too many: `"end_oldest"` ends the session
            that was seen longest ago, `"refuse"` raises `TooManySessions`.
        min_replicas: how many replicas have to confirm a write before it is acknowledged (WAIT);
            0 for none. With fewer, `save` and the other verbs that write raise
            `CommitOutcomeUnknown`. `docs/durability.md` says what that promises.
        durability_timeout: seconds or timedelta that they have for it; at most `timeout`, which
            includes it.
        lanes: connections for each event loop and server. One carries the calls of all tasks; a
            second lets small replies pass large ones. With `min_replicas`, each has another one
            beside it.

    Raises:
        ConfigurationError: an argument that cannot work; the message says which and why.
    """

    def __init__(
        self,
        url: Any = "redis://localhost:6379/0",
        *,
        prefix: str = "session",
        idle_timeout: float | timedelta = 86_400,
        absolute_timeout: float | timedelta = 14 * 86_400,
        merge: Mapping[str, Policy | MergeFunction] | None = None,
        default_merge: Policy | MergeFunction = three_way,
        max_bytes: int = 65_536,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        timeout: float = 5.0,
        max_sessions: int | None = None,
        when_full: Literal["end_oldest", "refuse"] = "end_oldest",
        min_replicas: int = 0,
        durability_timeout: float | timedelta = 0.5,
        lanes: int = 1,
    ) -> None:
        self._settings = checked_settings(
            prefix=prefix,
            idle_timeout=idle_timeout,
            absolute_timeout=absolute_timeout,
            merge=merge,
            default_merge=default_merge,
            max_bytes=max_bytes,
            cache_bytes=cache_bytes,
            timeout=timeout,
            max_sessions=max_sessions,
            when_full=when_full,
            min_replicas=min_replicas,
            durability_timeout=durability_timeout,
        )
        if type(lanes) is not int or not 1 <= lanes <= _MAX_LANES:
            raise ConfigurationError(f"lanes: a number from 1 to {_MAX_LANES}")
        self._transport: Transport = connect(url, lanes, replicated=min_replicas > 0)
        self._batches = Batches()
        self._turns = Turns()

    async def load(self, session_id: str | None = None) -> Session:
        """Return the session with this id, in one round trip.

        Args:
            session_id: as the client sent it. None, or anything that is not the id of a live
                session, gives a new, empty session with a fresh id (OWASP: strict ids).

        Raises:
            StoreUnavailable: Redis could not be reached in time.
            InvalidSessionData: what is stored cannot be read; it is left as it is.
        """
        return await self._drive(verbs.load(self._settings, session_id))

    async def load_through(self, source: adoption.Source, peer_id: str | None) -> Session:
        """Return what became of another library's session; take it over if nobody has yet.

        Args:
            source: that library's store, one of `asyncsession.migration`.
            peer_id: what `source.peer_id` made of its cookie. None, or the id of a session that is
                not there, or was taken over and has ended since, gives a new, empty session.

        Raises:
            StoreUnavailable: one of the two servers could not be reached in time.
            InvalidSessionData: what our own store holds cannot be read; it is left as it is.
            What `principal` of the source raises.
        """
        machine = adoption.load_through(self._settings, source, peer_id)
        return await self._drive(machine, adoption.TwoStores(self._transport, source.transport))

    async def save(self, session: Session) -> Commit:
        """Commit what has changed in `session`, merged with what others did; then it shows that.

        Returns:
            What became of each change. Nothing is sent if nothing has changed.

        Raises:
            SessionConflict: others changed a key whose policy refuses to merge.
            SessionGone: the session was destroyed or has expired.
            SessionTooLarge: it would exceed `max_bytes`.
            TooManySessions: its principal is new, and has `max_sessions` already.
            InvalidSessionValue: a value that sessions cannot hold.
            StoreUnavailable: Redis could not be reached, or refused; nothing was written.
            CommitOutcomeUnknown: the commit was sent, and no answer came; or it was done, and fewer
                than `min_replicas` have confirmed it.
        """
        return await self._drive(verbs.save(self._settings, session))

    @asynccontextmanager
    async def session(self, session_id: str | None = None) -> AsyncIterator[Session]:
        """Load a session; save it when the block is left without an exception.

        Raises:
            What `load` and `save` raise.
        """
        session = await self.load(session_id)
        yield session
        if not session.is_destroyed:
            await self.save(session)

    async def update(
        self, session_id: str | None, change: Callable[[Session], Awaitable[None] | None]
    ) -> Session:
        """Apply `change` to a session as if nobody else used it (serialisable).

        Args:
            session_id: as for `load`.
            change: a function or coroutine function that reads and changes the session it is
                given. Every key it reads or writes is guarded: if somebody else changes one of
                them meanwhile, it runs again on the fresh state.

        Returns:
            The session as committed.

        Raises:
            SessionConflict: it kept colliding until the deadline.
            What `change`, `load` and `save` raise; nothing is written then.
        """
        return await self._drive(verbs.update(self._settings, session_id, change))

    async def rotate(self, session: Session) -> Commit:
        """Give a session a new id; unsaved changes are committed in the same step (ASVS 7.2.4).

        Call it on login and on every change of privilege. The old id loads nothing from then on;
        requests that had loaded the session before still commit to it. Of two rotations at once
        the first one wins; the other commits its changes and leaves `session.is_stale` True.

        Raises:
            SessionConflict: another rotation won, and gave the session another principal.
            What `save` raises.
        """
        return await self._drive(verbs.rotate(self._settings, session))

    async def refresh(self, session: Session) -> None:
        """Bring a session in long use up to date with what others committed, in one round trip.

        Unsaved changes stay, and go on top, merged by their keys' policies; objects that were
        handed out are brought up to date in place. Nothing is written, and the idle timeout is not
        put off. A new session is left as it is. One that was rotated away by another request is
        shown nothing of its successor: for it this only tells whether that lives.

        Raises:
            SessionGone: the session was destroyed or has expired; `session.is_destroyed` says so.
            CommitOutcomeUnknown: a commit of it was never answered, or cancelled; save it again.
            StoreUnavailable: Redis could not be reached in time.
            InvalidSessionData: what is stored cannot be read; the session is as it was.
        """
        await self._drive(verbs.refresh(self._settings, session))

    async def touch(self, session: Session) -> None:
        """Put off the idle timeout of a session in long use, such as behind a WebSocket.

        Raises:
            SessionGone: the session was destroyed or has expired.
            StoreUnavailable: Redis could not be reached in time.
        """
        await self._drive(verbs.touch(self._settings, session))

    async def destroy(self, session: Session | str) -> None:
        """End a session, given as such or by its id. Commits under way cannot bring it back.

        Raises:
            StoreUnavailable: Redis could not be reached; the session lives.
            CommitOutcomeUnknown: no answer came, or too few replicas have confirmed it.
        """
        await self._drive(verbs.destroy(self._settings, session))

    async def sessions_of(self, principal: str, *, current: Session | None = None) -> list[Session]:
        """Return the live sessions of a principal, last seen first (ASVS 5.0 7.5.2).

        Their ids are not known, so they are empty. Listing does not put off their idle timeouts.
        One that cannot be read is listed with nothing in it and `is_unreadable`: the principal can
        still see that there is one, and end it.

        Args:
            principal: as assigned to `session.principal`.
            current: the session of the request; the one in the list that is the same, whatever
                its id is by now, has `is_current`.

        Raises:
            StoreUnavailable: Redis could not be reached in time.
        """
        return await self._drive(
            principals.sessions_of(self._settings, checked_principal(principal), current)
        )

    async def destroy_all(self, principal: str, *, keep: Session | None = None) -> int:
        """End all sessions of a principal, those just logging in included (ASVS 7.4.2, 7.4.5).

        Args:
            principal: as assigned to `session.principal`.
            keep: a session to leave alone, such as that of the request.

        Returns:
            How many were ended.

        Raises:
            StoreUnavailable, CommitOutcomeUnknown: not all could be; call it again.
        """
        return await self._drive(
            principals.destroy_all(self._settings, checked_principal(principal), keep)
        )

    async def aclose(self) -> None:
        """Close the connection of this event loop; using the manager again opens a new one."""
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, exc: BaseException | None,
                        traceback: TracebackType | None) -> None:  # fmt: skip
        await self.aclose()

    def __repr__(self) -> str:
        return f"<SessionManager prefix={self._settings.prefix!r} on {self._transport!r}>"

    async def _drive(self, machine: Group[T], transport: Transport | None = None) -> T:
        """Perform what the machine asks for, until it returns or raises."""
        call, send = self._batches.call, (transport or self._transport).call
        turn: Turn | None = None
        try:
            step = next(machine)
            while True:
                if isinstance(step, Call):
                    try:
                        reply = await call(step, send)
                    except (Refused, Lost) as fault:
                        step = machine.throw(fault)
                    else:
                        step = machine.send(reply)
                    continue
                if isinstance(step, Queue):
                    if turn is not None:
                        turn.end()
                    turn = await self._turns.take(*step)
                    step = machine.send(turn.has_waited)
                    continue
                if isinstance(step, Pause):
                    await anyio.sleep(step.seconds)
                    step = machine.send(None)
                    continue
                if isinstance(step, Apply):
                    result = step.perform()
                    if inspect.isawaitable(result):
                        await result
                    step = machine.send(None)
                    continue
                step = machine.send(await self._drive_all(step, transport))
        except StopIteration as stop:
            returned: T = stop.value
            return returned
        finally:
            machine.close()
            if turn is not None:
                turn.end()

    async def _drive_all(self, step: Together, transport: Transport | None) -> list[Any]:
        """Carry machines through, and return what they returned."""
        driven = (self._drive(part, transport) for part in step.machines)
        ended = await asyncio.gather(*driven, return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, BaseException):
                raise outcome
        return ended
