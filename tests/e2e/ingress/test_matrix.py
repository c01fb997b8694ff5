"""The matrix of docs/ingress.md has every row of the suite, and says no more than the suite proves."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

from tests.e2e.ingress import matrix
from tests.e2e.ingress.matrix import NOTES, Row
from tests.support.ingress import INGRESSES

HERE = Path(__file__).parent
ABOUT_ONE = ("test_haproxy", "test_kubernetes")
"""Modules about one program, which are no part of the suite."""


def suite() -> Iterator[tuple[str, FunctionType]]:
    """Every test of the suite that runs through an ingress, with its module."""
    for path in sorted(HERE.glob("test_*.py")):
        if path != Path(__file__) and path.stem not in ABOUT_ONE:
            module = importlib.import_module(f"tests.e2e.ingress.{path.stem}")
            for name, test in inspect.getmembers(module, inspect.isfunction):
                if name.startswith("test_"):
                    yield path.stem, test


def fixtures_of_every_ingress() -> set[str]:
    """The names of the fixtures that make a test run once with each ingress."""
    found = set()
    for path in HERE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(decorator, ast.Call)
                and any(each.arg == "params" and ast.unparse(each.value) == "INGRESSES" for each in decorator.keywords)
                for decorator in node.decorator_list
            ):
                found.add(node.name)
    return found


def row_of(test: FunctionType) -> list[Row]:
    return [mark.args[0] for mark in getattr(test, "pytestmark", []) if mark.name == "row"]


def test_every_test_belongs_to_one_row_and_runs_with_every_ingress() -> None:
    every = fixtures_of_every_ingress()
    wrong = [
        f"{module}::{test.__name__}"
        for module, test in suite()
        if len(row_of(test)) != 1 or not every & {*inspect.signature(test).parameters}
    ]
    assert wrong == []


def test_every_row_has_a_test() -> None:
    assert {row for _, test in suite() for row in row_of(test)} == {*Row}


def test_a_note_is_about_an_ingress_of_the_suite() -> None:
    assert {name for _, name in NOTES} <= {*INGRESSES}


def test_the_page_has_the_matrix_of_the_suite() -> None:
    """``make ingress`` writes it from a run; a failed cell is not committed."""
    assert matrix.written() == matrix.table()
