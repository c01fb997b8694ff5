"""Everything that only one database can do stands in its dialect, and the URL's scheme alone chooses the dialect."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

import proxy.store
from proxy.core.errors import StoreUnavailable
from proxy.store import dialects
from proxy.store.address import sqlite_path, store_url
from proxy.store.sql.planner import unindexed
from proxy.store.store import Store

STORE = Path(proxy.store.__file__).parent
# ``copying`` copies from one particular database into another.
OWN_ROOMS = {"copying", "dialects", "migrations"}
NEUTRAL = [path for path in STORE.rglob("*.py") if not OWN_ROOMS & set(path.relative_to(STORE).parts)]
LIBRARIES = ("sqlite3", "aiosqlite", "asyncpg", "sqlalchemy.dialects")
OWN_WORDS = re.compile(r"\bpragma\b|sqlite_|pg_|\browid\b", re.IGNORECASE)


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _texts(tree: ast.AST) -> Iterator[str]:
    """Every string and every keyword of a call, without the texts that are only documentation."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value
        elif isinstance(node, ast.keyword) and node.arg is not None:
            yield node.arg


@pytest.mark.parametrize("path", NEUTRAL, ids=lambda path: path.relative_to(STORE).as_posix())
def test_no_module_outside_the_dialects_uses_one_database(path: Path) -> None:
    tree = ast.parse(path.read_bytes())
    assert [name for name in _imported(tree) if f"{name}.".startswith(tuple(f"{one}." for one in LIBRARIES))] == []
    assert [text for text in _texts(tree) if OWN_WORDS.search(text)] == []


def test_only_the_table_of_schemes_names_a_dialects_module() -> None:
    naming = {
        path.relative_to(STORE).as_posix()
        for path in NEUTRAL
        for name in _imported(ast.parse(path.read_bytes()))
        if re.match(r"proxy\.store\.dialects\.(?!dialect\b)", name)
    }
    assert naming == set()


def test_the_scheme_chooses_the_dialect(tmp_path: Path) -> None:
    dialect = dialects.of_url(store_url("sqlite", tmp_path))
    assert dialect is dialects.of_url("sqlite+aiosqlite:////tmp/x") is dialects.embedded()
    assert dialect.database(store_url("sqlite", tmp_path), readers=1).location == str(tmp_path / "patgate.db")


def test_a_file_is_only_in_an_address_of_sqlite() -> None:
    with pytest.raises(StoreUnavailable, match="must begin with sqlite:///"):
        sqlite_path("postgresql://patgate:hunter2@db/patgate")


@pytest.mark.parametrize("url", ["mysql://root:hunter2@db/x", "hunter2", "", "sqlite:hunter2", "sqlite:///"])
async def test_an_unknown_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(StoreUnavailable, match="must begin with sqlite:///") as refused:
        await Store.open(url, key_fingerprint="f")
    assert "hunter2" not in str(refused.value)


def test_a_planner_hint_is_written_for_the_database_that_needs_it() -> None:
    query = sa.select(unindexed(sa.column("a", sa.Integer)) == sa.literal_column("1"))
    assert "+a = 1" in str(query.compile(dialect=dialects.embedded().sql))
    assert "+" not in str(query.compile(dialect=sa.make_url("postgresql+asyncpg://").get_dialect()()))
