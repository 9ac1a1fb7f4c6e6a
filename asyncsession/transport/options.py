"""The options of redis-py's connections: read from a URL, and with what has to be ours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import Any

from redis.driver_info import DriverInfo
from redis.exceptions import RedisError

from asyncsession.errors import ConfigurationError
from asyncsession.protocol import Call, Durability

__all__ = [
    "ASKING",
    "MAY_WAIT",
    "Options",
    "Word",
    "check",
    "fixed",
    "for_connection",
    "read_url",
    "wait_words",
    "without_maintenance",
    "words_of",
]

Options = dict[str, Any]
Word = bytes | str

ASKING: tuple[Word, ...] = ("ASKING",)
"""Lets the next command into a slot that is being moved to the node."""

MAY_WAIT: tuple[Word, ...] = ("WAIT", "0", "1")
"""Waits for no replica, and so tells at once whether this connection has the right to wait."""

_MAINTENANCE = ("maint", "orig_", "oss_")
"""What pools tell their connections about notifications of maintenance, which come on RESP3 alone.
They lead back to the pool that a connection was made for."""

# Options that are text. What else comes as such from a URL, redis-py wants as an object.
_TEXTS = ("client_name", "encoding", "encoding_errors", "host", "lib_name", "lib_version",
          "password", "path", "protocol", "sentinel_password", "sentinel_username",
          "username")  # fmt: skip

# For CLIENT LIST. Made once: redis-py would look its version up on disk for each connection.
_DRIVER = DriverInfo().add_upstream_driver("asyncsession", version("asyncsession"))


def read_url(url: str, parse: Callable[[str], Mapping[str, Any]]) -> Options:
    """Return the options that a URL of redis-py's kind holds.

    Args:
        url: the URL.
        parse: redis-py's own function, that for asyncio or the other one.

    Raises:
        ConfigurationError: redis-py does not understand it.
    """
    try:
        options = dict(parse(url))
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"redis-py cannot read the URL of the store ({type(error).__name__}): check its port,"
            " database and options; special characters of a password are percent-encoded"
        ) from None
    for name, value in options.items():
        is_text = name in _TEXTS or name.startswith("ssl_")
        if isinstance(value, (str, list)) and not is_text:
            raise ConfigurationError(f"the URL of the store has an option {name!r} it cannot have")
    return options


def check(options: Options, make: Callable[[Options], object]) -> None:
    """Make a connection, without connecting it, so that options that cannot work show at once.

    Raises:
        ConfigurationError: redis-py does not take them.
    """
    try:
        make(options)
    except (AttributeError, RedisError, TypeError, ValueError) as error:
        kind = type(error).__name__
        raise ConfigurationError(
            f"redis-py does not take an option of the URL of the store ({kind}): {error}"
        ) from None


def for_connection(given: Options, **own: Any) -> Options:
    """Return the options for one connection: without those of pools, and never RESP3.

    On RESP3 redis-py can't tell an unread reply from a push.

    Args:
        given: by the user, `connection_class` among them.
        own: what has to be so, such as no retries: replays are ours to decide.
    """
    merged: Options = {"driver_info": _DRIVER, **given, "protocol": 2, **own}
    merged.pop("max_connections", None)
    return merged


def without_maintenance(given: Mapping[str, Any]) -> Options:
    """Return the options of a pool's connections that others can be made with."""
    return {name: value for name, value in given.items() if not name.startswith(_MAINTENANCE)}


def fixed(options: Options) -> Callable[[], Awaitable[Options]]:
    """Return a coroutine function that returns these options."""

    async def later() -> Options:
        return options

    return later


def words_of(call: Call) -> tuple[Word, ...]:
    """Return the words of EVALSHA after the script: keys and arguments, none of them a number.

    hiredis 3.5 crashes if a signal handler raises while it is writing one out.
    """
    words: list[Word] = [str(len(call.keys)), *call.keys]
    for one in call.args:  # a comprehension would be a function call before Python 3.12
        if isinstance(one, int):
            words.append(f"{one}")
        else:
            words.append(one)
    return tuple(words)


def wait_words(durability: Durability) -> tuple[Word, ...]:
    """Return the words of a WAIT for what was written before it on the same connection."""
    milliseconds = max(1, round(durability.seconds * 1000))  # 0 would mean to wait for ever
    return ("WAIT", str(durability.replicas), str(milliseconds))
