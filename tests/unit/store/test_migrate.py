"""The migrations and the tables are one schema, and a start without a migration does not load Alembic."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from proxy.store import migrate, tables
from tests.contract.kit import by_itself, opened
from tests.support.dialects import ON_POSTGRESQL
from tests.support.process import HANGS_SECONDS

_START = """
import asyncio, pathlib, sys
from proxy.store.address import store_url
from proxy.store.store import Store

async def main():
    store = await Store.open(store_url("sqlite", pathlib.Path(sys.argv[1])), key_fingerprint="f")
    await store.close()

asyncio.run(main())
print("alembic" in sys.modules, bool({"asyncpg", "sqlalchemy.dialects.postgresql"} & sys.modules.keys()))
"""


def _scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(migrate.SCRIPTS))
    return ScriptDirectory.from_config(config)


def test_every_script_is_a_known_revision_in_order() -> None:
    scripts = [script.revision for script in _scripts().walk_revisions()]
    assert tuple(reversed(scripts)) == migrate.REVISIONS
    assert _scripts().get_heads() == [migrate.REVISIONS[-1]]


@pytest.mark.usefixtures("dialect")
async def test_a_migrated_store_has_exactly_the_tables_in_the_code(tmp_path: Path) -> None:
    async with by_itself(tmp_path) as connection:
        assert await connection.run_sync(_differences) == []
        indexes = await connection.run_sync(_indexes)
    expected = {index.name for table in tables.metadata.tables.values() for index in table.indexes}
    assert {index["name"] for index in indexes if "duplicates_constraint" not in index} == expected


def _differences(connection: sa.Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, tables.metadata))


def _indexes(connection: sa.Connection) -> list[Any]:
    inspector = sa.inspect(connection)
    return [index for name in tables.metadata.tables for index in inspector.get_indexes(name)]


@ON_POSTGRESQL
async def test_partial_indexes_cover_the_same_rows_on_postgresql(tmp_path: Path, dialect: str) -> None:
    async with by_itself(tmp_path) as connection:
        found = await connection.exec_driver_sql(
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
        )
        made: dict[str, str] = {row["indexname"]: row["indexdef"] for row in found.mappings()}
    for table in tables.metadata.tables.values():
        for index in table.indexes:
            assert ("WHERE" in made[str(index.name)]) == ("where" in index.info), index.name
            assert ("UNIQUE" in made[str(index.name)]) == bool(index.unique), index.name


@pytest.mark.parametrize("url", ["sqlite+aiosqlite://", "postgresql+asyncpg://"])
def test_the_tables_and_partial_indexes_can_be_created_on_each_database(url: str) -> None:
    dialect = sa.make_url(url).get_dialect()()
    tables.set_index_conditions(dialect.name)
    for table in tables.metadata.sorted_tables:
        assert "CREATE TABLE" in str(sa.schema.CreateTable(table).compile(dialect=dialect))
        for index in table.indexes:
            text = str(sa.schema.CreateIndex(index).compile(dialect=dialect))
            assert ("WHERE removed_at IS NULL" in text) == str(index.name).endswith("_living")
            assert ("WHERE" in text) == ("where" in index.info)


async def test_migrated_indexes_cover_the_rows_that_the_tables_of_the_code_say(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'patgate.db'}")
    tables.set_index_conditions("sqlite")
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'index'")
        made: dict[str, str] = {name: sql for name, sql in rows}
    for table in tables.metadata.tables.values():
        for index in table.indexes:
            expected = str(sa.schema.CreateIndex(index).compile(dialect=engine.dialect))
            assert _condition(made[str(index.name)]) == _condition(expected), index.name
    engine.dispose()


def _condition(statement: str) -> str:
    """What stands behind WHERE, without the spaces and parentheses in which equal texts differ."""
    return re.sub(r"[\s()]", "", statement.partition("WHERE")[2])


def test_only_a_start_that_migrates_loads_alembic_and_none_loads_the_other_database(tmp_path: Path) -> None:
    def start() -> str:
        done = subprocess.run(
            [sys.executable, "-c", _START, str(tmp_path)],
            check=True,
            capture_output=True,
            text=True,
            timeout=HANGS_SECONDS,
        )
        return done.stdout.strip()

    assert start().startswith("True")
    assert start() == "False False"
