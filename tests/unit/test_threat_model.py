"""Checks docs/threat-model.md: each row names tests that exist, or says that it is not built yet."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
TEXT: Final = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
SECTIONS: Final = {
    int(head.partition(".")[0]): body
    for head, _, body in (part.partition("\n") for part in re.split(r"^## ", TEXT, flags=re.MULTILINE))
    if head[:1].isdigit()
}
ROWS: Final = [
    (number, cells)
    for number, body in SECTIONS.items()
    for line in body.splitlines()
    if line.startswith("| ") and (cells := [cell.strip() for cell in line.strip("|").split("|")])[2] != "tests"
]
NAMED: Final = re.findall(r"`(tests/[\w/.-]+)::(\w+)`", TEXT)


def test_there_are_fourteen_sections_and_each_has_rows() -> None:
    assert list(SECTIONS) == list(range(1, 15))
    assert {number for number, _ in ROWS} == set(SECTIONS)


def test_every_row_has_tests_or_says_not_yet() -> None:
    for _, (attack, answer, tests) in ROWS:
        assert attack
        assert answer, attack
        assert bool(tests) is ("*not yet*" not in answer), attack
        assert re.fullmatch(r"(?:`tests/[\w/.-]+::\w+`(?:, (?=`)|$))*", tests), attack


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_every_test_that_is_named_exists(file: str) -> None:
    functions = {
        node.name
        for node in ast.parse((ROOT / file).read_bytes()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name for other, name in NAMED if other == file} <= functions


def test_every_file_of_tests_of_threats_is_named() -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "threats").glob("test_*.py")}
    assert files <= {file for file, _ in NAMED}
