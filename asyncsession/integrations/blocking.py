"""An `Exchange` for frameworks in which nothing can be awaited, such as Flask."""

from __future__ import annotations

from typing import TypeVar

from asyncsession.integrations.exchange import Asking, Rules
from asyncsession.session import Session
from asyncsession.sync import SyncSessionManager

__all__ = ["BlockingExchange"]

T = TypeVar("T")


class BlockingExchange(Rules[SyncSessionManager]):
    """The session of one request, of a manager whose verbs make the thread wait."""

    __slots__ = ()

    def load(self) -> Session:
        """Return the session; see `Rules.loading`."""
        return self.perform(self.loading())

    def perform(self, asking: Asking[T]) -> T:
        """Call the verbs that are asked for, and return what comes of it."""
        manager = self.terms.manager
        try:
            verb = next(asking)
            while True:
                try:
                    result = getattr(manager, verb.name)(*verb.args)
                except Exception as error:
                    verb = asking.throw(error)
                else:
                    verb = asking.send(result)
        except StopIteration as stop:
            returned: T = stop.value
            return returned
        finally:
            asking.close()
