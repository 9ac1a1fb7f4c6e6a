"""SyncSessionManager: the blocking face of the library, for threads, prefork servers and gevent.

It drives the same machines as `SessionManager`, on blocking connections, and shares sessions with
it. There is no event loop and no thread of its own.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from asyncsession import adoption, principals, verbs
from asyncsession.cache import DEFAULT_CACHE_BYTES
from asyncsession.errors import ConfigurationError
from asyncsession.merge import MergeFunction, Policy, three_way
from asyncsession.outcome import Commit
from asyncsession.protocol import (
    Apply,
    BlockingTransport,
    Call,
    Group,
    Lost,
    Pause,
    Queue,
    Refused,
    Together,
)
from asyncsession.session import Session
from asyncsession.setup import checked_principal, checked_settings
from asyncsession.transport import connect_blocking
from asyncsession.turns import ThreadTurns, Turn

__all__ = ["SyncSessionManager"]

T = TypeVar("T")

_MAX_CONNECTIONS = 1024


class SyncSessionManager:
    """Loads and saves sessions, and makes the thread wait. One per process; threads share it.

    A `Session` belongs to the thread that loaded it. The verbs are those of `SessionManager`, which
    says more about each; so are the options, `connections` aside.

    Args:
        url: `redis://`, `rediss://`, `unix://` with redis-py's options; `embedded://name`, a real
            Valkey server of this process; `memory://name`, fakeredis in this process;
            `redis+cluster://` or `redis+sentinel://` (`docs/topologies.md`); or a blocking client
            of redis-py, whose connection settings are used for connections of our own.
        prefix, idle_timeout, absolute_timeout, merge, default_merge, max_bytes, cache_bytes,
        timeout, max_sessions, when_full, min_replicas, durability_timeout: as for `SessionManager`.
        connections: to each server at the most, in each process. They are opened when they are
            needed. Each carries one call at a time; a call that finds all in use waits for one as
            long as it would for its reply.

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
        connections: int = 32,
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
        if type(connections) is not int or not 1 <= connections <= _MAX_CONNECTIONS:
            raise ConfigurationError(f"connections: a number from 1 to {_MAX_CONNECTIONS}")
        self._transport = connect_blocking(url, connections, replicated=min_replicas > 0)
        self._turns = ThreadTurns()

    def load(self, session_id: str | None = None) -> Session:
        """Return the session with this id, or a new, empty one; see `SessionManager.load`."""
        return self._drive(verbs.load(self._settings, session_id))

    def load_through(self, source: adoption.Source, peer_id: str | None) -> Session:
        """Take over another library's session, once; see `SessionManager.load_through`."""
        machine = adoption.load_through(self._settings, source, peer_id)
        stores = adoption.BlockingTwoStores(self._transport, source.blocking_transport)
        return self._drive(machine, stores)

    def save(self, session: Session) -> Commit:
        """Commit what has changed in `session`; see `SessionManager.save` for what it raises."""
        return self._drive(verbs.save(self._settings, session))

    @contextmanager
    def session(self, session_id: str | None = None) -> Iterator[Session]:
        """Load a session; save it when the block is left without an exception.

        Raises:
            What `load` and `save` raise.
        """
        session = self.load(session_id)
        yield session
        if not session.is_destroyed:
            self.save(session)

    def update(self, session_id: str | None, change: Callable[[Session], None]) -> Session:
        """Apply `change` to a session as if nobody else used it; see `SessionManager.update`.

        Args:
            session_id: as for `load`.
            change: a plain function; it may run more than once.

        Returns:
            The session as committed.

        Raises:
            SessionConflict: it kept colliding until the deadline.
            ConfigurationError: `change` is a coroutine function.
            What `change`, `load` and `save` raise; nothing is written then.
        """
        return self._drive(verbs.update(self._settings, session_id, change))

    def rotate(self, session: Session) -> Commit:
        """Give a session a new id, and commit its changes; see `SessionManager.rotate`."""
        return self._drive(verbs.rotate(self._settings, session))

    def refresh(self, session: Session) -> None:
        """Take in what others committed, and write nothing; see `SessionManager.refresh`."""
        self._drive(verbs.refresh(self._settings, session))

    def touch(self, session: Session) -> None:
        """Put off the idle timeout of a session in long use; see `SessionManager.touch`."""
        self._drive(verbs.touch(self._settings, session))

    def destroy(self, session: Session | str) -> None:
        """End a session, given as such or by its id; see `SessionManager.destroy`."""
        self._drive(verbs.destroy(self._settings, session))

    def sessions_of(self, principal: str, *, current: Session | None = None) -> list[Session]:
        """Return the live sessions of a principal; see `SessionManager.sessions_of`.

        They are looked up one after the other, with a round trip for each.
        """
        return self._drive(
            principals.sessions_of(self._settings, checked_principal(principal), current)
        )

    def destroy_all(self, principal: str, *, keep: Session | None = None) -> int:
        """End all sessions of a principal, return how many; see `SessionManager.destroy_all`."""
        return self._drive(
            principals.destroy_all(self._settings, checked_principal(principal), keep)
        )

    def close(self) -> None:
        """Close the connections of this process; using the manager again opens new ones."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None,
                 traceback: TracebackType | None) -> None:  # fmt: skip
        self.close()

    def __repr__(self) -> str:
        return f"<SyncSessionManager prefix={self._settings.prefix!r} on {self._transport!r}>"

    def _drive(self, machine: Group[T], transport: BlockingTransport | None = None) -> T:
        """Perform what the machine asks for, until it returns or raises."""
        transport = transport or self._transport
        turn: Turn | None = None
        try:
            step = next(machine)
            while True:
                if isinstance(step, Call):
                    try:
                        reply = transport.call(step)
                    except (Refused, Lost) as fault:
                        step = machine.throw(fault)
                    else:
                        step = machine.send(reply)
                    continue
                if isinstance(step, Queue):
                    if turn is not None:
                        turn.end()
                    turn = self._turns.take(*step)
                    step = machine.send(turn.has_waited)
                    continue
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = machine.send(None)
                    continue
                if isinstance(step, Apply):
                    _apply(step)
                    step = machine.send(None)
                    continue
                step = machine.send(self._drive_all(step, transport))
        except StopIteration as stop:
            returned: T = stop.value
            return returned
        finally:
            machine.close()
            if turn is not None:
                turn.end()

    def _drive_all(self, step: Together, transport: BlockingTransport) -> list[Any]:
        """Carry machines through, one after the other, and return what they returned."""
        returned, first = [], None
        for part in step.machines:
            try:
                returned.append(self._drive(part, transport))
            except Exception as error:
                first = first or error
        if first is not None:
            raise first
        return returned


def _apply(step: Apply) -> None:
    result = step.perform()
    if inspect.iscoroutine(result):
        result.close()
        raise ConfigurationError("change: a plain function; there is no event loop to await it in")
