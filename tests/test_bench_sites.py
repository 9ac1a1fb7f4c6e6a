"""The sites of the benchmarks: what each remedy does in a race, however busy the machine is."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.servers import Server

sys.path.append(str(Path(__file__).parent.parent))  # bench is in the source tree, in no wheel

pytest.importorskip("django_redis")
pytest.importorskip("flask_session")
pytest.importorskip("litestar")
pytest.importorskip("matplotlib")
pytest.importorskip("psycopg")
pytest.importorskip("waitress")

from redis.asyncio import Redis

from bench import report, results
from bench.contenders.blocking import BLOCKING, BlockingContender
from bench.results import Record
from bench.run import WorkNotDone
from bench.sampler import LAYERS
from bench.scenarios import SCENARIOS, wsgi
from bench.scenarios.races import RACES
from bench.scenarios.sync import Threads
from bench.shapes import MANY_KEYS
from bench.sites import postgres
from bench.sites.browser import Race, lost_updates, open_browser
from bench.sites.kinds import KINDS, Kind
from bench.sites.workers import running_workers
from bench.web.workers import Site

ROOT = Path(__file__).parent.parent
REDIS_ONLY = [kind for kind in KINDS.values() if not kind.needs_postgres]

Measured = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def url(get_server: Callable[[str], Server]) -> str:
    return get_server("valkey9").url


@pytest.fixture(scope="module")
def ports(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, list[int]]]:
    with running_workers(REDIS_ONLY, 2, url, tmp_path_factory.mktemp("sites")) as running:
        yield running


async def _take_turns(ports: list[int]) -> dict[str, float]:
    async with open_browser(ports) as browser:
        return await browser.race(requests=5, tabs=1)


async def _race(ports: list[int], url: str) -> dict[str, float]:
    async with open_browser(ports) as browser, Redis.from_url(url) as redis:
        raced = await browser.race(requests=24, tabs=8)
        return raced | await browser.logout_meanwhile(redis)


@pytest.fixture
def measure(ports: Mapping[str, list[int]], url: str) -> Callable[[str, int], dict[str, float]]:
    def measure(name: str, processes: int) -> dict[str, float]:
        return asyncio.run(_race(ports[name][:processes], url))

    return measure


Measure = Callable[[str, int], dict[str, float]]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", [name for name in KINDS if "asyncsession" in name])
def test_ours_lose_nothing(measure: Measure, name: str, processes: int) -> None:
    measured = measure(name, processes)
    assert measured["lost"] == measured["failed"] == measured["back"] == measured["left"] == 0
    assert measured["waited"] == 0
    assert measured["slow"] == 200


@pytest.mark.parametrize(
    ("name", "back"),
    [
        ("Flask, GET and SET", 1),
        ("Flask-Session", 1),
        ("Flask, one hash for all", 1),
        ("Flask, cached copy", 1),
        ("Flask, deferred write", 1),
        ("Django, django-redis", 0),
        ("Django, django-redis, ASGI", 0),
        ("Django, lock in the view", 0),
        ("Django, cached_db", 0),
        ("Django, db", 0),
        ("Django, ATOMIC_REQUESTS", 0),
    ],
)
def test_what_protects_nothing_loses(measure: Measure, name: str, back: int) -> None:
    measured = measure(name, 2)
    assert measured["lost"] > 0
    assert measured["own keys lost"] > 0
    assert measured["back"] == back


def test_a_field_for_each_key_saves_own_keys_only(measure: Measure) -> None:
    measured = measure("Flask, a field for each key", 2)
    assert measured["lost"] > 0
    assert measured["own keys lost"] == 0
    assert (measured["back"], measured["left"]) == (0, 1)


def test_a_lock_of_the_process_protects_one_process(measure: Measure) -> None:
    alone = measure("Flask, thread lock", 1)
    assert (alone["lost"], alone["back"], alone["waited"]) == (0, 0, 1)
    both = measure("Flask, thread lock", 2)
    assert both["lost"] > 0
    assert both["back"] == 1


@pytest.mark.parametrize("name", ["Flask, redis-py Lock", "Django, atomic, IMMEDIATE"])
def test_a_lock_of_all_processes_makes_wait(measure: Measure, name: str) -> None:
    measured = measure(name, 2)
    assert (measured["lost"], measured["back"], measured["waited"]) == (0, 0, 1)


def test_a_transaction_in_sqlite_fails(measure: Measure) -> None:
    measured = measure("Django, atomic request", 2)
    assert measured["lost"] == 0
    assert measured["failed"] > 0


@pytest.mark.parametrize("name", [kind.name for kind in REDIS_ONLY if kind.races])
def test_one_request_after_the_other_loses_nothing(
    ports: Mapping[str, list[int]], name: str
) -> None:
    measured = asyncio.run(_take_turns(ports[name][:1]))
    assert (measured["lost"], measured["own keys lost"], measured["failed"]) == (0, 0, 0)


@pytest.mark.parametrize(
    "name", [wsgi._kind(of, name) for of, names in wsgi._SHOWN.items() for name in names]
)
def test_pages_count_their_visits(
    ports: Mapping[str, list[int]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # a client of ours, and not wrk, which counts whole seconds
    monkeypatch.chdir(ROOT)
    site = Site(name, ports[name], browsers=2)
    assert all(bool(browser.cookie) != name.endswith("no session") for browser in site.browsers)
    assert site.load(0.01)["lost"] == 0


def test_a_postgres_of_the_machine_is_used_if_there_is_one(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as nowhere:
        nowhere.setattr(postgres, "_binaries", lambda: None)
        with postgres.running_postgres() as none:
            assert none is None
    with postgres.running_postgres() as database:
        if database is None:
            pytest.skip("there is no PostgreSQL")
        kinds = [kind for kind in KINDS.values() if kind.needs_postgres]
        with running_workers(kinds, 2, url, tmp_path, database) as ports:
            measured = {name: asyncio.run(_race(own, url)) for name, own in ports.items()}
    assert {name for name, found in measured.items() if found["lost"]} == {
        "PostgreSQL, db",
        "PostgreSQL, atomic request",
    }
    assert measured["PostgreSQL, SERIALIZABLE"]["failed"] > 0
    assert measured["PostgreSQL, select_for_update"]["failed"] == 0
    assert not any(found["back"] for found in measured.values())


def test_workers_end_with_the_block(url: str, tmp_path: Path) -> None:
    with running_workers([KINDS["Flask, no session"]], 2, url, tmp_path) as running:
        (own,) = running.values()
        for port in own:
            socket.create_connection(("127.0.0.1", port)).close()
    for port in own:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_a_worker_that_cannot_start_is_told(
    url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def create(_place: Any) -> None:
        raise AssertionError

    unknown = Kind("unknown", "", create)
    with pytest.raises(RuntimeError, match="unknown"), running_workers([unknown], 1, url, tmp_path):
        pass
    assert "KeyError: 'unknown'" in capfd.readouterr().err


def test_updates_are_counted() -> None:
    items = ["opening", "a", "b"]
    whole = {"views": 3, "items": items, "own": items}
    assert lost_updates(whole, items) == 0
    assert lost_updates(whole | {"views": 1}, items) == 2
    assert lost_updates(whole | {"items": ["a"], "own": ["b", "c"]}, items) == 4
    assert lost_updates({"views": 9, "items": [], "own": []}, items) == 6, "others count for nobody"


def test_a_race_is_measured() -> None:
    race = Race(2.0, [0.003, 0.001], ["a", "b"], failed=2)
    seen = {"views": 3, "items": ["opening", "a", "b"], "own": ["opening", "a", "b"]}
    assert race.measured([seen, seen | {"own": []}]) == {
        "lost": pytest.approx(1 / 6),  # by one of two workers, three of nine
        "own keys lost": 0.5,
        "failed": 0.5,
        "rate": 1.0,
        "p50": 3.0,
        "p99": 3.0,
    }
    nobody = Race(1.0, [], [], failed=3).measured([seen])
    assert nobody["failed"] == 1
    assert nobody["rate"] == 0


@pytest.mark.parametrize("kind", BLOCKING)
def test_threads_are_checked(url: str, kind: type[BlockingContender]) -> None:
    contender = kind(url)
    try:
        field = Threads(contender, 0.3, sessions=4)
        assert field.cycles(threads=4, seconds=0.01)["rate"] > 0
        field.check()
        session_id = contender.create(MANY_KEYS.build(0.3))
        contender.change(session_id, MANY_KEYS.count)
        assert contender.read(session_id, MANY_KEYS.counted) == 1
        contender.change(field.ids[0], MANY_KEYS.count)
        with pytest.raises(WorkNotDone, match="counted"):
            field.check()
    finally:
        contender.close()


def test_a_thread_that_fails_is_told(url: str) -> None:
    contender = BLOCKING[0](url)
    field = Threads(contender, 0.3, sessions=2)
    field.ids[1] = "no id of ours"
    with pytest.raises(KeyError):
        field.cycles(threads=2, seconds=0.01)
    contender.close()


def test_what_is_made_of_a_page_leaves_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = Record({"cpu": "x", "libraries": {}}, _SETTINGS, "2026-01-01", [])
    monkeypatch.setattr(report, "_DOCS", tmp_path)
    page = tmp_path / "races.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="races"):
        report.own_page("races", record)
    written = (ROOT / "docs" / "races.md").read_text("utf-8")
    page.write_text(written)
    once = report.own_page("races", record)
    assert "Taken 2026-01-01" in once
    begin = written.index("<!-- Made by `python -m bench races`")
    end = written.index("<!-- The end of what is made")
    assert once.startswith(written[:begin])
    assert once.endswith(written[end:])
    page.write_text(once)
    assert report.own_page("races", record) == once


_SETTINGS = {"seconds": 1, "repeats": 1, "quick": False}


def test_the_pages_in_the_docs_are_made_of_the_results() -> None:
    records = results.load(ROOT / "docs" / "benchmarks" / "results.json")
    said = "; `python -m bench --render` makes them anew"
    assert report.page(records) == (ROOT / "docs" / "benchmarks.md").read_text("utf-8"), said
    own = (ROOT / "docs" / "races.md").read_text("utf-8")
    assert report.own_page(RACES.name, records[RACES.name]) == own, said
    assert set(records) == set(SCENARIOS)


def test_remedies_on_the_page_are_those_that_race() -> None:
    assert all(kind.about.endswith(".") for kind in KINDS.values())
    text = (ROOT / "docs" / "races.md").read_text("utf-8")
    for kind in KINDS.values():
        assert (f"| {kind.name} |" in text) == kind.races, kind.name


def test_every_module_of_the_core_is_in_a_layer() -> None:
    listed = subprocess.run(
        [sys.executable, "-c", "import asyncsession, sys; print(*sys.modules)"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split()
    modules = [name for name in listed if name.startswith("asyncsession.")]
    assert "asyncsession.turns" in modules
    assert [
        name
        for name in modules
        if not any(name == layer or name.startswith(f"{layer}.") for layer in LAYERS)
    ] == []
