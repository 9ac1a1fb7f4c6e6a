"""The sites: each has one way to keep its sessions, as its makers or its tutorials show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.shapes import LIFETIME
from bench.sites.pages import COUNT

__all__ = ["KINDS", "Kind", "Place"]


@dataclass(frozen=True)
class Place:
    """What a site may keep its sessions in.

    Attributes:
        redis: the URL of a server.
        directory: for a file of SQLite's, shared by the workers of the site.
        postgres: settings of a Django database, None where there is no PostgreSQL.
    """

    redis: str
    directory: Path
    postgres: dict[str, Any] | None = None


@dataclass(frozen=True)
class Kind:
    """One site.

    Attributes:
        name: on the page.
        about: what it does, for the page.
        create: makes the application; it imports the framework, of which a process has one.
        interface: of the application.
        needs_postgres: whether it can't be without.
        races: whether it has sessions that can lose something.
    """

    name: str
    about: str
    create: Callable[[Place], Any]
    interface: Literal["wsgi", "asgi"] = "wsgi"
    needs_postgres: bool = False
    races: bool = True


def _flask(interface: str) -> Callable[[Place], Any]:
    def create(place: Place) -> Any:
        from bench.sites import byhand, flask_site

        def set_up(app: Any) -> None:
            app.session_interface = getattr(byhand, interface)(place.redis)

        return flask_site.create(set_up)

    return create


def _flask_session(place: Place) -> Any:
    import flask_session
    from redis import Redis

    from bench.sites import flask_site

    def set_up(app: Any) -> None:
        app.config.update(
            SESSION_TYPE="redis",
            SESSION_REDIS=Redis.from_url(place.redis),
            PERMANENT_SESSION_LIFETIME=LIFETIME,
        )
        flask_session.Session(app)

    return flask_site.create(set_up)


def _ours_on_flask(place: Place) -> Any:
    from asyncsession import SyncSessionManager
    from asyncsession.integrations.flask import SessionInterface
    from bench.sites import flask_site

    manager = SyncSessionManager(place.redis, idle_timeout=LIFETIME, merge=_merge())

    def set_up(app: Any) -> None:
        app.session_interface = SessionInterface(manager)

    return flask_site.create(set_up)


def _ours_on_django(make: str) -> Callable[[Place], Any]:
    def create(place: Place) -> Any:
        from bench.sites import django_site

        engine = "asyncsession.integrations.django"
        return getattr(django_site, make)(
            place.redis,
            SESSION_ENGINE=engine,
            ASYNCSESSION={"URL": place.redis, "MERGE": _merge()},
            after=[f"{engine}.CommitMiddleware"],
        )

    return create


def _merge() -> dict[str, Any]:
    from asyncsession import merge

    return {COUNT: merge.counter}


def _bare_flask(_place: Place) -> Any:
    from bench.sites import flask_site

    return flask_site.create(lambda _app: None, index="bare")


def _django(
    engine: str = "cache",
    *,
    database: Literal["", "sqlite", "postgres"] = "",
    middleware: str = "",
    options: dict[str, Any] | None = None,
    **database_settings: Any,
) -> Callable[[Place], Any]:
    def create(place: Place) -> Any:
        from bench.sites import django_site

        settings: dict[str, Any] = {"SESSION_ENGINE": django_site.ENGINES + engine}
        if database:
            settings["DATABASES"] = {
                "default": _database(place, database, options or {}) | database_settings
            }
        if middleware:
            settings["before"] = [f"{django_site.__name__}.{middleware}"]
        return django_site.create(place.redis, migrate=bool(database), **settings)

    return create


def _database(place: Place, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    if kind == "sqlite":
        name = str(place.directory / "sessions.sqlite3")
        patient = {"timeout": 20, **options}  # as Django's notes on SQLite have it
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": name, "OPTIONS": patient}
    assert place.postgres is not None
    return {**place.postgres, "OPTIONS": options}


def _django_async(place: Place) -> Any:
    from bench.sites import django_site

    return django_site.create_async(place.redis, SESSION_ENGINE=django_site.ENGINES + "cache")


def _bare_django(place: Place) -> Any:
    from bench.sites import django_site

    return django_site.create(
        place.redis, index="bare", SESSION_ENGINE=django_site.ENGINES + "cache"
    )


def _locked(create: Callable[[Place], Any], lock: str) -> Callable[[Place], Any]:
    def locked(place: Place) -> Any:
        from bench.sites import locks

        return getattr(locks, lock)(create(place), place.redis)

    return locked


_SERIALIZABLE = {"isolation_level": 4}  # psycopg.IsolationLevel.SERIALIZABLE

KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "Flask, asyncsession",
            "Our session interface; the counter is merged by `merge.counter`.",
            _ours_on_flask,
        ),
        Kind(
            "Flask, GET and SET",
            "One pickle under a key with a lifetime, by redis-py and by hand.",
            _flask("Plain"),
        ),
        Kind(
            "Flask-Session",
            "`SESSION_TYPE='redis'`; its other options are the defaults.",
            _flask_session,
        ),
        Kind(
            "Flask, one hash for all",
            "HGET and HSET of a pickle, in a field for each session.",
            _flask("FieldPerSession"),
        ),
        Kind(
            "Flask, a field for each key",
            "A hash for each session; HGETALL, then HSET of the keys that changed.",
            _flask("FieldPerKey"),
        ),
        Kind(
            "Flask, cached copy",
            "SET, and a copy in the process that spares the GET.",
            _flask("CachedCopy"),
        ),
        Kind(
            "Flask, deferred write",
            "GET; the SET is left to a queue, as to a Celery task.",
            _flask("DeferredWrite"),
        ),
        Kind(
            "Flask, thread lock",
            "GET and SET inside a `threading.Lock` around the whole request.",
            _locked(_flask("Plain"), "in_thread_lock"),
        ),
        Kind(
            "Flask, redis-py Lock",
            "GET and SET inside redis-py's lock (SET NX) around the whole request.",
            _locked(_flask("Plain"), "in_redis_lock"),
        ),
        Kind(
            "Django, asyncsession",
            "Our session engine and middleware, with threads.",
            _ours_on_django("create"),
        ),
        Kind(
            "Django, asyncsession, ASGI",
            "The same with asynchronous views.",
            _ours_on_django("create_async"),
            "asgi",
        ),
        Kind("Django, django-redis", "Cache sessions on django-redis.", _django()),
        Kind(
            "Django, django-redis, ASGI",
            "The same with asynchronous views.",
            _django_async,
            "asgi",
        ),
        Kind(
            "Django, lock in the view",
            "Cache sessions on django-redis, with a `threading.Lock` in the view.",
            _django(middleware="locked_view"),
        ),
        Kind(
            "Django, cached_db",
            "`cached_db` on django-redis and a SQLite file.",
            _django("cached_db", database="sqlite"),
        ),
        Kind("Django, db", "`db` sessions in a SQLite file.", _django("db", database="sqlite")),
        Kind(
            "Django, ATOMIC_REQUESTS",
            "The same with `ATOMIC_REQUESTS`.",
            _django("db", database="sqlite", ATOMIC_REQUESTS=True),
        ),
        Kind(
            "Django, atomic request",
            "The same with `transaction.atomic` around the whole request.",
            _django("db", database="sqlite", middleware="atomic"),
        ),
        Kind(
            "Django, atomic, IMMEDIATE",
            "The same with `transaction_mode` IMMEDIATE: SQLite lets in one at a time.",
            _django(
                "db",
                database="sqlite",
                middleware="atomic",
                options={"transaction_mode": "IMMEDIATE"},
            ),
        ),
        Kind(
            "PostgreSQL, db",
            "`db` sessions in PostgreSQL.",
            _django("db", database="postgres"),
            needs_postgres=True,
        ),
        Kind(
            "PostgreSQL, atomic request",
            "`transaction.atomic` around the whole request; READ COMMITTED, the default.",
            _django("db", database="postgres", middleware="atomic"),
            needs_postgres=True,
        ),
        Kind(
            "PostgreSQL, SERIALIZABLE",
            "The same with that isolation level, and nobody who tries again.",
            _django("db", database="postgres", middleware="atomic", options=_SERIALIZABLE),
            needs_postgres=True,
        ),
        Kind(
            "PostgreSQL, select_for_update",
            "READ COMMITTED, and the session's row is locked before it is read.",
            _django("db", database="postgres", middleware="for_update"),
            needs_postgres=True,
        ),
        Kind("Flask, no session", "Flask alone.", _bare_flask, races=False),
        Kind(
            "Django, no session",
            "Django alone; its middleware is there.",
            _bare_django,
            races=False,
        ),
    )
}
