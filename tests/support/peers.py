"""Sessions as the other libraries themselves write them, each through its own web framework."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from http.cookies import SimpleCookie
from typing import Any, NamedTuple

import aiohttp.web
import aiohttp_session
import flask
import flask_session
import httpx
import redis
import starsessions
import starsessions.stores.redis
from aiohttp.test_utils import TestClient, TestServer
from aiohttp_session.redis_storage import RedisStorage
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpResponse
from django.test import RequestFactory, override_settings
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import support.django  # noqa: F401  has Django set up
from asyncsession import migration

__all__ = ["PEERS", "SECRET_KEY", "Peer", "write_starsessions"]

SECRET_KEY = "a secret key of Flask's"
LIFETIME = 3600  # seconds

Change = Callable[[Any], None]
"""What the application does to the session that the peer hands it."""


class Peer(NamedTuple):
    """One library, set up in one way.

    Attributes:
        write: serve one request that changes the session; return the value of the cookie it sets,
            empty for none. Takes the URL of a server, a name of the test's own, the change, and
            the value of the cookie that the browser sends, if any.
        source: makes our reader of it.
    """

    name: str
    write: Callable[..., Awaitable[bytes]]
    source: Callable[..., migration.Source]


def _cookie(headers: list[str], name: str) -> bytes:
    jar = SimpleCookie("\n".join(headers))
    return jar[name].value.encode() if name in jar else b""


async def write_starsessions(client: Redis, prefix: str, change: Change, sent: str = "") -> bytes:
    """Have starsessions serve a request, on a client of redis-py's."""

    async def view(request: Request) -> Response:
        await starsessions.load_session(request)
        change(request.session)
        return PlainTextResponse("done")

    store = starsessions.stores.redis.RedisStore(connection=client, prefix=prefix)
    session = Middleware(
        starsessions.SessionMiddleware, store=store, lifetime=LIFETIME, cookie_https_only=False
    )
    app = Starlette(routes=[Route("/", view)], middleware=[session])
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as browser:
        response = await browser.get("/", headers={"cookie": f"session={sent}"} if sent else {})
    return _cookie(response.headers.get_list("set-cookie"), "session")


async def _starsessions(url: str, name: str, change: Change, sent: str = "") -> bytes:
    async with Redis.from_url(url) as client:
        return await write_starsessions(client, f"{name}:starsessions.", change, sent)


async def _aiohttp_session(url: str, name: str, change: Change, sent: str = "") -> bytes:
    async def view(request: aiohttp.web.Request) -> aiohttp.web.Response:
        change(await aiohttp_session.get_session(request))
        return aiohttp.web.Response()

    async with Redis.from_url(url) as client:
        app = aiohttp.web.Application()
        aiohttp_session.setup(app, RedisStorage(client, cookie_name=name, max_age=LIFETIME))
        app.router.add_get("/", view)
        async with TestClient(TestServer(app)) as browser:
            headers = {"cookie": f"{name}={sent}"} if sent else {}
            with warnings.catch_warnings():  # aiohttp's, of how aiohttp-session uses it
                warnings.simplefilter("ignore", aiohttp.web.NotAppKeyWarning)
                response = await browser.get("/", headers=headers)
                assert response.status == 200
                return _cookie(response.headers.getall("set-cookie", []), name)


def _flask_session(**config: Any) -> Callable[..., Awaitable[bytes]]:
    def write(url: str, name: str, change: Change, sent: str = "") -> bytes:
        app = flask.Flask("peer")
        with redis.Redis.from_url(url) as client:
            app.config |= {
                "SECRET_KEY": SECRET_KEY,
                "SESSION_TYPE": "redis",
                "SESSION_REDIS": client,
                "SESSION_KEY_PREFIX": f"{name}:flask:",
                **config,
            }
            with warnings.catch_warnings():  # that SESSION_USE_SIGNER goes away some day
                warnings.simplefilter("ignore", DeprecationWarning)
                flask_session.Session(app)

            @app.get("/")
            def view() -> str:
                change(flask.session)
                return "done"

            browser = app.test_client(use_cookies=False)
            response = browser.get("/", headers={"cookie": f"session={sent}"} if sent else {})
            return _cookie(response.headers.getlist("set-cookie"), "session")

    return lambda *args, **kwargs: asyncio.to_thread(write, *args, **kwargs)


def _django_redis(
    compressor: str = "", serializer: str = "json.JSONSerializer"
) -> Callable[..., Awaitable[bytes]]:
    options = {"SERIALIZER": f"django_redis.serializers.{serializer}"}
    if compressor:
        options["COMPRESSOR"] = f"django_redis.compressors.{compressor}"

    def write(url: str, name: str, change: Change, sent: str = "") -> bytes:
        def view(request: Any) -> HttpResponse:
            change(request.session)
            return HttpResponse()

        cache = {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": url,
            "KEY_PREFIX": name,
            "OPTIONS": options,
        }
        with override_settings(
            CACHES={"default": cache}, SESSION_ENGINE="django.contrib.sessions.backends.cache"
        ):
            request = RequestFactory().get("/", headers={"cookie": f"sessionid={sent}"})
            response = SessionMiddleware(view)(request)
            assert isinstance(response, HttpResponse)
            return _cookie([response.cookies.output(header="")], "sessionid")

    return lambda *args, **kwargs: asyncio.to_thread(write, *args, **kwargs)


def _of_flask(**options: Any) -> Callable[..., migration.Source]:
    return lambda url, name, **more: migration.FlaskSession(
        url, prefix=f"{name}:flask:", **options, **more
    )


def _of_django(**options: Any) -> Callable[..., migration.Source]:
    return lambda url, name, **more: migration.DjangoRedis(
        url, prefix=f"{name}:1:django.contrib.sessions.cache", **options, **more
    )


PEERS = [
    Peer(
        "starsessions",
        _starsessions,
        lambda url, name, **more: migration.Starsessions(
            url, prefix=f"{name}:starsessions.", **more
        ),
    ),
    Peer(
        "aiohttp-session",
        _aiohttp_session,
        lambda url, name, **more: migration.AiohttpSession(url, cookie_name=name, **more),
    ),
    Peer("flask-msgpack", _flask_session(), _of_flask()),
    Peer(
        "flask-json",
        _flask_session(SESSION_SERIALIZATION_FORMAT="json"),
        _of_flask(serialization_format="json"),
    ),
    Peer(
        "flask-signed",
        _flask_session(SESSION_USE_SIGNER=True),
        _of_flask(secret_key=SECRET_KEY),
    ),
    Peer("django", _django_redis(), _of_django()),
    Peer("django-zlib", _django_redis("zlib.ZlibCompressor"), _of_django(compressor="zlib")),
    Peer("django-gzip", _django_redis("gzip.GzipCompressor"), _of_django(compressor="gzip")),
    Peer("django-lzma", _django_redis("lzma.LzmaCompressor"), _of_django(compressor="lzma")),
    Peer("django-pickle", _django_redis(serializer="pickle.PickleSerializer"), _of_django()),
]
"""The last of them writes what must not be read."""
