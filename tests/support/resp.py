"""RESP2 framing: where one request or reply ends and the next begins."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["Frames", "arguments"]


class Frames:
    """Cuts a RESP2 stream, in pieces of any size, into whole values (nested arrays are one)."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0  # how far the value at the front has been read
        self._missing = 1  # how many (sub-)values it still lacks

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take in `data`; yield the bytes of every value that it completes.

        Raises:
            ValueError: the stream is RESP3.
        """
        self._buffer += data
        while self._read_on():
            yield bytes(self._buffer[: self._at])
            del self._buffer[: self._at]
            self._at, self._missing = 0, 1

    def _read_on(self) -> bool:
        while self._missing:
            end = self._buffer.find(b"\r\n", self._at)
            if end < 0:
                return False
            kind, size = self._buffer[self._at : self._at + 1], 0
            if kind in b"$*":
                size = max(0, int(self._buffer[self._at + 1 : end]))
            elif kind in b"_#,(!=%~>|":
                raise ValueError("FaultProxy does not know RESP3: connect with protocol=2")
            after = end + 2
            if kind == b"*":
                self._missing += size
            elif kind == b"$" and self._buffer[self._at + 1] != ord("-"):  # $-1 has no body
                after += size + 2
                if len(self._buffer) < after:
                    return False
            self._at = after
            self._missing -= 1
        return True


def arguments(request: bytes) -> list[bytes]:
    """Return the words of one whole request."""
    if not request.startswith(b"*"):  # typed by hand
        return request.split()
    words = []
    at = request.index(b"\r\n") + 2
    while at < len(request):
        start = request.index(b"\r\n", at) + 2
        size = int(request[at + 1 : start])
        words.append(request[start : start + size])
        at = start + size + 2
    return words
