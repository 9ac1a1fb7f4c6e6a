"""What an application declares about its sessions, in any framework."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from asyncsession.adoption import Source
from asyncsession.errors import ConfigurationError
from asyncsession.manager import SessionManager
from asyncsession.sync import SyncSessionManager

__all__ = ["AnyManager", "Carrier", "Outage", "RawHeaders", "ReadThrough", "Terms"]

AnyManager: TypeAlias = SessionManager | SyncSessionManager
Outage: TypeAlias = Literal["error", "anonymous"]
RawHeaders: TypeAlias = Iterable[tuple[bytes, bytes]]

M = TypeVar("M", bound=AnyManager)


class Carrier(Protocol):
    """What carries the id between a client and us: a cookie, or a header of an API client's."""

    @property
    def header(self) -> str:
        """The response header that brings an id, in lower case."""

    @property
    def varies(self) -> str:
        """The request header that the response depends on."""

    def read(self, raw_headers: RawHeaders) -> str | None:
        """Return the id that a client sent; None for anything that could not be one."""

    def issue(self, session_id: str) -> str:
        """Return the value of `header` that gives a client its id."""

    def clear(self) -> str:
        """Return the value of `header` that makes a client forget its id."""


class ReadThrough(Source, Protocol):
    """Another library's store, whose sessions are taken over; see `asyncsession.migration`."""

    @property
    def cookie_name(self) -> str:
        """The name of that library's cookie."""

    def peer_id(self, cookie_value: bytes) -> str | None:
        """Return that library's id; None for a value that is not of its form."""


class Terms(NamedTuple, Generic[M]):
    """What an application has declared about its sessions.

    Attributes:
        manager: loads and saves; the application's to open, share and close.
        carrier: brings the id.
        outage: what becomes of a request that finds the store down when its session is to be
            loaded: `"error"`, or `"anonymous"`, which goes on with an empty session that is not
            saved and leaves the client's id alone.
        keep_on_exception: whether changes are saved if an exception ends the request.
        read_through: where a session is looked for when a client sends no id of ours.
    """

    manager: M
    carrier: Carrier
    outage: Outage = "error"
    keep_on_exception: bool = False
    read_through: ReadThrough | None = None

    def check(self, kind: type[Any] = SessionManager) -> None:
        """Raise `ConfigurationError` for what cannot be meant.

        Args:
            kind: of manager.
        """
        if not isinstance(self.manager, kind):
            raise ConfigurationError(f"manager: a {kind.__name__}")
        if self.outage not in ("error", "anonymous"):
            raise ConfigurationError('outage: "error" or "anonymous"')
        source = self.read_through
        if source is not None and not callable(getattr(source, "peer_id", None)):
            raise ConfigurationError("read_through: one of the sources of asyncsession.migration")
        if source is not None and self.carrier.header != "set-cookie":
            raise ConfigurationError(
                "read_through: the ids of other libraries come in cookies, and a client that "
                "sends its id in a header sends none"
            )
