"""What `SessionMiddleware` cannot do: commit before the response leaves, and answer errors.

Django's `SessionMiddleware` saves outside of all other middleware, and knows one error, for which
it sends a bare 400. `CommitMiddleware` stands directly inside of it and saves first, so that it can
still replace the response. What it leaves to `SessionMiddleware` is the cookie. Where that is to be
left alone, it takes the cookie from the request: to `SessionMiddleware` there was none then, and
there is no session to make one for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from asyncsession.errors import InvalidSessionData, SessionGone
from asyncsession.integrations.answers import answer_to, note
from asyncsession.integrations.django.store import SessionStore
from asyncsession.integrations.exchange import PROMPT, SAFE

__all__ = ["CommitMiddleware"]


class CommitMiddleware:
    """Saves the session before the response leaves, and answers errors of it.

    It belongs directly after `django.contrib.sessions.middleware.SessionMiddleware`.

    The client gets 503 with `Retry-After` while the store is not available, 409 where the session
    was changed by another request in a way that its merge policies refuse, and 403 where a login
    would be one session too many. A session that cannot be read is answered with 500, and the
    cookie is cleared. A session that was ended meanwhile is no error when it is saved for the
    response: that goes out, and clears the cookie if the request was a short one. Where a view
    itself calls `save()` or `cycle_key()`, and lets the error pass, the client gets 409.

    A request with an id that was rotated away a moment ago is anonymous, and its cookie is neither
    replaced nor cleared, since the browser has a newer one by now.

    As with `SessionMiddleware`, nothing is saved for a response of 500 or more.
    """

    sync_capable = True
    async_capable = True

    def __init__(
        self, get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]
    ) -> None:
        self._get_response: Callable[[HttpRequest], Any] = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """Serve one request; a coroutine where the application is asynchronous."""
        if self._is_async:
            return self._serve(request)
        store = _attended(request)
        response = self._get_response(request)
        if store is None:
            return response
        try:
            if _is_due(store, response) and not store.conclude(is_safe=request.method in SAFE):
                _spare(request, store)
        except Exception as error:
            return _answered(request, store, error)
        return _finished(request, store, response)

    async def _serve(self, request: HttpRequest) -> HttpResponseBase:
        store = _attended(request)
        response: HttpResponseBase = await self._get_response(request)
        if store is None:
            return response
        try:
            is_safe = request.method in SAFE
            if _is_due(store, response) and not await store.aconclude(is_safe=is_safe):
                _spare(request, store)
        except Exception as error:
            return _answered(request, store, error)
        return _finished(request, store, response)

    def process_exception(
        self, request: HttpRequest, exception: Exception
    ) -> HttpResponseBase | None:
        """Answer an error of the session's that a view has let pass."""
        store = getattr(request, "session", None)
        return _answer(request, store, exception) if isinstance(store, SessionStore) else None


def _attended(request: HttpRequest) -> SessionStore | None:
    """Return the session of a request that is ours to look after."""
    store = getattr(request, "session", None)
    if not isinstance(store, SessionStore):
        return None
    store.is_attended = True
    return store


def _is_due(store: SessionStore, response: HttpResponseBase) -> bool:
    """Tell whether `SessionMiddleware` would save the session, too."""
    return (
        response.status_code < 500
        and (store.modified or settings.SESSION_SAVE_EVERY_REQUEST)
        and not store.is_empty()
    )


def _finished(
    request: HttpRequest, store: SessionStore, response: HttpResponseBase
) -> HttpResponseBase:
    """Return what leaves in place of a response, nearly always that itself."""
    if store.failure is not None and response.status_code == 500:
        # Another middleware could not load the session, and Django has made a page of that.
        return _answer(request, store, store.failure) or response
    if store.is_stale:
        _leave_cookie(request, store)
    return response


def _answered(request: HttpRequest, store: SessionStore, error: Exception) -> HttpResponseBase:
    """Return what answers an error of the commit.

    Raises:
        The error itself, if it is a mistake of the application's.
    """
    answer = _answer(request, store, error)
    if answer is None:
        raise error
    return answer


def _answer(request: HttpRequest, store: SessionStore, error: Exception) -> HttpResponse | None:
    """Return what to tell the client of an error; None if it is not ours to answer."""
    if isinstance(error, (UpdateError, SessionInterrupted)):
        error = SessionGone(str(error))
    answer = answer_to(error)
    if answer is None:
        return None
    note(error)
    if isinstance(error, InvalidSessionData) and store.is_unreadable:
        store.forget()  # and `SessionMiddleware` clears the cookie
    elif isinstance(error, SessionGone):
        _spare(request, store)
    else:
        store.abandon()
    if store.is_stale:
        _leave_cookie(request, store)
    store.failure = None
    response = HttpResponse(answer.text, status=answer.status)
    for name, value in answer.headers():
        response[name] = value
    return response


def _spare(request: HttpRequest, store: SessionStore) -> None:
    """Have the cookie of a session that was ended cleared, unless it may be another's by now."""
    store.forget()
    if store.age >= PROMPT:
        _leave_cookie(request, store)


def _leave_cookie(request: HttpRequest, store: SessionStore) -> None:
    """Keep `SessionMiddleware` from setting the cookie, and from clearing it."""
    store.forget()
    request.COOKIES.pop(settings.SESSION_COOKIE_NAME, None)
