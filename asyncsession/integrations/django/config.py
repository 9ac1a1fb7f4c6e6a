"""What `settings.ASYNCSESSION` says, checked, and the two managers that it describes."""

from __future__ import annotations

import difflib
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from django.conf import settings
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from asyncsession.adoption import BlockingTwoStores, Source, TwoStores
from asyncsession.errors import ConfigurationError
from asyncsession.integrations.django.expiry import ENDS
from asyncsession.integrations.django.flash import merge_messages
from asyncsession.integrations.django.sources import source_of
from asyncsession.machine import Settings
from asyncsession.manager import SessionManager
from asyncsession.merge import maximum
from asyncsession.protocol import Group
from asyncsession.sync import SyncSessionManager

__all__ = [
    "SETTING",
    "AsyncManager",
    "BlockingManager",
    "Config",
    "Principal",
    "aclose",
    "current",
    "user_principal",
]

T = TypeVar("T")

SETTING = "ASYNCSESSION"

Principal = Callable[[Mapping[str, Any]], str | None]
"""Says whom a session belongs to, given what it holds."""

_SHARED = {
    "PREFIX", "IDLE_TIMEOUT", "ABSOLUTE_TIMEOUT", "MAX_BYTES", "CACHE_BYTES", "TIMEOUT",
    "MAX_SESSIONS", "WHEN_FULL", "MIN_REPLICAS", "DURABILITY_TIMEOUT",
}  # fmt: skip
_NAMES = sorted(
    {*_SHARED, "URL", "MERGE", "DEFAULT_MERGE", "LANES", "CONNECTIONS", "PRINCIPAL", "READ_THROUGH"}
)
_ABSOLUTE_TIMEOUT = 14 * 86_400  # seconds; the default of the managers
_OPTION = re.compile(r"\A[a-z_]+(?=:)|`[a-z_]+`")  # as errors of the managers name one
_USER = "_auth_user_id"  # `django.contrib.auth.SESSION_KEY`


def user_principal(session: Mapping[str, Any]) -> str | None:
    """Return `"user:42"` for a session that user 42 has logged in to, None for an anonymous one."""
    return f"user:{session[_USER]}" if _USER in session else None


class AsyncManager(SessionManager):
    """A manager that carries through machines of the session engine's.

    Attributes:
        settings: that the machines are made with.
    """

    def __init__(self, url: str, source: Source | None, **options: Any) -> None:
        super().__init__(url, **options)
        self.settings: Settings = self._settings
        self._stores = None if source is None else TwoStores(self._transport, source.transport)

    async def run(self, machine: Group[T]) -> T:
        """Carry a machine through, and return what it returns."""
        return await self._drive(machine, self._stores)


class BlockingManager(SyncSessionManager):
    """The same for threads."""

    def __init__(self, url: str, source: Source | None, **options: Any) -> None:
        super().__init__(url, **options)
        self.settings: Settings = self._settings
        self._stores = None
        if source is not None:
            self._stores = BlockingTwoStores(self._transport, source.blocking_transport)

    def run(self, machine: Group[T]) -> T:
        """Carry a machine through, and return what it returns."""
        return self._drive(machine, self._stores)


@dataclass(frozen=True, slots=True)
class Config:
    """What the settings describe.

    Attributes:
        awaited, blocking: the managers, of the same sessions. They connect when they are used.
        principal: says whom a session belongs to; None to leave that alone.
        source: where sessions of another engine are looked for; None for nowhere.
    """

    awaited: AsyncManager
    blocking: BlockingManager
    principal: Principal | None
    source: Source | None

    @classmethod
    def of(cls, declared: object) -> Config:
        """Return what a value of `settings.ASYNCSESSION` describes; nothing is opened.

        Raises:
            ConfigurationError: it cannot be meant; the message says what to change.
        """
        options = _checked(declared)
        principal = _imported("PRINCIPAL", options.pop("PRINCIPAL", user_principal))
        if principal is not None and not callable(principal):
            raise _wrong("PRINCIPAL: a function of what a session holds, its dotted path, or None")
        former = options.pop("READ_THROUGH", None)
        if not str(former).startswith("django."):  # the name of an engine, and not of a source
            former = _imported("READ_THROUGH", former)
        source = source_of(former, principal)
        lanes, connections = options.pop("LANES", 1), options.pop("CONNECTIONS", 32)
        url, shared = options.pop("URL"), _for_managers(options)
        try:
            awaited = AsyncManager(url, source, lanes=lanes, **shared)
            blocking = BlockingManager(url, source, connections=connections, **shared)
        except ConfigurationError as error:
            raise _wrong(_OPTION.sub(_in_capitals, str(error))) from error
        return cls(awaited, blocking, principal, source)


_guard = threading.Lock()
_current: Config | None = None


def current() -> Config:
    """Return what the settings of this process describe; the same until they change.

    Raises:
        ConfigurationError: they cannot be meant.
    """
    global _current
    config = _current
    if config is None:
        with _guard:
            config = _current
            if config is None:
                config = _current = Config.of(getattr(settings, SETTING, None))
    return config


async def aclose() -> None:
    """Close the connections that the running event loop has opened; using them opens new ones.

    Where an event loop ends before its process does, as in tests and in `async_to_sync`.
    """
    if _current is not None:
        await _current.awaited.aclose()


def _forget(*, setting: str, **_: object) -> None:
    """Take other settings into account, which tests override."""
    global _current
    if setting in (SETTING, "SESSION_COOKIE_AGE", "SESSION_CACHE_ALIAS"):
        config, _current = _current, None
        if config is not None:
            config.blocking.close()  # what a loop has open, only that loop could close


setting_changed.connect(_forget, dispatch_uid="asyncsession")


def _checked(declared: object) -> dict[str, Any]:
    """Return the options, all of which are known."""
    if not isinstance(declared, Mapping):
        raise ConfigurationError(
            f'{SETTING}: a dict in the settings, at least {{"URL": "redis://..."}}'
        )
    for name in declared:
        if name not in _NAMES:
            raise _wrong(f"{name!r} is no option{_nearest(name)}")
    options = dict(declared)
    if not isinstance(options.get("URL"), str):
        raise _wrong('URL: the store as a text, such as "redis://localhost:6379/0"')
    return options


def _for_managers(options: dict[str, Any]) -> dict[str, Any]:
    """Return what both managers are called with."""
    idle = options.setdefault("IDLE_TIMEOUT", settings.SESSION_COOKIE_AGE)
    if isinstance(idle, timedelta):
        idle = idle.total_seconds()
    if isinstance(idle, (int, float)):
        options.setdefault("ABSOLUTE_TIMEOUT", max(_ABSOLUTE_TIMEOUT, idle))
    merge = options.pop("MERGE", None) or {}
    if not isinstance(merge, Mapping):
        raise _wrong("MERGE: a dict of session keys, or patterns, and their policies")
    policies = {key: _imported(f"MERGE[{key!r}]", policy) for key, policy in merge.items()}
    shared = {name.lower(): value for name, value in options.items() if name in _SHARED}
    shared["merge"] = {"_messages": merge_messages, ENDS: maximum, **policies}
    if "DEFAULT_MERGE" in options:
        shared["default_merge"] = _imported("DEFAULT_MERGE", options["DEFAULT_MERGE"])
    return shared


def _in_capitals(option: re.Match[str]) -> str:
    """Return the name of a manager's option as the settings have it."""
    name = option[0].upper()
    return name if name.strip("`") in _NAMES else option[0]


def _imported(name: str, value: Any) -> Any:
    """Return what a dotted path leads to; what is no text stands for itself."""
    if not isinstance(value, str):
        return value
    try:
        return import_string(value)
    except ImportError as error:
        raise _wrong(f"{name}: {value!r} cannot be imported ({error})") from error


def _nearest(name: object) -> str:
    near = difflib.get_close_matches(str(name).upper(), _NAMES, 1)
    return f"; did you mean {near[0]!r}?" if near else f": there are {', '.join(_NAMES)}"


def _wrong(reason: str) -> ConfigurationError:
    return ConfigurationError(f"{SETTING}: {reason}")
