"""The blob: a header and then a log of frames, one for each commit.

    blob    magic 2 | format 1 | kind 1 | incarnation 8 | created 6 | deadline 6 | folded 6
            | forgotten 6 | retired length 4 | retired: (stamp 6 | commit id 16)... | frame...
    frame   length 4 | tags n 2 | n x key tag 8 | payload | stamp 6 | commit id 16

All numbers are big-endian; times are milliseconds of the server's clock. `length` counts what
follows it. A payload is MessagePack: key -> delta. `folded` counts the commits that are no longer
frames of their own; `retired` lists the ids of the latest, `forgotten` is the stamp of the newest
one that is listed no more. The scripts leave the list out of what they send: to a reader the log
follows the header at once, and offsets into it stay what they are.

Compaction replaces the frames up to a known one by a single frame with the same trailer, so a
snapshot is a frame like any other: readers know one shape only.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import msgpack

from asyncsession.delta import Op, fold
from asyncsession.errors import InvalidSessionData
from asyncsession.operations import MISSING
from asyncsession.values import pack, unpack

__all__ = [
    "FORMAT",
    "HEADER_BYTES",
    "Chain",
    "Frame",
    "Kind",
    "Log",
    "encode_frame",
    "encode_payload",
    "head",
    "key_tag",
    "read_frames",
]

FORMAT = b"aS\x01"
"""Magic, and the number of this format. A reader refuses any other number and writes nothing."""

_HEADER = struct.Struct(">3s1s8s6s6s6s10x")
HEADER_BYTES = _HEADER.size
_FRAME = struct.Struct(">IH")
_TRAILER = 6 + 16
_TAG = 8

_LATEST = 253_402_300_799_999  # ms; the end of the year 9999, which is the last that Python knows
_MAX_FRAMES = 32  # each costs a reader about a microsecond to fold; a snapshot costs bytes to send
_MIN_TAIL = 256  # bytes of log beyond the snapshot that are not worth a compaction
_CERTAIN = frozenset(
    (Op.SET, Op.CREATE, Op.ADD, Op.MAXIMUM, Op.MINIMUM)
)  # after these a value is there
_MAX_OP = max(Op)

Chain = tuple[bytes, ...]
"""The deltas that make up one key's value, oldest first."""


class Kind:
    """What a key holds: a session, a pointer to where it has moved, or the mark that it ended."""

    LIVE = b"L"
    MOVED = b"M"
    DESTROYED = b"D"


def head(kind: bytes, incarnation: bytes) -> bytes:
    """Return the first twelve bytes of a blob; a tombstone is these, and for a move the handle."""
    return FORMAT + kind + incarnation


class Frame(NamedTuple):
    """One commit as it stands in the log."""

    changes: dict[str, bytes]
    stamp: int
    commit_id: bytes
    size: int


@lru_cache(maxsize=4096)
def key_tag(key: str) -> bytes:
    """Return the digest of a key by which the commit script knows it."""
    raw = key.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(raw, digest_size=_TAG).digest()


def encode_frame(changes: Mapping[str, bytes]) -> bytes:
    """Return a frame without its trailer, which the script adds."""
    tags = b"".join(map(key_tag, changes))
    payload = encode_payload(changes)
    length = 2 + len(tags) + len(payload) + _TRAILER
    return _FRAME.pack(length, len(changes)) + tags + payload


def encode_payload(changes: Mapping[str, bytes]) -> bytes:
    """Return keys and their deltas as the payload of a frame."""
    payload: bytes = msgpack.packb(changes)
    return payload


def read_frames(log: bytes) -> Iterator[Frame]:
    """Yield the frames of a log, or of the tail of one.

    Raises:
        InvalidSessionData: these bytes are no log.
    """
    at = 0
    while at < len(log):
        try:
            length, tags = _FRAME.unpack_from(log, at)
        except struct.error:
            raise InvalidSessionData("the stored log ends within a frame") from None
        start, at = at + _FRAME.size + _TAG * tags, at + 4 + length
        end = at - _TRAILER
        if end <= start or at > len(log):
            raise InvalidSessionData("the stored log ends within a frame")
        stamp = int.from_bytes(log[end : end + 6], "big")
        yield Frame(_decode_payload(log[start:end]), stamp, log[end + 6 : at], 4 + length)


class Log:
    """What one reader has seen of a session's log: who it is, and each key's deltas, still packed.

    Attributes:
        incarnation: 8 random bytes, the same for the session's whole life.
        created: ms, server clock.
        deadline: ms, server clock; the absolute timeout.
        version: how many commits there have been.
        length: bytes of log seen.
        tip: id of the last commit seen.
        stamp: ms, server clock; when that was.
        frames: how many frames the log has now.
    """

    __slots__ = ("_chains", "_first", "created", "deadline", "frames", "incarnation", "length",
                 "stamp", "tip", "version")  # fmt: skip

    def __init__(self, incarnation: bytes, created: int, deadline: int, folded: int) -> None:
        self.incarnation = incarnation
        self.created = created
        self.deadline = deadline
        self.version = folded
        self.length = self.frames = self._first = self.stamp = 0
        self.tip = b""
        self._chains: dict[str, Chain] = {}

    @classmethod
    def parse(cls, blob: bytes) -> Log:
        """Return the log of a blob as the scripts send it.

        Raises:
            InvalidSessionData: these bytes are no live session of this format.
        """
        try:
            form, kind, incarnation, *numbers = _HEADER.unpack_from(blob)
        except struct.error:
            raise InvalidSessionData("what is stored is too short to be a session") from None
        if form != FORMAT or kind != Kind.LIVE:
            raise InvalidSessionData("what is stored is not a session of this format")
        log = cls(incarnation, *(int.from_bytes(number, "big") for number in numbers))
        if max(log.created, log.deadline) > _LATEST:
            raise InvalidSessionData("what is stored is not a session of this format")
        log.extend(blob[_HEADER.size :])
        return log

    def extend(self, tail: bytes) -> None:
        """Take in the frames that follow those already seen.

        Raises:
            InvalidSessionData: these bytes are no frames. The log is as it was.
        """
        for frame in list(read_frames(tail)):
            for key, delta in frame.changes.items():
                if delta[0] == Op.SET:
                    self._chains[key] = (delta,)
                elif delta[0] == Op.DELETE:
                    self._chains.pop(key, None)
                else:
                    self._chains[key] = (*self._chains.get(key, ()), delta)
            self.tip, self.stamp = frame.commit_id, frame.stamp
            self._first = self._first or frame.size
            self.length += frame.size
            self.frames += 1
            self.version += 1

    def copy(self) -> Log:
        """Return a log of its own with the same content."""
        twin = Log(self.incarnation, self.created, self.deadline, self.version)
        twin.length, twin.frames, twin._first = self.length, self.frames, self._first
        twin.tip, twin.stamp = self.tip, self.stamp
        twin._chains = dict(self._chains)
        return twin

    def keys(self) -> list[str]:
        """Return the keys that have a value."""
        return [key for key in self._chains if key in self]

    def __contains__(self, key: str) -> bool:
        chain = self._chains.get(key)
        if chain is None:
            return False
        is_certain = chain[0][0] in _CERTAIN and all(delta[0] != Op.DISCARD for delta in chain)
        return is_certain or self.value(key) is not MISSING

    def value(self, key: str) -> Any:
        """Return a key's value, unpacked anew at each call, or `MISSING`."""
        chain = self._chains.get(key, ())
        value = fold(chain)
        if len(chain) > 1 and value is not MISSING:
            try:
                self._chains[key] = (bytes((Op.SET,)) + pack(value),)
            except ValueError:
                raise InvalidSessionData("a stored value is nested too deep") from None
        return value

    def packed(self, key: str) -> bytes:
        """Return a key's value as bytes, without unpacking it where that can be avoided."""
        chain = self._chains[key]
        if len(chain) == 1 and chain[0][0] in (Op.SET, Op.CREATE):
            return chain[0][1:]
        value = self.value(key)
        return self._chains[key][0][1:] if len(chain) > 1 else pack(value)

    def sizes(self) -> dict[str, int]:
        """Return the bytes that each key and its value take in a snapshot, to within a few."""
        return {key: len(key.encode()) + len(self.packed(key)) + 8 for key in self.keys()}

    @property
    def outgrown(self) -> bool:
        """Whether the log has outgrown its snapshot, so that the next commit should fold it."""
        tail = self.length - self._first
        return self.frames > _MAX_FRAMES or tail > max(self._first, _MIN_TAIL)

    def snapshot(self) -> bytes:
        """Return the payload of the one frame that can stand for the whole log seen."""
        set_ = bytes((Op.SET,))
        return encode_payload({key: set_ + self.packed(key) for key in self.keys()})

    def compacted(self, payload: bytes) -> None:
        """Take note that the frames seen have been replaced by one with this payload."""
        self._chains = {key: (delta,) for key, delta in _decode_payload(payload).items()}
        self.length = self._first = _FRAME.size + len(payload) + _TRAILER
        self.frames = 1


def _decode_payload(payload: bytes) -> dict[str, bytes]:
    changes = unpack(payload)
    if not isinstance(changes, dict):
        raise InvalidSessionData("a stored frame is malformed")
    for key, delta in changes.items():
        if not (isinstance(key, str) and isinstance(delta, bytes) and delta):
            raise InvalidSessionData("a stored frame is malformed")
        if delta[0] > _MAX_OP:
            raise InvalidSessionData("a stored change is of a kind this version does not know")
    return changes
