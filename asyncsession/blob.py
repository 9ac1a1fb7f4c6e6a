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
snapshot is a frame like any other: readers know one shape only. Behind the last frame of a large
log may be room for more, all zeros; the scripts leave that out, too.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from asyncsession.errors import InvalidSessionData, SessionError
from asyncsession.values import pack_plain

__all__ = [
    "FORMAT",
    "FRAME_BYTES",
    "HEADER_BYTES",
    "ID_BYTES",
    "MAX_KEYS",
    "TRAILER_BYTES",
    "Header",
    "Kind",
    "before",
    "encode_frame",
    "encode_payload",
    "head",
    "key_tag",
    "read_header",
    "scan",
]

FORMAT: Final = b"aS\x01"
"""Magic, and the number of this format. A reader refuses any other number and writes nothing."""

_HEADER: Final = struct.Struct(">3sc8sHIHIHI10x")  # a number of 6 bytes is read as two
HEADER_BYTES: Final = _HEADER.size
_FRAME: Final = struct.Struct(">IH")
_read_frame: Final = _FRAME.unpack_from
FRAME_BYTES: Final = _FRAME.size
"""What goes before a frame's tags."""
ID_BYTES: Final = 16
TRAILER_BYTES: Final = 6 + ID_BYTES
_TAG: Final = 8
MAX_KEYS: Final = 2**16 - 1
"""How many keys one commit can change: a frame counts them in two bytes."""
_LATEST: Final = 253_402_300_799_999
"""ms; the end of the year 9999, which is the last that Python knows."""


class Header(NamedTuple):
    """What goes before a live session's log, but for the list of ids.

    Attributes:
        incarnation: 8 random bytes, the same for the session's whole life.
        created, deadline: ms, server clock.
        folded: how many commits are no longer frames of their own.
    """

    incarnation: bytes
    created: int
    deadline: int
    folded: int


class Kind:
    """What a key holds: a session, a pointer to where it has moved, or the mark that it ended."""

    LIVE: Final = b"L"
    MOVED: Final = b"M"
    DESTROYED: Final = b"D"


def head(kind: bytes, incarnation: bytes) -> bytes:
    """Return the first twelve bytes of a blob; a tombstone is these, and for a move the handle."""
    return FORMAT + kind + incarnation


@lru_cache(maxsize=4096)
def key_tag(key: str) -> bytes:
    """Return the digest of a key by which the commit script knows it."""
    raw = key.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(raw, digest_size=_TAG).digest()


def encode_frame(changes: Mapping[str, bytes], *, is_first: bool = False) -> bytes:
    """Return a frame without its trailer, which the script adds.

    Args:
        changes: key to delta.
        is_first: it creates the session. Nobody has loaded that before and could guard a key
            against it, so the frame has no tags.

    Raises:
        SessionError: it would hold more keys than a frame can.
    """
    if len(changes) > MAX_KEYS:
        raise SessionError(
            f"a commit changes at most {MAX_KEYS:,} keys, not {len(changes):,}: save in between,"
            " or keep them in a dict under one key"
        )
    tags = b"" if is_first else b"".join(map(key_tag, changes))
    payload = encode_payload(changes)
    length = 2 + len(tags) + len(payload) + TRAILER_BYTES
    return _FRAME.pack(length, len(tags) // _TAG) + tags + payload


def encode_payload(changes: Mapping[str, bytes]) -> bytes:
    """Return keys and their deltas as the payload of a frame."""
    return pack_plain(changes)


def read_header(blob: bytes) -> Header:
    """Return the header of a live session.

    Raises:
        InvalidSessionData: these bytes are none of this format.
    """
    try:
        form, kind, incarnation, c_high, c_low, d_high, d_low, f_high, f_low = _HEADER.unpack_from(
            blob
        )
    except struct.error:
        raise InvalidSessionData("what is stored is too short to be a session") from None
    header = Header(incarnation, c_high << 32 | c_low, d_high << 32 | d_low, f_high << 32 | f_low)
    if form != FORMAT or kind != Kind.LIVE or max(header.created, header.deadline) > _LATEST:
        raise InvalidSessionData("what is stored is not a session of this format")
    return header


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
        start = at + FRAME_BYTES + _TAG * tags
        at += 4 + length
        end = at - TRAILER_BYTES
        if end <= start or at > size:
            raise InvalidSessionData("the stored log ends within a frame")
        yield start, end, at


def before(tail: bytes, commit_id: bytes) -> int:
    """Return where in the tail of a log a commit's frame begins; its length if it is not there."""
    begin = 0
    for _, _, end in scan(tail):
        if tail[end - ID_BYTES : end] == commit_id:
            return begin
        begin = end
    return begin
