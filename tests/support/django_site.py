"""The views of the project, below `/` for threads and below `/a/` for an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from django.contrib import admin, auth, messages
from django.db.transaction import non_atomic_requests
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.urls import path

from support.django import PATIENCE

__all__ = [
    "GATES",
    "Gate",
    "LateMiddleware",
    "LookingMiddleware",
    "alogin",
    "change",
    "login",
    "urlpatterns",
]

_WORK = 0.003  # seconds, during which other requests come in
Change = Callable[[HttpRequest], Any]


class Gate:
    """Lets a slow request wait, after it has read its session, until something else was done."""

    def __init__(self) -> None:
        self.entered, self._open = threading.Event(), threading.Event()

    def wait(self) -> None:
        """Wait, in a view."""
        self.entered.set()
        assert self._open.wait(PATIENCE)

    async def hold(
        self, request: Awaitable[httpx.Response], meanwhile: Callable[[], Awaitable[Any]]
    ) -> httpx.Response:
        """Let `meanwhile` happen while a request waits; return the response to it."""
        task = asyncio.ensure_future(request)
        try:
            assert await asyncio.to_thread(self.entered.wait, PATIENCE)
            await meanwhile()
        finally:
            self._open.set()
        return await task


GATES: dict[str, Gate] = {}
"""By the name in `/slow/NAME`."""
change: dict[str, Change] = {}
"""What `/change/NAME` and the slow view of that name do to a request; coroutine functions for the
views of an event loop."""


def look(request: HttpRequest) -> HttpResponse:
    return JsonResponse(dict(request.session.items()))


async def alook(request: HttpRequest) -> HttpResponse:
    return JsonResponse(dict(await request.session.aitems()))


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


async def aplain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


def visit(request: HttpRequest, item: str) -> HttpResponse:
    """Do what each of many parallel requests does: count, fill the cart, set a key of its own."""
    session = request.session
    session["views"] = session.get("views", 0) + 1
    session.setdefault("cart", []).append(item)
    session[f"item:{item}"] = True
    time.sleep(_WORK)
    return HttpResponse()


async def avisit(request: HttpRequest, item: str) -> HttpResponse:
    session = request.session
    await session.aset("views", await session.aget("views", 0) + 1)
    (await session.asetdefault("cart", [])).append(item)
    await session.aset(f"item:{item}", True)
    await asyncio.sleep(_WORK)
    return HttpResponse()


def do(request: HttpRequest, name: str) -> HttpResponse:
    answer = change[name](request)
    return answer if isinstance(answer, HttpResponse) else HttpResponse("done")


async def ado(request: HttpRequest, name: str) -> HttpResponse:
    answer = await change[name](request)
    return answer if isinstance(answer, HttpResponse) else HttpResponse("done")


def slow(request: HttpRequest, name: str) -> HttpResponse:
    dict(request.session.items())
    GATES[name].wait()
    change[name](request)
    return HttpResponse("slow")


async def aslow(request: HttpRequest, name: str) -> HttpResponse:
    dict(await request.session.aitems())
    await asyncio.to_thread(GATES[name].wait)
    await change[name](request)
    return HttpResponse("slow")


def login(request: HttpRequest, name: str) -> HttpResponse:
    user = auth.authenticate(request, username=name, password=request.POST["password"])
    assert user is not None
    auth.login(request, user)
    return HttpResponseRedirect("/who")


async def alogin(request: HttpRequest, name: str) -> HttpResponse:
    user = await auth.aauthenticate(request, username=name, password=request.POST["password"])
    assert user is not None
    await auth.alogin(request, user)
    return HttpResponseRedirect("/a/who")


def logout(request: HttpRequest) -> HttpResponse:
    auth.logout(request)
    return HttpResponse("bye")


async def alogout(request: HttpRequest) -> HttpResponse:
    await auth.alogout(request)
    return HttpResponse("bye")


def who(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username())


async def awho(request: HttpRequest) -> HttpResponse:
    return HttpResponse((await request.auser()).get_username())


def tell(request: HttpRequest, text: str) -> HttpResponse:
    messages.info(request, text)
    time.sleep(_WORK)
    return HttpResponse()


def told(request: HttpRequest) -> HttpResponse:
    return JsonResponse([str(message) for message in messages.get_messages(request)], safe=False)


_VIEWS: list[tuple[str, Any, Any]] = [
    ("look", look, alook),
    ("plain", plain, aplain),
    ("visit/<item>", visit, avisit),
    ("do/<name>", do, ado),
    ("slow/<name>", slow, aslow),
    ("login/<name>", login, alogin),
    ("logout", logout, alogout),
    ("who", who, awho),
]
urlpatterns = [
    path("admin/", admin.site.urls),
    path("tell/<text>", tell),
    path("told", told),
    *(path(route, view) for route, view, _ in _VIEWS),
    # A database transaction cannot span an await, so Django refuses ATOMIC_REQUESTS for these.
    *(path(f"a/{route}", non_atomic_requests(view)) for route, _, view in _VIEWS),
]


class LookingMiddleware:
    """A middleware that looks into the session, outside of any view."""

    def __init__(self, get_response: Any) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        request.session.get("a")
        return self._get_response(request)


class LateMiddleware:
    """A middleware that changes the session when the response is on its way."""

    def __init__(self, get_response: Any) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        response = self._get_response(request)
        request.session["late"] = True
        return response
