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
from typing import Any, cast

from asyncsession.delta import Op, encode, fold
from asyncsession.errors import InvalidSessionData, SessionError
from asyncsession.operations import MISSING
from asyncsession.values import check_depth, pack, pack_plain, unpack, unpack_flat

__all__ = [
    "FORMAT",
    "HEADER_BYTES",
    "MAX_KEYS",
    "Chain",
    "Kind",
    "Log",
    "before",
    "encode_frame",
    "encode_payload",
    "head",
    "key_tag",
    "scan",
]

FORMAT = b"aS\x01"
"""Magic, and the number of this format. A reader refuses any other number and writes nothing."""

_HEADER = struct.Struct(">3sc8sHIHIHI10x")  # a number of 6 bytes is read as two
HEADER_BYTES = _HEADER.size
_FRAME = struct.Struct(">IH")
_read_frame = _FRAME.unpack_from
_ID = 16
_TRAILER = 6 + _ID
_TAG = 8
MAX_KEYS = 2**16 - 1
"""How many keys one commit can change: a frame counts them in two bytes."""

_LATEST = 253_402_300_799_999  # ms; the end of the year 9999, which is the last that Python knows
# Each frame costs a process that has not seen it a microsecond or two, and a snapshot costs bytes:
# so many frames are left as they are, the more the larger the snapshot.
_MIN_FRAMES, _MAX_FRAMES = 16, 32
_FRAME_BYTES = 128  # of the snapshot, for each frame
_MIN_TAIL = 256  # bytes of log beyond the snapshot that are not worth a compaction
# The numbers of the operations, since comparing bytes to an enumeration takes many times as long.
_SET, _DELETE, _DISCARD = int(Op.SET), int(Op.DELETE), int(Op.DISCARD)
_SET_BYTE = encode(Op.SET)
_WHOLE = frozenset(map(int, (Op.SET, Op.CREATE)))  # alone, their operand is the value
_CERTAIN = _WHOLE | frozenset(map(int, (Op.ADD, Op.MAXIMUM, Op.MINIMUM)))  # there is a value after
_MAX_OP = int(max(Op))

AFTER_BASE = b"+"
"""What a load's answer begins with where its base was found: then come a stamp, and the frames."""

_FETCHED = 7
_LOG_MEMORY, _KEY_MEMORY = 800, 180  # bytes, of a log and of each key beside what is stored of it

Chain = bytes | tuple[bytes, ...]
"""The deltas that make up one key's value, oldest first; one alone stands for itself."""


class Kind:
    """What a key holds: a session, a pointer to where it has moved, or the mark that it ended."""

    LIVE = b"L"
    MOVED = b"M"
    DESTROYED = b"D"


def head(kind: bytes, incarnation: bytes) -> bytes:
    """Return the first twelve bytes of a blob; a tombstone is these, and for a move the handle."""
    return FORMAT + kind + incarnation


@lru_cache(maxsize=4096)
def key_tag(key: str) -> bytes:
    """Return the digest of a key by which the commit script knows it."""
    raw = key.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(raw, digest_size=_TAG).digest()


def encode_frame(changes: Mapping[str, bytes]) -> bytes:
    """Return a frame without its trailer, which the script adds.

    Raises:
        SessionError: it would hold more keys than a frame can.
    """
    if len(changes) > MAX_KEYS:
        raise SessionError(
            f"a commit changes at most {MAX_KEYS:,} keys, not {len(changes):,}: save in between,"
            " or keep them in a dict under one key"
        )
    tags = b"".join(map(key_tag, changes))
    payload = encode_payload(changes)
    length = 2 + len(tags) + len(payload) + _TRAILER
    return _FRAME.pack(length, len(changes)) + tags + payload


def encode_payload(changes: Mapping[str, bytes]) -> bytes:
    """Return keys and their deltas as the payload of a frame."""
    return pack_plain(changes)


def scan(log: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield where in a log, or in the tail of one, the frames are.

    Yields:
        The offsets where a frame's payload begins and ends, and where the frame ends. The bytes
        between the last two are its stamp and its commit id.

    Raises:
        InvalidSessionData: these bytes are no log.
    """
    at, size = 0, len(log)
    while at < size:
        try:
            length, tags = _read_frame(log, at)
        except struct.error:
            raise InvalidSessionData("the stored log ends within a frame") from None
        start = at + _FRAME.size + _TAG * tags
        at += 4 + length
        end = at - _TRAILER
        if end <= start or at > size:
            raise InvalidSessionData("the stored log ends within a frame")
        yield start, end, at


def before(tail: bytes, commit_id: bytes) -> int:
    """Return where in the tail of a log a commit's frame begins; its length if it is not there."""
    begin = 0
    for _, _, end in scan(tail):
        if tail[end - _ID : end] == commit_id:
            return begin
        begin = end
    return begin


class Log:
    """What a reader has seen of a session's log: who it is, and each key's deltas, still packed.

    It is never changed: sessions of one process share it.

    Attributes:
        incarnation: 8 random bytes, the same for the session's whole life.
        created: ms, server clock.
        deadline: ms, server clock; the absolute timeout.
        version: how many commits there have been.
        length: bytes of log seen.
        tip: id of the last commit seen.
        stamp: ms, server clock; when that was, or when the session was last seen since.
        frames: how many frames the log has now.
    """

    __slots__ = ("_chains", "_first", "created", "deadline", "frames", "incarnation", "length",
                 "stamp", "tip", "version")  # fmt: skip

    def __init__(self, incarnation: bytes, created: int, deadline: int, folded: int,
                 chains: dict[str, Chain] | None = None, first: int = 0) -> None:  # fmt: skip
        self.incarnation = incarnation
        self.created = created
        self.deadline = deadline
        self.version = folded
        self.length = self.frames = self.stamp = 0
        self.tip = b""
        self._first = first
        self._chains: dict[str, Chain] = {} if chains is None else chains

    @classmethod
    def parse(cls, blob: bytes) -> Log:
        """Return the log of a blob as the scripts send it.

        Raises:
            InvalidSessionData: these bytes are no live session of this format.
        """
        try:
            form, kind, incarnation, c_high, c_low, d_high, d_low, f_high, f_low = (
                _HEADER.unpack_from(blob)
            )
        except struct.error:
            raise InvalidSessionData("what is stored is too short to be a session") from None
        if form != FORMAT or kind != Kind.LIVE:
            raise InvalidSessionData("what is stored is not a session of this format")
        log = cls(incarnation, c_high << 32 | c_low, d_high << 32 | d_low, f_high << 32 | f_low)
        if max(log.created, log.deadline) > _LATEST:
            raise InvalidSessionData("what is stored is not a session of this format")
        return log.extended(blob[_HEADER.size :])

    @classmethod
    def fetched(cls, data: bytes, known: Log | None) -> Log:
        """Return the log that a load has brought: a whole one, or what came after `known`.

        Raises:
            InvalidSessionData: these bytes are neither.
        """
        if data[:1] != AFTER_BASE:
            return cls.parse(data)
        if known is None or len(data) < _FETCHED:
            raise InvalidSessionData("the answer to a load is malformed")
        log = known.extended(data[_FETCHED:]) if len(data) > _FETCHED else known
        return log.seen(int.from_bytes(data[1:_FETCHED], "big"))

    def extended(self, tail: bytes) -> Log:
        """Return the log with the frames that follow those already seen.

        Raises:
            InvalidSessionData: these bytes are no frames.
        """
        chains, frames, begin, first = self._chains, 0, 0, self._first
        for start, end, at in scan(tail):
            changes = _decode_payload(tail[start:end])
            if not chains:
                chains = cast("dict[str, Chain]", changes)
            else:
                if chains is self._chains:
                    chains = dict(chains)
                _take(chains, changes)
            first = first or at - begin
            begin = at
            frames += 1
        return self._with(chains, first, frames, tail) if frames else self

    def appended(self, changes: Mapping[str, bytes], frame: bytes) -> Log:
        """Return the log with one more frame, which is known to hold these changes."""
        chains = dict(self._chains)
        _take(chains, changes)
        return self._with(chains, self._first or len(frame), 1, frame)

    def seen(self, stamp: int) -> Log:
        """Return the log of a session that was seen at `stamp`, ms by the server's clock."""
        if stamp == self.stamp:
            return self
        log = self._twin(self._chains, self._first)
        log.stamp = stamp
        return log

    def compacted(self) -> tuple[Log, bytes]:
        """Return the log after one frame has taken the place of all those seen, and its payload."""
        chains: dict[str, bytes] = {}
        for key, chain in self._chains.items():
            if type(chain) is bytes and chain[0] == _SET:
                chains[key] = chain
            elif (packed := self.packed(key)) is not None:
                chains[key] = _SET_BYTE + packed
        payload = encode_payload(chains)
        first = _FRAME.size + len(payload) + _TRAILER
        log = self._twin(cast("dict[str, Chain]", chains), first)
        log.length, log.frames = first, 1
        return log, payload

    def detached(self) -> Log:
        """Return a log with the same content whose offsets are not those of the stored one."""
        log = self._twin(self._chains, self._first)
        log.length = 0
        return log

    def _with(self, chains: dict[str, Chain], first: int, frames: int, tail: bytes) -> Log:
        log = self._twin(chains, first)
        log.length += len(tail)
        log.frames += frames
        log.version += frames
        log.tip = tail[-_ID:]
        log.stamp = int.from_bytes(tail[-_TRAILER:-_ID], "big")
        return log

    def _twin(self, chains: dict[str, Chain], first: int) -> Log:
        log = Log(self.incarnation, self.created, self.deadline, self.version, chains, first)
        log.length, log.frames, log.tip, log.stamp = self.length, self.frames, self.tip, self.stamp
        return log

    @property
    def memory(self) -> int:
        """Bytes that it takes in memory; in fact between half and twice as many."""
        return self.length + _LOG_MEMORY + _KEY_MEMORY * len(self._chains)

    def keys(self) -> list[str]:
        """Return the keys that have a value."""
        return [key for key in self._chains if key in self]

    def __contains__(self, key: str) -> bool:
        chain = self._chains.get(key)
        if chain is None:
            return False
        deltas = _deltas(chain)
        is_certain = deltas[0][0] in _CERTAIN and all(delta[0] != _DISCARD for delta in deltas)
        return is_certain or self.value(key) is not MISSING

    def value(self, key: str) -> Any:
        """Return a key's value, unpacked anew at each call, or `MISSING`."""
        chain = self._chains.get(key)
        if chain is None:
            return MISSING
        if type(chain) is bytes and chain[0] in _WHOLE:
            return unpack(chain[1:])
        value = fold(_deltas(chain))
        if value is not MISSING:
            try:
                packed = pack(value)
            except ValueError:
                raise InvalidSessionData("a stored value is nested too deep") from None
            check_depth(value, packed)
            self._chains[key] = _SET_BYTE + packed
        return value

    def packed(self, key: str) -> bytes | None:
        """Return a key's value as bytes, None for none; unpacked only where that has to be."""
        chain = self._chains.get(key)
        if chain is None:
            return None
        if type(chain) is bytes and chain[0] in _WHOLE:
            return chain[1:]
        value = self.value(key)
        return None if value is MISSING else pack(value)

    def sizes(self) -> dict[str, int]:
        """Return the bytes that each key and its value take in a snapshot, to within a few."""
        packed = {key: self.packed(key) for key in self._chains}
        return {
            key: len(key.encode()) + len(it) + 8 for key, it in packed.items() if it is not None
        }

    @property
    def outgrown(self) -> bool:
        """Whether the log has outgrown its snapshot, so that the next commit should fold it."""
        tail = self.length - self._first
        frames = min(max(self._first // _FRAME_BYTES, _MIN_FRAMES), _MAX_FRAMES)
        return self.frames > frames or tail > max(self._first, _MIN_TAIL)


def _deltas(chain: Chain) -> tuple[bytes, ...]:
    return (chain,) if isinstance(chain, bytes) else chain


def _take(chains: dict[str, Chain], changes: Mapping[str, bytes]) -> None:
    for key, delta in changes.items():
        op = delta[0]
        if op == _SET or key not in chains:
            chains[key] = delta
        elif op == _DELETE:
            del chains[key]
        else:
            chains[key] = (*_deltas(chains[key]), delta)


def _decode_payload(payload: bytes) -> dict[str, bytes]:
    changes = unpack_flat(payload)
    if type(changes) is not dict:
        raise InvalidSessionData("a stored frame is malformed")
    for key, delta in changes.items():
        if type(key) is not str or type(delta) is not bytes or not delta:
            raise InvalidSessionData("a stored frame is malformed")
        if delta[0] > _MAX_OP:
            raise InvalidSessionData("a stored change is of a kind this version does not know")
    return changes
