"""An `Exchange` for frameworks in which nothing can be awaited, such as Flask."""

from __future__ import annotations

from typing import TypeVar

from asyncsession.errors import InvalidSessionData, StoreUnavailable
from asyncsession.integrations.exchange import Asking, Rules
from asyncsession.session import Session
from asyncsession.sync import SyncSessionManager

__all__ = ["BlockingExchange"]

T = TypeVar("T")


class BlockingExchange(Rules[SyncSessionManager]):
    """The session of one request, of a manager whose verbs make the thread wait."""

    __slots__ = ()

    def load(self) -> Session:
        """Return the session, loaded with the first call; `begin_without` says what it raises."""
        if self.session is None:
            try:
                self.begin(self.fetch())
            except (StoreUnavailable, InvalidSessionData) as error:
                self.begin_without(error)
            assert self.session is not None
        return self.session

    def perform(self, asking: Asking[T]) -> T:
        """Let the verbs be called, and return what comes of it."""
        result = None
        while True:
            try:
                result = asking.send(result)
            except StopIteration as stop:
                returned: T = stop.value
                return returned
