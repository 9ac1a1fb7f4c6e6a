"""What managers are told, checked: their options, and the names of principals."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal

from asyncsession.cache import Cache
from asyncsession.errors import ConfigurationError
from asyncsession.machine import MAX_TIMEOUT, Settings
from asyncsession.merge import MergeFunction, Policies, Policy
from asyncsession.protocol import Durability
from asyncsession.session import MAX_PRINCIPAL

__all__ = ["MAX_BYTES", "checked_principal", "checked_settings"]

MAX_BYTES = 2**24
"""What `max_bytes` may be at the most. The scripts read no value that no log can have."""

_LONGEST = 10 * 365 * 86_400  # seconds; longer is a mistake in the unit


def checked_settings(
    *,
    prefix: str,
    idle_timeout: float | timedelta,
    absolute_timeout: float | timedelta,
    merge: Mapping[str, Policy | MergeFunction] | None,
    default_merge: Policy | MergeFunction,
    max_bytes: int,
    cache_bytes: int,
    timeout: float,
    max_sessions: int | None,
    when_full: Literal["end_oldest", "refuse"],
    min_replicas: int,
    durability_timeout: float | timedelta,
) -> Settings:
    """Return the settings that a manager's options make; `SessionManager` says what they mean.

    Raises:
        ConfigurationError: an argument that cannot work; the message says which and why.
    """
    if not isinstance(prefix, str) or not prefix or set(prefix) & set("{}"):
        raise ConfigurationError("prefix: a string without braces, and not empty")
    idle = _seconds("idle_timeout", idle_timeout)
    absolute = _seconds("absolute_timeout", absolute_timeout)
    if not isinstance(max_bytes, int) or not 256 <= max_bytes <= MAX_BYTES:
        raise ConfigurationError("max_bytes: 256 bytes to 16 MiB")
    if type(cache_bytes) is not int or cache_bytes < 0:
        raise ConfigurationError("cache_bytes: a number of bytes, or 0 for no cache")
    if not isinstance(timeout, (int, float)) or not 0 < timeout <= MAX_TIMEOUT:
        raise ConfigurationError(f"timeout: more than 0 and at most {MAX_TIMEOUT:g} seconds")
    if max_sessions is not None and (type(max_sessions) is not int or max_sessions < 1):
        raise ConfigurationError("max_sessions: a number from 1, or None for no limit")
    if when_full not in ("end_oldest", "refuse"):
        raise ConfigurationError("when_full: 'end_oldest' or 'refuse'")
    return Settings(
        prefix=prefix,
        idle_timeout=min(idle, absolute),
        absolute_timeout=absolute,
        max_bytes=max_bytes,
        cache=Cache(cache_bytes),
        timeout=timeout,
        policies=Policies(merge or {}, default_merge),
        max_sessions=max_sessions,
        ends_oldest=when_full == "end_oldest",
        durability=_durability(min_replicas, durability_timeout, timeout),
    )


def checked_principal(principal: str) -> str:
    """Return the name of a principal if it can be one.

    Raises:
        ConfigurationError: it cannot.
    """
    if not isinstance(principal, str) or not 0 < len(principal) <= MAX_PRINCIPAL:
        raise ConfigurationError(f"principal: a string of 1 to {MAX_PRINCIPAL} characters")
    return principal


def _durability(
    min_replicas: int, durability_timeout: float | timedelta, timeout: float
) -> Durability | None:
    if type(min_replicas) is not int or min_replicas < 0:
        raise ConfigurationError("min_replicas: a number from 1, or 0 to wait for none")
    seconds = (
        durability_timeout.total_seconds()
        if isinstance(durability_timeout, timedelta)
        else durability_timeout
    )
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not seconds >= 0.001:
        raise ConfigurationError("durability_timeout: seconds or a timedelta, from 1 ms")
    if not min_replicas:
        return None
    if seconds > timeout:
        raise ConfigurationError(f"durability_timeout: at most `timeout`, {timeout:g} seconds")
    return Durability(min_replicas, seconds)


def _seconds(name: str, duration: float | timedelta) -> float:
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if not isinstance(seconds, (int, float)) or not 0.001 <= seconds <= _LONGEST:
        raise ConfigurationError(f"{name}: seconds or a timedelta, from 1 ms to ten years")
    return seconds
