"""The page about errors lists all of them, and says what is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.backends import Backend

from asyncsession import CommitOutcomeUnknown, StoreUnavailable, blob, errors, machine, values
from asyncsession.integrations.answers import answer_to
from asyncsession.setup import MAX_BYTES

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"
TEXT = PAGE.read_text("utf-8")
ROWS = dict(re.findall(r"(?m)^\| `(\w+)` \| (.*) \|$", TEXT))


def test_every_error_has_a_row_and_none_is_made_up() -> None:
    named = {name for name in ROWS if isinstance(getattr(errors, name, None), type)}
    assert named == set(errors.__all__) - {"SessionError"}


@pytest.mark.parametrize("name", sorted(set(errors.__all__) - {"SessionError"}))
def test_outcome_and_answer_are_those_of_the_code(name: str) -> None:
    kind = getattr(errors, name)
    _, outcome, _, answered = ROWS[name].split(" | ")
    assert outcome.startswith("unknown" if kind is CommitOutcomeUnknown else "definite")
    answer = answer_to(kind.__new__(kind))
    assert answered == ("-" if answer is None else str(answer.status))


def test_every_cause_in_the_table_has_a_test() -> None:
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_errors_*"))
    tests += (Path(__file__).parent / "test_sync_pool.py").read_text("utf-8")
    table = TEXT.split("## What a server can answer")[1].split("\n## ")[0]
    for named in re.findall(r"(?m)^\| [^|]* \| (.*?) \|", table)[2:]:
        for word in re.findall(r"`(.*?)`", named):
            assert word in tests, word


def test_numbers() -> None:
    assert f"after {machine.COMMIT_WINDOW:g} seconds load anew" in TEXT
    assert f"more than {blob.MAX_KEYS:,} changed keys" in TEXT
    assert MAX_BYTES == 2**24
    assert "longer than 64 MiB" in TEXT
    assert f"nested {values._MAX_DEPTH} levels deep, and hold {values._MAX_SETS} sets" in TEXT
    assert f"may hold {values._MAX_ALIKE} different" in TEXT


async def test_the_example(valkey: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = re.findall(r"(?ms)^```python\n(.*?)^```", TEXT)
    names: dict[str, Any] = {}
    exec(source.replace("redis://localhost:6379/0", valkey.url), names)
    async with names["manager"] as manager:
        session = await manager.load()
        assert await names["add_to_cart"](session, "apple") == "Saved."
        save, failures = manager.save, [CommitOutcomeUnknown("")]

        async def unsure(session: Any) -> Any:
            if failures:
                raise failures.pop()
            return await save(session)

        monkeypatch.setattr(manager, "save", unsure)
        assert await names["add_to_cart"](session, "pear") == "Saved."
        assert dict(await manager.load(session.id)) == {"cart": ["apple", "pear"]}
        failures.append(StoreUnavailable(""))  # type: ignore[arg-type]
        assert "Nothing was saved" in await names["add_to_cart"](session, "plum")
        await manager.destroy(session.id)
        assert "try again" in await names["add_to_cart"](session, "fig")
