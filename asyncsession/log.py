"""The log: what a reader has seen of a session, with every value still packed."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final, cast

from asyncsession.blob import (
    FRAME_BYTES,
    HEADER_BYTES,
    ID_BYTES,
    TRAILER_BYTES,
    encode_payload,
    read_header,
    scan,
)
from asyncsession.delta import SET_BYTE, Op, fold
from asyncsession.errors import InvalidSessionData
from asyncsession.operations import MISSING
from asyncsession.values import check_depth, pack, unpack, unpack_flat

__all__ = ["Chain", "Log"]

# Each frame costs a process that has not seen it a microsecond or two, and a snapshot costs bytes:
# so many frames are left as they are, the more the larger the snapshot.
_MIN_FRAMES: Final = 16
_MAX_FRAMES: Final = 32
_FRAME_SHARE: Final = 128  # of the snapshot, for each frame
_MIN_TAIL: Final = 256  # bytes of log beyond the snapshot that are not worth a compaction
# The numbers of the operations, since comparing bytes to an enumeration takes many times as long.
_SET: Final = int(Op.SET)
_DELETE: Final = int(Op.DELETE)
_DISCARD: Final = int(Op.DISCARD)
# Alone, the operand of these is the value; after the others, too, there is one.
_WHOLE: Final = frozenset(map(int, (Op.SET, Op.CREATE)))
_CERTAIN: Final = _WHOLE | frozenset(map(int, (Op.ADD, Op.MAXIMUM, Op.MINIMUM)))
_MAX_OP: Final = int(max(Op))

_AT_BASE: Final = b"+"
_MOVED_BASE: Final = b"-"
"""What a load's answer begins with where its base was found, and where it was found elsewhere."""

_FETCHED: Final = 7
_BASE: Final = struct.Struct(">IHI16sHI")
"""A log's length, stamp, tip and version, by which the scripts find it."""
_LOW: Final = 0xFFFFFFFF  # a number of 6 bytes is packed as two
_PLACE: Final = struct.Struct(">IIHI")
"""Of a base in a compacted log: its end, the snapshot's, `folded`."""
_LOG_MEMORY: Final = 800
_KEY_MEMORY: Final = 180  # bytes, of a log and of each key beside what is stored of it

Chain = bytes | tuple[bytes, ...]
"""The deltas that make up one key's value, oldest first; one alone stands for itself."""


class Log:
    """What a reader has seen of a session's log: who it is, and each key's deltas, still packed.

    What it says is never changed: sessions of one process share it.

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

    __slots__ = ("_chains", "_first", "_is_claimed", "created", "deadline", "frames", "incarnation",
                 "length", "stamp", "tip", "version")  # fmt: skip

    def __init__(
        self,
        incarnation: bytes,
        created: int,
        deadline: int,
        version: int,
        chains: dict[str, Chain] | None = None,
        first: int = 0,
        length: int = 0,
        frames: int = 0,
        tip: bytes = b"",
        stamp: int = 0,
    ) -> None:
        self.incarnation = incarnation
        self.created = created
        self.deadline = deadline
        self.version = version
        self.length = length
        self.frames = frames
        self.tip = tip
        self.stamp = stamp
        self._first = first
        self._is_claimed = False
        self._chains: dict[str, Chain] = {} if chains is None else chains

    @classmethod
    def parse(cls, blob: bytes) -> Log:
        """Return the log of a blob as the scripts send it.

        Raises:
            InvalidSessionData: these bytes are no live session of this format.
        """
        header = read_header(blob)
        return cls(*header).extended(blob[HEADER_BYTES:])

    @classmethod
    def fetched(cls, data: bytes, known: Log, latest: Log | None) -> Log:
        """Return the log that a load has brought: a whole one, or what came after `known`.

        Args:
            data: the script's answer.
            known: the log that the load named; an empty one for none.
            latest: as for `extended`.

        Raises:
            InvalidSessionData: these bytes are neither.
        """
        mark = data[:1]
        if mark != _AT_BASE and mark != _MOVED_BASE:
            return cls.parse(data)
        if not known.length or len(data) < _FETCHED:
            raise InvalidSessionData("the answer to a load is malformed")
        tail = data[_FETCHED:]
        if mark == _MOVED_BASE:
            known, tail = known.moved(tail)
        log = known.extended(tail, latest) if tail else known
        return log.seen(int.from_bytes(data[1:_FETCHED], "big"))

    def extended(self, tail: bytes, latest: Log | None = None) -> Log:
        """Return the log with the frames that follow those already seen.

        Args:
            tail: the frames.
            latest: what another session may have made of the same frames, to share it.

        Raises:
            InvalidSessionData: these bytes are no frames.
        """
        if latest is not None and latest.is_after(self, tail):
            return latest
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

    def touched(self, trailer: bytes, stamp: int) -> Log:
        """Return the log after a touch at `stamp`, ms by the server's clock.

        Args:
            trailer: stamp and id, as they were, of the frame on which that is noted. If the last
                one here is another, or was written at another time, this log is as it was.
            stamp: of that frame now.
        """
        return self.seen(stamp) if self.stamp.to_bytes(6, "big") + self.tip == trailer else self

    def moved(self, data: bytes) -> tuple[Log, bytes]:
        """Return the log as it stands since somebody has compacted it, and what follows it.

        Whoever only reads folds nothing otherwise, and would let chains grow for ever.

        Args:
            data: where it ends by now, as the scripts say it, and then the tail.

        Raises:
            InvalidSessionData: it can't be there.
        """
        try:
            length, first, high, low = _PLACE.unpack_from(data)
        except struct.error:
            raise InvalidSessionData("the place of a stored log is malformed") from None
        log = self._twin(self._folded(), first)
        log.length, log.frames = length, self.version - (high << 32 | low)
        if log.frames < 1 or length < first:
            raise InvalidSessionData("the place of a stored log is malformed")
        return log, data[_PLACE.size :]

    def compacted(self) -> tuple[Log, bytes]:
        """Return the log after one frame has taken the place of all those seen, and its payload."""
        chains: dict[str, bytes] = {}
        for key, chain in self._chains.items():
            if type(chain) is bytes and chain[0] == _SET:
                chains[key] = chain
            elif (packed := self.packed(key)) is not None:
                chains[key] = SET_BYTE + packed
        payload = encode_payload(chains)
        first = FRAME_BYTES + len(payload) + TRAILER_BYTES
        log = self._twin(cast("dict[str, Chain]", chains), first)
        log.length, log.frames = first, 1
        return log, payload

    def detached(self) -> Log:
        """Return a log with the same content whose offsets are not those of the stored one."""
        log = self._twin(self._chains, self._first)
        log.length = 0
        return log

    def is_same(self, log: Log) -> bool:
        """Tell whether this is `log` itself, but for when it was seen and where it is.

        The same tip does not say so: after a failover, a commit may be done again behind others.
        """
        return self.version == log.version and self._chains is log._chains

    def is_after(self, log: Log, tail: bytes) -> bool:
        """Tell whether this is `log` and the frames of `tail`."""
        return (
            self.tip == tail[-ID_BYTES:]
            and self.stamp == int.from_bytes(tail[-TRAILER_BYTES:-ID_BYTES], "big")
            and self.length == log.length + len(tail)
            and self.incarnation == log.incarnation
        )

    def _folded(self) -> dict[str, Chain]:
        """Return the chains with those folded that a compaction would have ended long ago."""
        grown = [
            key
            for key, chain in self._chains.items()
            if not isinstance(chain, bytes) and len(chain) > _MAX_FRAMES
        ]
        if not grown:
            return self._chains
        chains = dict(self._chains)
        for key in grown:
            packed = self.packed(key)
            if packed is None:
                del chains[key]
            else:
                chains[key] = SET_BYTE + packed
        return chains

    def _with(self, chains: dict[str, Chain], first: int, frames: int, tail: bytes) -> Log:
        stamp = int.from_bytes(tail[-TRAILER_BYTES:-ID_BYTES], "big")
        return Log(self.incarnation, self.created, self.deadline, self.version + frames, chains,
                   first, self.length + len(tail), self.frames + frames, tail[-ID_BYTES:],
                   stamp)  # fmt: skip

    def _twin(self, chains: dict[str, Chain], first: int) -> Log:
        return Log(self.incarnation, self.created, self.deadline, self.version, chains, first,
                   self.length, self.frames, self.tip, self.stamp)  # fmt: skip

    @property
    def base(self) -> bytes:
        """What tells the scripts which log this is; empty for an empty one."""
        if not self.tip:
            return b""
        stamp, version = self.stamp, self.version
        return _BASE.pack(
            self.length, stamp >> 32, stamp & _LOW, self.tip, version >> 32, version & _LOW
        )

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
            self._chains[key] = SET_BYTE + packed
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
        """Whether the log has outgrown its snapshot, so that a commit should fold it."""
        tail = self.length - self._first
        frames = min(max(self._first // _FRAME_SHARE, _MIN_FRAMES), _MAX_FRAMES)
        return self.frames > frames or tail > max(self._first, _MIN_TAIL)

    def claim_compaction(self) -> bool:
        """Tell the first of the sessions that share an outgrown log, and no other, to fold it."""
        if self._is_claimed or not self.outgrown:
            return False
        self._is_claimed = True
        return True


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
