"""Checks docs/features.md: it has every requirement, and the commands, API calls and tests that it names exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import click
import pytest

from proxy.cli.main import patgate
from proxy.control.api.operations import OPERATIONS

ROOT: Final = Path(__file__).resolve().parents[2]
TEXT: Final = (ROOT / "docs" / "features.md").read_text("utf-8")
COUNTS: Final = {"A": 6, "B": 7, "C": 10, "D": 10, "E": 7, "F": 9}
LATER: Final = {"A6", "B3", "B7", "F8"}

#: Rows that name no commands and API calls, because they describe requests.
OF_REQUESTS: Final = {"B2", "C10", "D8", "D9", "F5", "F6", "F7", "F9"}

ROWS: Final = {
    cells[0]: cells
    for line in TEXT.splitlines()
    if re.match(r"\| [A-F]\d", line) and (cells := [cell.strip() for cell in line.strip("|").split("|")])
}
NOW: Final = sorted(set(ROWS) - LATER)


def quoted(row: str, column: int) -> list[str]:
    """The texts in backticks in a column: 2 commands, 3 API calls, 4 tests."""
    return re.findall(r"`([^`]+)`", ROWS[row][column])


def test_every_requirement_has_one_row_and_unfinished_ones_say_so() -> None:
    found = re.findall(r"^\| ([A-F]\d+) \|", TEXT, re.MULTILINE)
    assert found == [f"{section}{number}" for section, most in COUNTS.items() for number in range(1, most + 1)]
    for row in ROWS:
        assert len(ROWS[row]) == 5, row
        assert (ROWS[row][2:] == ["*later*", "", ""]) == (row in LATER), row


@pytest.mark.parametrize("row", NOW)
def test_every_row_names_existing_commands_and_api_calls(row: str) -> None:
    commands, calls = quoted(row, 2), quoted(row, 3)
    assert (commands and calls) or row in OF_REQUESTS, row
    for text in commands:
        program, *words = text.split()
        assert program == "patgate"
        command: click.Command = patgate
        while words and not words[0].startswith("--"):
            assert isinstance(command, click.Group), text
            found = command.get_command(click.Context(command), words.pop(0))
            assert found is not None, text
            command = found
        assert not isinstance(command, click.Group) or command.invoke_without_command, text
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert set(words) <= options, text
    for text in calls:
        call, _, query = text.partition("?")
        (operation,) = [one for one in OPERATIONS if f"{one.method.value} {one.path}" == call]
        assert set(filter(None, query.split("&"))) <= set(operation.query.model_fields), text


def test_every_named_test_exists_and_one_of_each_row_has_its_number() -> None:
    named = {row: quoted(row, 4) for row in NOW}
    assert all(named.values())
    files = sorted({test.partition("::")[0] for tests in named.values() for test in tests})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    collected = {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}
    assert {row: [test for test in tests if test not in collected] for row, tests in named.items()} == {
        row: [] for row in NOW
    }, done.stdout[-2000:] + done.stderr[-2000:]
    for row, tests in named.items():
        assert any(f"::test_{row.lower()}_" in test or row in beginning(test) for test in tests), row


def beginning(test: str) -> str:
    """The first lines of a test function, with its docstring."""
    file, _, name = test.partition("::")
    return (ROOT / file).read_text("utf-8").partition(f"def {name}(")[2][:600]
