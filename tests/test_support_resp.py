"""RESP framing, whatever the pieces in which a stream arrives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.resp import Frames, arguments

REPLIES: st.SearchStrategy[bytes] = st.recursive(
    st.one_of(
        st.sampled_from(b"+OK\r\n -ERR\r\n :-7\r\n $-1\r\n *-1\r\n *0\r\n".split(b" ")),
        st.binary(max_size=20).map(lambda body: b"$%d\r\n%b\r\n" % (len(body), body)),
    ),
    lambda inner: st.lists(inner, min_size=1, max_size=4).map(
        lambda items: b"*%d\r\n%b" % (len(items), b"".join(items))
    ),
    max_leaves=12,
)


def pieces(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


@given(st.lists(REPLIES, max_size=6), st.integers(1, 40))
def test_frames_are_found_however_the_stream_is_cut(replies: list[bytes], size: int) -> None:
    frames = Frames()
    found = [frame for piece in pieces(b"".join(replies), size) for frame in frames.feed(piece)]
    assert found == replies


@given(st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=5)), st.integers(1, 40))
def test_requests_are_read_however_they_are_cut(requests: list[list[bytes]], size: int) -> None:
    stream = b"".join(
        b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        for words in requests
    )
    frames = Frames()
    found = [frame for piece in pieces(stream, size) for frame in frames.feed(piece)]
    assert [arguments(frame) for frame in found] == requests


def test_resp3_is_refused() -> None:
    with pytest.raises(ValueError, match="RESP3"):
        list(Frames().feed(b"%1\r\n+server\r\n+redis\r\n"))
