"""Every test that docs/security.md names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "security.md"
NAMED = sorted(set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE.read_text("utf-8"))))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_exists(file: str, name: str) -> None:
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in tree.body if isinstance(node, functions)}


def test_every_rule_has_a_test_or_says_whose_it_is() -> None:
    rows = re.findall(r"(?m)^\| (?!rule|what went wrong|---)(.+) \|$", PAGE.read_text("utf-8"))
    assert len(rows) > 40
    for row in rows:
        rule, decision, test = (cell.strip() for cell in row.split(" |", 2))
        assert "`test_" in test or "the application's" in decision, rule
