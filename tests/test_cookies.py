"""The session cookie: what is read, what is written, what is refused."""

from __future__ import annotations

from http.cookies import SimpleCookie
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncsession.errors import ConfigurationError
from asyncsession.integrations.cookies import Cookie, cookie_of, sent_values

ID = "abc." + "x" * 32
SENT, OTHER = ID.encode(), b"abc." + b"y" * 32
PLAIN = Cookie(secure=False)


def cookie_headers(*lines: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"cookie", line) for line in lines]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "__Host-session"),
        ({"secure": False}, "session"),
        ({"path": "/app"}, "session"),
        ({"domain": "example.com"}, "session"),
        ({"name": "sid"}, "sid"),
        ({"name": "__Secure-sid", "domain": "example.com", "path": "/app"}, "__Secure-sid"),
    ],
)
def test_name(options: dict[str, Any], name: str) -> None:
    assert Cookie(**options).name == name


@pytest.mark.parametrize(
    "options",
    [
        {"name": "__Host-sid", "secure": False},
        {"name": "__host-sid", "secure": False},
        {"name": "__Host-sid", "domain": "example.com"},
        {"name": "__Host-sid", "path": "/app"},
        {"name": "__Secure-sid", "secure": False},
        {"name": "__Http-sid", "secure": False},
        {"name": "a b"},
        {"name": "a=b"},
        {"name": "a;b"},
        {"name": "a:b"},
        {"name": "sid\n"},
        {"name": "sïd"},
        {"name": "s" * 256},
        {"name": "Path"},
        {"same_site": "none", "secure": False},
        {"partitioned": True, "secure": False},
        {"same_site": "Lax"},
        {"same_site": None},
        {"path": ""},
        {"path": "app"},
        {"path": "/a;b"},
        {"path": "/a\r\nb"},
        {"path": "/\xe9"},
        {"domain": ""},
        {"domain": "example.com:8000"},
        {"domain": "example.com; Secure"},
        {"domain": "exämple.com"},
        {"max_age": 0},
        {"max_age": -1},
        {"max_age": 1.5},
        {"max_age": True},
    ],
)
def test_what_browsers_refuse_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Cookie(**options)


def test_issue() -> None:
    assert Cookie().issue(ID) == f"__Host-session={ID}; HttpOnly; Path=/; SameSite=Lax; Secure"
    assert PLAIN.issue(ID) == f"session={ID}; HttpOnly; Path=/; SameSite=Lax"
    full = Cookie("sid", same_site="none", path="/app", domain="example.com", max_age=3600)
    assert full.issue(ID) == (
        f"sid={ID}; Domain=example.com; HttpOnly; Max-Age=3600; Path=/app; SameSite=None; Secure"
    )


def test_embedded_sites_need_a_partitioned_cookie() -> None:
    embedded = Cookie(same_site="none", partitioned=True)
    attributes = "HttpOnly; Path=/; SameSite=None; Secure; Partitioned"
    assert embedded.issue(ID) == f"__Host-session={ID}; {attributes}"
    assert embedded.clear().startswith("__Host-session=; ")
    assert embedded.clear().endswith("; Secure; Partitioned")


def test_the_keywords_of_integrations() -> None:
    assert cookie_of({}) == Cookie()
    assert cookie_of(
        {
            "cookie_name": "sid",
            "secure": True,
            "same_site": "strict",
            "path": "/app",
            "domain": "example.com",
            "max_age": 3600,
            "partitioned": True,
        }
    ) == Cookie("sid", True, "strict", "/app", "example.com", 3600, True)
    unknown: Any = {"samesite": "lax"}
    with pytest.raises(TypeError, match="samesite"):
        cookie_of(unknown)


def test_cookies_of_other_libraries() -> None:
    headers = cookie_headers(b"a=1; b=2; a=", b"a=\xff=; A=5")
    assert sent_values(headers, "a") == [b"1", b"", b"\xff="]
    assert sent_values(headers, "b") == [b"2"]
    assert sent_values(headers, "c") == []


@pytest.mark.parametrize(
    "cookie",
    [
        Cookie(),
        PLAIN,
        Cookie("sid", same_site="strict", path="/app", domain="example.com", max_age=3600),
    ],
)
def test_clearing_keeps_the_attributes(cookie: Cookie) -> None:
    assert cookie.clear().startswith(f"{cookie.name}=; ")
    [issued] = SimpleCookie(cookie.issue(ID)).values()
    [cleared] = SimpleCookie(cookie.clear()).values()
    assert cleared.key == cookie.name
    assert cleared.value == ""
    assert (cleared["max-age"], cleared["expires"]) == ("0", "Thu, 01 Jan 1970 00:00:00 GMT")
    for attribute in ("path", "domain", "secure", "httponly", "samesite"):
        assert cleared[attribute] == issued[attribute]


@pytest.mark.parametrize(
    "headers",
    [
        cookie_headers(b"session=" + SENT),
        cookie_headers(b"a=b; session=" + SENT + b"; c=d"),
        cookie_headers(b"a=b;session=" + SENT + b" ;; nameless; ="),
        cookie_headers(b"a=b", b"session=" + SENT),
        cookie_headers(b"session2=" + OTHER, b"session=" + SENT),
        cookie_headers(b"Session=" + OTHER + b"; session=" + SENT),
        cookie_headers(b"big=" + b"x" * 10_000 + b"; session=" + SENT),
        cookie_headers(b"\xff\xfe=\x00; session=" + SENT),
        [(b"x-cookie", b"session=" + OTHER), (b"Cookie", b"session=" + SENT)],
    ],
)
def test_read(headers: list[tuple[bytes, bytes]]) -> None:
    assert PLAIN.read(headers) == ID


@pytest.mark.parametrize(
    "headers",
    [
        [],
        cookie_headers(b""),
        cookie_headers(b"session"),
        cookie_headers(b"session="),
        cookie_headers(SENT),
        cookie_headers(b"=" + SENT),
        cookie_headers(b"session =" + SENT),
        cookie_headers(b"\xa0session=" + SENT),
        cookie_headers(b"\x0bsession=" + SENT),
        cookie_headers("\u2000session=".encode() + SENT),
        cookie_headers(b'session="' + SENT + b'"'),
        cookie_headers(b"session=" + SENT + b"\x00"),
        cookie_headers(b"session=" + SENT + b"\n"),
        cookie_headers(b"session=\xff" + SENT[1:]),
        cookie_headers(b"session=" + SENT * 200),
        cookie_headers(b"session=" + SENT + b"," + b"session=" + SENT),
        [(b"set-cookie", b"session=" + SENT)],
    ],
)
def test_read_finds_nothing(headers: list[tuple[bytes, bytes]]) -> None:
    assert PLAIN.read(headers) is None


@pytest.mark.parametrize("other", [SENT, OTHER, b"", b"x"])
@pytest.mark.parametrize("separate", [True, False])
def test_two_cookies_of_the_name_count_as_none(other: bytes, *, separate: bool) -> None:
    lines = [b"session=" + SENT, b"session=" + other]
    headers = cookie_headers(*(lines if separate else [b"; ".join(lines)]))
    assert PLAIN.read(headers) is None
    assert PLAIN.read(headers[::-1]) is None


@given(st.lists(st.tuples(st.sampled_from([b"cookie", b"Cookie"]) | st.binary(), st.binary())))
@example(cookie_headers(b"session=" + SENT, b"session"))
def test_read_never_raises(headers: list[tuple[bytes, bytes]]) -> None:
    assert PLAIN.read(headers) in (None, ID)


noise = st.binary().filter(lambda pair: b";" not in pair and b"session" not in pair)


@given(st.lists(noise), st.lists(noise), st.sampled_from([PLAIN, Cookie(), Cookie("sid")]))
def test_what_was_issued_is_read_among_any_others(
    before: list[bytes], after: list[bytes], cookie: Cookie
) -> None:
    pair = cookie.issue(ID).partition(";")[0].encode()
    others = [other for other in (*before, *after) if b"sid" not in other]
    line = b"; ".join([*others, pair, *others])
    assert cookie.read([(b"cookie", line)]) == ID
