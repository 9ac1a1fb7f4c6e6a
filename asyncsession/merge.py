"""Merge policies: how a change to a key is put on top of what others did to it meanwhile.

A policy makes the delta that a commit carries. A *guarded* policy also wants to be asked when
somebody else has changed the key: the commit is refused then, the policy resolves the conflict,
and the commit is tried again. All others never cost a second round trip.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from asyncsession import operations
from asyncsession.delta import Op, apply, diff, encode
from asyncsession.errors import ConfigurationError
from asyncsession.operations import MISSING, Missing, same

__all__ = [
    "MISSING",
    "MergeFunction",
    "Missing",
    "Policy",
    "Refused",
    "append",
    "counter",
    "first_write",
    "last_write",
    "maximum",
    "minimum",
    "reject",
    "three_way",
    "union",
]

MergeFunction: TypeAlias = Callable[[Any, Any, Any], Any]
"""`f(base, ours, theirs) -> value`; any of them may be `MISSING`, and `MISSING` deletes.

It must not change its arguments, may be called more than once, and aborts the commit by raising.
"""


class Refused(Exception):
    """Raised by a policy that does not resolve conflicts."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How changes of one key are merged.

    Attributes:
        name: for people.
        diff: `(base, ours) -> delta`, or None where nothing changed.
        resolve: `(base, ours, theirs) -> value` for a guarded policy, else None.
        sets_scalars: whether a number, string or the like that has changed is always set, whatever
            was there; then nothing is asked.
    """

    name: str
    diff: Callable[[Any, Any], bytes | None]
    resolve: MergeFunction | None = None
    sets_scalars: bool = False

    def __repr__(self) -> str:
        return f"merge.{self.name}"


class Policies:
    """Which policy a key has: its own, else that of the first pattern it matches, else the default.

    Args:
        declared: session key, or `fnmatch` pattern such as `"cart:*"`, to policy or function.
        default: for keys that `declared` does not name.

    Raises:
        ConfigurationError: a key that is no string, or what is neither a policy nor callable.
    """

    def __init__(
        self, declared: Mapping[str, Policy | MergeFunction], default: Policy | MergeFunction
    ) -> None:
        for key in declared:
            if not isinstance(key, str):
                raise ConfigurationError(
                    f"merge policies go by session key, a string, not {type(key).__qualname__}"
                )
        policies = {key: as_policy(policy) for key, policy in declared.items()}
        self._default = as_policy(default)
        self._patterns = [
            (key, policy) for key, policy in policies.items() if set(key) & set("*?[")
        ]
        self._exact = policies

    def __getitem__(self, key: str) -> Policy:
        if (policy := self._exact.get(key)) is not None:
            return policy
        for pattern, policy in self._patterns:
            if fnmatch.fnmatchcase(key, pattern):
                return policy
        return self._default


def as_policy(declared: Policy | MergeFunction) -> Policy:
    """Return `declared` as a policy; a plain function becomes a guarded one."""
    if isinstance(declared, Policy):
        return declared
    if not callable(declared):
        raise ConfigurationError(
            f"a merge policy is one of asyncsession.merge or a function f(base, ours, theirs), "
            f"not {type(declared).__qualname__}"
        )
    return Policy(getattr(declared, "__name__", "custom"), _replace, declared, sets_scalars=True)


def _replace(base: Any, ours: Any) -> bytes | None:
    if same(base, ours):
        return None
    return encode(Op.DELETE) if ours is MISSING else encode(Op.SET, ours)


def _count(base: Any, ours: Any) -> bytes | None:
    if same(base, ours) or not operations.is_number(ours):
        return _replace(base, ours)
    if base is MISSING:
        return encode(Op.ADD, [ours])
    if not operations.is_number(base):
        return _replace(base, ours)
    try:
        amount = operations.add(ours, -base)
        exact = same(operations.add(base, amount), ours)
    except (operations.Unfit, ArithmeticError):
        return _replace(base, ours)
    return encode(Op.ADD, [amount] if exact else [amount, base, ours])


def _extreme(op: Op) -> Callable[[Any, Any], bytes | None]:
    def change(base: Any, ours: Any) -> bytes | None:
        if same(base, ours) or ours is MISSING:
            return _replace(base, ours)
        delta = encode(op, ours)
        return delta if same(apply(base, delta), ours) else _replace(base, ours)

    return change


def _union(base: Any, ours: Any) -> bytes | None:
    sets = (set, frozenset)
    alike = isinstance(ours, sets) or operations.is_list(ours)
    if ours is MISSING:
        return diff(base, ours)
    if same(base, ours) or not alike:
        return _replace(base, ours)
    alike = type(base) is type(ours) or (operations.is_list(base) and operations.is_list(ours))
    if base is not MISSING and not alike:
        return _replace(base, ours)
    removed, added = operations.set_change(() if base is MISSING else base, ours)
    container = type(ours)(added) if isinstance(ours, sets) else added
    if base is MISSING or same(operations.reset(base, (removed, container)), ours):
        return encode(Op.UNION, [removed, ours if base is MISSING else container])
    return diff(base, ours)  # the order of a list was changed, or an item repeated


def _append(base: Any, ours: Any) -> bytes | None:
    if base is MISSING and operations.is_list(ours):
        return encode(Op.LIST, [[], ours])
    return diff(base, ours)


def _theirs(_base: Any, _ours: Any, theirs: Any) -> Any:
    return theirs


def _refuse(_base: Any, _ours: Any, _theirs: Any) -> Any:
    raise Refused


three_way = Policy("three_way", diff, sets_scalars=True)
"""Dicts by sub-key, lists by items removed and appended, sets by items; anything else is set."""
last_write = Policy("last_write", _replace, sets_scalars=True)
"""The later commit's value stands; the one it replaced is reported in `Commit.overwritten`."""
counter = Policy("counter", _count)
"""Numbers: what was added (or taken away) is added up."""
maximum = Policy("maximum", _extreme(Op.MAXIMUM))
"""The greatest value wins. Assigning a lower one than was loaded is a reset: it is set."""
minimum = Policy("minimum", _extreme(Op.MINIMUM))
"""The least value wins. Assigning a higher one than was loaded is a reset: it is set."""
union = Policy("union", _union)
"""Sets, and lists used as sets: items added and removed."""
append = Policy("append", _append)
"""Lists: items removed and appended; two that create the list at once append both."""
first_write = Policy("first_write", _replace, _theirs, sets_scalars=True)
"""The earlier commit's value stands; the later one is dropped and reported."""
reject = Policy("reject", _replace, _refuse, sets_scalars=True)
"""`SessionConflict` for whoever comes second."""
