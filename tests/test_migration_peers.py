"""Sessions that other libraries have written are read as they meant them, and never unpickled."""

from __future__ import annotations

import base64
import datetime as dt
import json
import logging
import pickle
import re
import traceback
import zlib
from pathlib import Path
from typing import Any

import msgpack
import pytest
from redis.asyncio import ConnectionPool, Redis
from support.backends import Backend
from support.peers import PEERS, SECRET_KEY, Peer
from support.proxy import Fault, FaultProxy

from asyncsession import ConfigurationError, InvalidSessionData, StoreUnavailable
from asyncsession.migration import (
    AiohttpSession,
    DjangoRedis,
    FlaskSession,
    Source,
    Starsessions,
)

READABLE, (PICKLED,) = PEERS[:-1], PEERS[-1:]
URL = "redis://127.0.0.1:1/0"  # for sources that are not asked

DATA: dict[str, Any] = {
    "user_id": 42,
    "name": "Grüße 🎈",
    "cart": [{"sku": "a-1", "count": 2}, {"sku": "b", "count": -1}],
    "rate": 0.25,
    "none": None,
    "flag": True,
    "big": 2**62,
    "empty": {},
    "long": "x" * 3000,
}


@pytest.fixture(params=READABLE, ids=lambda peer: peer.name)
def peer(request: pytest.FixtureRequest) -> Peer:
    chosen: Peer = request.param
    return chosen


async def originals(backend: Backend) -> dict[bytes, bytes]:
    """Return what there is that is not ours."""
    found = {}
    async for key in backend.redis.scan_iter(match=f"{backend.prefix}*", count=1000):
        if b":{" not in key and b":of:" not in key:
            found[key] = await backend.redis.dump(key)
    return found


async def test_a_session_is_read_as_it_was_written(valkey: Backend, peer: Peer) -> None:
    cookie = await peer.write(valkey.url, valkey.prefix, lambda session: session.update(DATA))
    before = await originals(valkey)
    assert len(before) == 1
    source, manager = peer.source(valkey.url, valkey.prefix), valkey.manager()
    peer_id = source.peer_id(cookie)
    assert peer_id is not None
    session = await manager.load_through(source, peer_id)
    assert dict(session) == DATA
    assert not session.is_new
    assert not session.modified
    assert dict(await manager.load(session.id)) == DATA
    assert await originals(valkey) == before, "never written, never deleted"
    assert await valkey.redis.ttl(next(iter(before))) > 3000
    await source.aclose()


async def test_a_change_by_the_peer_in_a_second_request_is_read(
    valkey: Backend, peer: Peer
) -> None:
    cookie = await peer.write(valkey.url, valkey.prefix, lambda session: session.update({"a": 1}))

    def change(session: Any) -> None:
        assert session["a"] == 1
        session["b"] = ["two"]

    again = await peer.write(valkey.url, valkey.prefix, change, cookie.decode())
    assert again in (cookie, b"")
    source = peer.source(valkey.url, valkey.prefix)
    session = await valkey.manager().load_through(source, source.peer_id(cookie))
    assert dict(session) == {"a": 1, "b": ["two"]}
    await source.aclose()


async def test_a_session_that_its_application_emptied_is_none(valkey: Backend, peer: Peer) -> None:
    cookie = await peer.write(valkey.url, valkey.prefix, lambda session: session.update({"a": 1}))

    def empty(session: Any) -> None:
        for key in list(session.keys()):
            del session[key]

    await peer.write(valkey.url, valkey.prefix, empty, cookie.decode())
    source = peer.source(valkey.url, valkey.prefix)
    session = await valkey.manager().load_through(source, source.peer_id(cookie))
    assert session.is_new
    assert not [key for key in await valkey.keys() if b":{" in key]
    await source.aclose()


async def test_flashed_messages_come_along(valkey: Backend) -> None:
    import flask

    (peer,) = [peer for peer in PEERS if peer.name == "flask-msgpack"]
    cookie = await peer.write(valkey.url, valkey.prefix, lambda _: flask.flash("saved", "info"))
    source = peer.source(valkey.url, valkey.prefix)
    session = await valkey.manager().load_through(source, source.peer_id(cookie))
    assert dict(session) == {"_flashes": [["info", "saved"]]}
    await source.aclose()


async def test_who_has_logged_in_to_django_comes_along(valkey: Backend) -> None:
    (peer,) = [peer for peer in PEERS if peer.name == "django"]

    def login(session: Any) -> None:
        session["_auth_user_id"] = "42"
        session.set_expiry(1000)

    cookie = await peer.write(valkey.url, valkey.prefix, login)
    source = peer.source(
        valkey.url, valkey.prefix, principal=lambda data: f"user:{data['_auth_user_id']}"
    )
    manager = valkey.manager()
    session = await manager.load_through(source, source.peer_id(cookie))
    assert dict(session) == {"_auth_user_id": "42"}
    assert session.principal == "user:42"
    assert len(await manager.sessions_of("user:42")) == 1
    await source.aclose()


class Bomb:
    """Unpickling it leaves a trace."""

    went_off = False

    @staticmethod
    def explode() -> dict[str, Any]:
        Bomb.went_off = True
        return {"admin": True}

    def __reduce__(self) -> Any:
        return Bomb.explode, ()


async def test_pickle_is_never_read(valkey: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """CVE-2021-33026, and Flask-Session's fallback to pickle."""
    cookie = await PICKLED.write(valkey.url, valkey.prefix, lambda session: session.update(DATA))
    source, manager = PICKLED.source(valkey.url, valkey.prefix), valkey.manager()
    assert (await manager.load_through(source, source.peer_id(cookie))).is_new
    assert "a session of django-redis" in caplog.text
    assert "not JSON" in caplog.text
    await source.aclose()
    assert pickle.loads(pickle.dumps(Bomb())) == {"admin": True}
    assert Bomb.went_off
    Bomb.went_off = False
    for number, source in enumerate(
        [
            Starsessions(valkey.url, prefix=f"{valkey.prefix}:"),
            FlaskSession(valkey.url, prefix=f"{valkey.prefix}:"),
            FlaskSession(valkey.url, prefix=f"{valkey.prefix}:", serialization_format="json"),
            DjangoRedis(valkey.url, prefix=f"{valkey.prefix}:"),
        ]
    ):
        peer_id = str(number) * 32
        await valkey.redis.set(f"{valkey.prefix}:{peer_id}", pickle.dumps(Bomb()))
        assert (await manager.load_through(source, peer_id)).is_new
        await source.aclose()
    assert not Bomb.went_off


async def test_the_rights_that_the_docs_name_are_enough(real_backend: Backend) -> None:
    """And an error of the server's does not show the id."""
    text = (Path(__file__).parent.parent / "docs" / "migrating.md").read_text("utf-8")
    (rights,) = re.findall(r"the rights `([^`]+)`", text)
    redis, name = real_backend.redis, f"reader-{real_backend.prefix}"
    peer_id, prefix = HEX, f"{real_backend.prefix}:theirs."
    await redis.set(prefix + peer_id, b'{"a": 1}', ex=100)
    pool = redis.connection_pool
    options = {**pool.connection_kwargs, "username": name, "password": "secret"}
    reader = Redis(connection_pool=ConnectionPool(pool.connection_class, **options))
    source, manager = Starsessions(reader, prefix=prefix), real_backend.manager()
    try:
        for allowed in ((f"~{prefix}*", "-@all"), ("~other", "-@all", *rights.split())):
            await redis.execute_command("ACL", "SETUSER", name, "reset", "on", ">secret", *allowed)
            with pytest.raises(StoreUnavailable, match="NOPERM") as caught:
                await manager.load_through(source, peer_id)
            assert peer_id not in "".join(traceback.format_exception(caught.value))
            await source.aclose()
        allowed = (f"~{prefix}*", "-@all", *rights.split())
        await redis.execute_command("ACL", "SETUSER", name, "reset", "on", ">secret", *allowed)
        assert dict(await manager.load_through(source, peer_id)) == {"a": 1}
    finally:
        await source.aclose()
        await redis.execute_command("ACL", "DELUSER", name)


def readers() -> list[Source]:
    return [
        Starsessions(URL),
        AiohttpSession(URL),
        FlaskSession(URL),
        FlaskSession(URL, serialization_format="json"),
        DjangoRedis(URL),
        DjangoRedis(URL, compressor="zlib"),
    ]


@pytest.mark.parametrize("source", readers(), ids=lambda source: type(source).__name__)
@pytest.mark.parametrize(
    "junk",
    [
        b"\x80\x04}.",
        b"junk",
        b"[1]",
        b'"text"',
        b"1",
        b"null",
        b"{",
        b'{"a": 1',
        b"\xff\xfe{\x00}\x00",
        b'{"session": [1], "a": ' + b"[" * 100_000,
        b'{"session": 7}x',
        msgpack.packb([1]),
        msgpack.packb({"a": msgpack.ExtType(2, b"x")}),
        msgpack.packb({"a": 1})[:-1],
        b"\xdd\xff\xff\xff\xff",
        b"\x81\x81\x01\x02\x03",
        zlib.compress(b"[1]"),
        zlib.compress(b'{"a": 1}')[:-1],
        zlib.compress(b"{" + b" " * 2**20 + b"}"),
    ],
    ids=range(19),
)
def test_junk_is_an_error_and_not_a_session(source: Source, junk: bytes) -> None:
    """CVE-2026-39324: no second format is tried, and no empty session returned."""
    with pytest.raises(InvalidSessionData) as caught:
        source.decode(junk, 2**18)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_one_format_is_not_read_as_another() -> None:
    as_json, as_msgpack = json.dumps({"a": 1}).encode(), msgpack.packb({"a": 1})
    assert FlaskSession(URL).decode(as_msgpack, 100) == {"a": 1}
    with pytest.raises(InvalidSessionData):
        FlaskSession(URL).decode(as_json, 100)
    with pytest.raises(InvalidSessionData):
        FlaskSession(URL, serialization_format="json").decode(as_msgpack, 100)
    with pytest.raises(InvalidSessionData):
        DjangoRedis(URL).decode(zlib.compress(as_json), 100)
    with pytest.raises(InvalidSessionData):
        DjangoRedis(URL, compressor="gzip").decode(zlib.compress(as_json), 100)
    assert DjangoRedis(URL, compressor="gzip").decode(as_json, 100) == {"a": 1}, "short ones are"


async def test_messagepack_has_types_that_json_lacks(
    valkey: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    (peer,) = [peer for peer in PEERS if peer.name == "flask-msgpack"]
    moment = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    values = {"at": moment, "raw": b"\x00\xff", "by": {7: "seven"}}
    source, manager = peer.source(valkey.url, valkey.prefix), valkey.manager()
    cookie = await peer.write(valkey.url, valkey.prefix, lambda session: session.update(values))
    assert dict(await manager.load_through(source, source.peer_id(cookie))) == values
    cookie = await peer.write(valkey.url, valkey.prefix, lambda session: session.update({7: "top"}))
    assert (await manager.load_through(source, source.peer_id(cookie))).is_new
    assert "session keys are strings" in caplog.text
    await source.aclose()


HEX, TOKEN = (
    "0123456789abcdef" * 2,
    base64.urlsafe_b64encode(bytes(range(32))).rstrip(b"=").decode(),
)
NOT_IDS = [
    b"",
    b"x",
    HEX.encode() + b"\n",
    b'"' + HEX.encode() + b'"',
    HEX.encode()[:-1] + b"*",
    HEX.encode()[:-1] + "é".encode(),
    HEX.encode()[:-1] + b"\x00",
    b"{abc}:" + HEX.encode(),
    b"../" + HEX.encode(),
    b"a" * 129,
    b"a" * 100_000,
]


@pytest.mark.parametrize("source", readers(), ids=lambda source: type(source).__name__)
def test_only_ids_of_the_peers_form(source: Source) -> None:
    good = TOKEN if isinstance(source, FlaskSession) else HEX
    assert source.peer_id(good.encode()) == good
    for bad in NOT_IDS:
        assert source.peer_id(bad) is None, bad


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (Starsessions, HEX.upper()),
        (Starsessions, HEX + "0"),
        (Starsessions, TOKEN),
        (DjangoRedis, HEX.upper()),
        (DjangoRedis, HEX[1:]),
        (FlaskSession, "a" * 21),
        (AiohttpSession, "a" * 21),
    ],
)
def test_forms_are_those_of_each_peer(kind: Any, bad: str) -> None:
    assert kind(URL).peer_id(bad.encode()) is None


async def test_what_is_no_id_never_reaches_redis(valkey: Backend) -> None:
    assert valkey.port
    async with FaultProxy(valkey.port, lambda _: Fault.PASS) as proxy:
        source, manager = Starsessions(proxy.url), valkey.manager(proxy.url)
        for bad in (*(raw.decode("latin-1") for raw in NOT_IDS), None, 7, HEX.encode()):
            assert (await manager.load_through(source, bad)).is_new  # type: ignore[arg-type]
        assert proxy.requests == 0


async def test_signed_ids_have_to_be_signed(valkey: Backend) -> None:
    (peer,) = [peer for peer in PEERS if peer.name == "flask-signed"]
    cookie = await peer.write(valkey.url, valkey.prefix, lambda session: session.update({"a": 1}))
    peer_id, _, signature = cookie.rpartition(b".")
    source = FlaskSession(URL, secret_key=SECRET_KEY)
    assert source.peer_id(cookie) == peer_id.decode()
    flipped = bytes([signature[0] ^ 1]) + signature[1:]
    for forged in (peer_id, peer_id + b".", peer_id + b"." + flipped, b"." + signature, b"\xff"):
        assert source.peer_id(forged) is None
    other = FlaskSession(URL, secret_key="another")
    assert other.peer_id(cookie) is None
    assert FlaskSession(URL).peer_id(cookie) is None, "the signature is no part of the id"


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Starsessions("http://x"), "redis://"),
        (lambda: Starsessions(URL, prefix=7), "prefix"),  # type: ignore[arg-type]
        (lambda: Starsessions(URL, cookie_name=""), "cookie_name"),
        (lambda: Starsessions(URL, cookie_name="a b"), "cookie_name"),
        (lambda: Starsessions(URL, principal="user:1"), "principal"),  # type: ignore[arg-type]
        (lambda: FlaskSession(URL, serialization_format="pickle"), "serialization"),  # type: ignore[arg-type]
        (lambda: FlaskSession(URL, secret_key=""), "secret_key"),
        (lambda: DjangoRedis(URL, compressor="lz4"), "compressor"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_work_is_said_at_once(make: Any, word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        make()


def test_a_signer_without_itsdangerous_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "itsdangerous", None)
    with pytest.raises(ConfigurationError, match="pip install itsdangerous"):
        FlaskSession(URL, secret_key=SECRET_KEY)
    FlaskSession(URL)


def test_reprs_show_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    source = FlaskSession("redis://user:pass-word@127.0.0.1:1/0", secret_key=SECRET_KEY)
    assert repr(source) == "<FlaskSession on redis>"
    assert not caplog.records
