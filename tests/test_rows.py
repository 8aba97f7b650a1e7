"""The index of faults: which tests cover which row of `FAULTS.md`, and that every row listed here has a test.

A test says its rows in its name (`test_row_9_…`, `test_rows_3_and_4_…`) or in its docstring (`Row 9: …`,
`Rows 1 to 5: …`, `Rows 16 and 17.`). `python -m tests.test_rows` prints the index.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROWS = [*map(str, range(1, 42)), "61a", "70", "71", "73", "74", "75"]
_NUMBER = r"\d+a?"
_SAID = re.compile(rf"\b[Rr]ows? ((?:{_NUMBER})(?:(?:, | and | to ){_NUMBER})*)")
_NAMED = re.compile(rf"^test_rows?_((?:{_NUMBER})(?:_(?:and|to)_{_NUMBER})*)")


def rows_of(text: str) -> Iterator[str]:
    """`1, 2 and 5 to 7` → 1, 2, 5, 6, 7."""
    before, word = "", ""
    for each in re.findall(rf"{_NUMBER}|to", text):
        if each != "to" and word == "to":
            yield from map(str, range(int(before) + 1, int(each)))
        if each != "to":
            yield each
            before = each
        word = each


@functools.cache
def index() -> dict[str, list[str]]:
    """Row → tests, as `file::function`."""
    found: dict[str, list[str]] = {}
    for path in sorted(HERE.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
                continue
            named = _NAMED.match(node.name)
            said = _SAID.findall(ast.get_docstring(node) or "")
            texts = [named[1].replace("_", " ")] if named else []
            for row in sorted({row for text in [*texts, *said] for row in rows_of(text)}):
                found.setdefault(row, []).append(f"{path.relative_to(HERE)}::{node.name}")
    return found


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_its_test(row: str) -> None:
    assert index().get(row), f"no test is named after row {row}"


def test_every_row_a_test_names_is_described() -> None:
    described = set(re.findall(r"^\| (\d+a?) \|", (HERE / "FAULTS.md").read_text("utf-8"), re.MULTILINE))
    assert set(ROWS) <= described
    assert set(index()) <= described


def test_how_rows_are_said() -> None:
    assert list(rows_of("1, 2 and 5 to 7")) == ["1", "2", "5", "6", "7"]
    assert list(rows_of("61a and 75")) == ["61a", "75"]


if __name__ == "__main__":
    for number in sorted(index(), key=lambda row: (int(row.rstrip("a")), row)):
        print(f"{number:>4}  " + "\n      ".join(index()[number]))
