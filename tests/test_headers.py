"""The session id in headers: what is read, what is written, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsession.errors import ConfigurationError
from asyncsession.integrations.cookies import Cookie
from asyncsession.integrations.headers import Header, carrier_of

ID = "abc." + "x" * 32
SENT, OTHER = ID.encode(), b"abc." + b"y" * 32
BARE = Header("X-Session-Id", "X-Session-Id")


def bearer(*values: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", value) for value in values]


@pytest.mark.parametrize(
    "headers",
    [
        bearer(b"Bearer " + SENT),
        bearer(b"bearer " + SENT),
        bearer(b"BEARER  " + SENT),
        [(b"Authorization", b"Bearer " + SENT)],
        [(b"x-session-id", OTHER), *bearer(b"Bearer " + SENT), (b"cookie", b"session=" + OTHER)],
    ],
)
def test_bearer(headers: list[tuple[bytes, bytes]]) -> None:
    assert Header().read(headers) == ID


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearer(b""),
        bearer(SENT),
        bearer(b"Bearer"),
        bearer(b"Bearer "),
        bearer(b"Bearer" + SENT),
        bearer(b"Bearer\t" + SENT),
        bearer(b"Bearer " + SENT + b" "),
        bearer(b"Bearer " + SENT + b"\n"),
        bearer(b"Bearer \xff" + SENT[1:]),
        bearer(b'Bearer "' + SENT + b'"'),
        bearer(b"Bearer " + SENT + b", Bearer " + SENT),
        bearer(b"Basic " + SENT),
        bearer(b"Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.c2lnbmF0dXJl"),
        bearer(b"Bearer " + SENT * 200),
        [(b"session-id", SENT)],
        [(b"cookie", b"session=" + SENT)],
    ],
)
def test_what_is_no_bearer_id(headers: list[tuple[bytes, bytes]]) -> None:
    assert Header().read(headers) is None


@pytest.mark.parametrize("other", [SENT, OTHER, b"", b"Basic dXNlcjpwYXNz"])
def test_two_headers_of_the_name_count_as_none(other: bytes) -> None:
    headers = bearer(b"Bearer " + SENT, other)
    assert Header().read(headers) is None
    assert Header().read(headers[::-1]) is None
    bare = [(b"x-session-id", SENT), (b"X-Session-Id", other)]
    assert BARE.read(bare) is None


def test_a_header_of_the_applications_own_has_the_bare_id() -> None:
    assert BARE.read([(b"x-session-id", SENT)]) == ID
    for value in (b"Bearer " + SENT, b" " + SENT, SENT + b" ", b""):
        assert BARE.read([(b"x-session-id", value)]) is None


@given(st.lists(st.tuples(st.just(b"authorization") | st.binary(), st.binary())))
def test_read_never_raises(headers: list[tuple[bytes, bytes]]) -> None:
    assert Header().read(headers) is None


def test_the_response() -> None:
    header = Header()
    assert (header.header, header.varies) == ("session-id", "Authorization")
    assert (BARE.header, BARE.varies) == ("x-session-id", "X-Session-Id")
    assert header.issue(ID) == ID
    assert header.clear() == ""


@pytest.mark.parametrize(
    "name", ["", "a b", "a:b", "a\r\nb", "s\xefd", "Cookie", "Set-Cookie", "Vary"]
)
def test_what_cannot_be_a_header_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="request header"):
        Header(request=name)
    with pytest.raises(ConfigurationError, match="response header"):
        Header(response=name)


def test_carrier_of() -> None:
    assert carrier_of(None, {}) == Cookie()
    assert carrier_of(None, {"secure": False, "cookie_name": "sid"}) == Cookie("sid", secure=False)
    assert carrier_of(BARE, {}) is BARE
    with pytest.raises(ConfigurationError, match=r"described by path, secure$"):
        carrier_of(Header(), {"secure": True, "path": "/"})
    name: Any = "X-Session-Id"
    with pytest.raises(ConfigurationError, match="a Header"):
        carrier_of(name, {})
