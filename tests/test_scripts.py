"""The scripts keep to their contract headers, and to what Redis and fakeredis allow."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from asyncsession.blob import FORMAT, HEADER_BYTES
from asyncsession.draft import ROTATION_GRACE
from asyncsession.log import Log
from asyncsession.machine import COMMIT_WINDOW, KEPT_IDS, RETRY_HORIZON
from asyncsession.protocol import Code
from asyncsession.scripts import SCRIPTS
from asyncsession.setup import MAX_BYTES
from asyncsession.size import HEADROOM

NAMES = sorted(SCRIPTS)
KEYWORDS = set(
    re.findall(
        r"\w+",
        "and break do else elseif end false for function if in local nil not or repeat return"
        " then true until while",
    )
)
ALLOWED_GLOBALS = {"redis", "string", "table", "math", "tonumber", "tostring", "type",
                   "KEYS", "ARGV"}  # fmt: skip


def header(name: str) -> str:
    return "\n".join(line for line in SCRIPTS[name].source.splitlines() if line.startswith("--"))


def body(name: str) -> str:
    return re.sub(r"--[^\n]*", "", SCRIPTS[name].source)


def test_every_script_file_is_known() -> None:
    found = {entry.name for entry in files("asyncsession.scripts").iterdir()}
    assert {name for name in found if name.endswith(".lua")} == {
        f"{name}.lua" for name in ["blobs", "known", "numbers", *NAMES]
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("table", ["KEYS", "ARGV"])
def test_the_header_lists_what_the_script_takes(name: str, table: str) -> None:
    used = {int(number) for number in re.findall(rf"{table}\[(\d+)\]", body(name))}
    documented = re.findall(rf"^-- {table}\[(\d+)\]", header(name), re.MULTILINE)
    assert used == set(map(int, documented)) == set(range(1, len(documented) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_the_header_lists_what_the_script_returns(name: str) -> None:
    (codes, numbers) = re.search(
        r"^ *local (OK[A-Z_, ]*) = ([\d, ]+)$", body(name), re.MULTILINE
    ).groups()  # type: ignore[union-attr]
    declared = dict(zip(codes.split(", "), map(int, numbers.split(", ")), strict=True))
    assert declared == {code: Code[code] for code in declared}, "the numbers of protocol.Code"
    returns = header(name).split("-- Returns", 1)[1]
    documented = set(re.findall(r"^--   ([A-Z_]+)\b", returns, re.MULTILINE))
    assert documented == set(declared)
    for code in declared:
        assert len(re.findall(rf"\b{code}\b", body(name))) > 1, f"{code} is never returned"


@pytest.mark.parametrize("name", NAMES)
def test_no_globals_no_shebang_nothing_that_fakeredis_lacks(name: str) -> None:
    code = re.sub(r"'[^']*'", "''", body(name))
    assert not SCRIPTS[name].source.startswith("#!")
    assert not re.search(r"\b(cmsgpack|struct|bit|cjson)\b", code)
    local = set(re.findall(r"\blocal function (\w+)", code))
    for names in re.findall(r"\b(?:local|for) ([\w, ]+?)(?: =|\n| in\b)", code):
        local |= {part.strip() for part in names.split(",")}
    for parameters in re.findall(r"function \w*\(([^)]*)\)", code):
        local |= {part.strip() for part in parameters.split(",")}
    used = set(re.findall(r"(?<![.\w])[A-Za-z_]\w*", code)) - KEYWORDS
    assert used <= local | ALLOWED_GLOBALS


@pytest.mark.parametrize("name", NAMES)
def test_every_key_touched_is_passed_in_keys(name: str) -> None:
    for command, argument in re.findall(
        r"(?:redis\.call|attempt)\('(\w+)'(?:, ([^,)]+))?", body(name)
    ):
        if command != "TIME":
            assert argument.startswith(("KEYS[", "key", "new_key", "index")), (command, argument)


def test_python_and_lua_agree_on_the_header() -> None:
    assert len(FORMAT) == 3
    (sizes,) = re.findall(r"^local HEAD, HEADER, TRAILER = ([\d, ]+)$", body("load"), re.M)
    assert sizes == f"12, {HEADER_BYTES}, 22"
    (longest,) = re.findall(r"^ *local LONGEST = (\d+)$", body("load"), re.M)
    log = MAX_BYTES * HEADROOM + HEADER_BYTES + KEPT_IDS * 22
    assert int(longest) >= log + log // 16
    assert f"local LIVE = 'aS\\{FORMAT[2]}L'" in body("load")
    assert Log.parse(FORMAT + b"L" + b"i" * 8 + bytes(28)).version == 0


@pytest.mark.parametrize(
    ("name", "constant", "expected"),
    [
        ("adopt", "WINDOW", COMMIT_WINDOW * 1000),
        ("commit", "WINDOW", COMMIT_WINDOW * 1000),
        ("commit", "HORIZON", RETRY_HORIZON * 1000),
        ("commit", "KEPT_IDS", KEPT_IDS),
        ("commit", "GRACE", ROTATION_GRACE * 1000),
    ],
)
def test_python_and_lua_agree_on_constants(name: str, constant: str, expected: float) -> None:
    (number,) = re.findall(rf"^ *local {constant} = (\d+)\s*$", body(name), re.M)
    assert int(number) == expected
