"""Reads the embedded store as SQLite has it, row by row, in threads, so that no event loop waits."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from proxy.core.errors import StoreUnavailable
from proxy.store.copying.columns import COPIED, Misfit, Text, Unfit, fits

BATCH: Final = 5000
"""Rows in memory at a time."""

Row = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowBatch:
    """``rows`` for PostgreSQL, and what is wrong with others; ``read`` is the number of both."""

    rows: list[Row]
    misfits: list[Misfit]
    read: int


class EmbeddedSource:
    """The file of an embedded store that no one else uses, in the newest schema. Errors are StoreUnavailable."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[EmbeddedSource]:
        """Open the file, and close it in the end. Nothing is written to it."""
        with _mapped(), closing(sqlite3.connect(path, check_same_thread=False)) as connection:
            connection.text_factory = Text
            connection.execute("PRAGMA query_only=ON")
            connection.execute("PRAGMA wal_autocheckpoint=0")
            yield cls(connection)

    async def rows(self) -> dict[str, int]:
        """How many rows each table has."""
        return await asyncio.to_thread(self._rows)

    def _rows(self) -> dict[str, int]:
        with _mapped():
            found = {table: self._connection.execute(_count(table)).fetchone()[0] for table in COPIED}
        return {table.name: rows for table, rows in found.items()}

    async def orphans(self, limit: int) -> list[Misfit]:
        """Rows, at most ``limit``, that refer to a row that is missing."""
        return await asyncio.to_thread(self._orphans, limit)

    def _orphans(self, limit: int) -> list[Misfit]:
        found = []
        with _mapped():
            for table, row, parent, _ in self._connection.execute("PRAGMA foreign_key_check").fetchmany(limit):
                problem = f"refers to a row of {parent.decode()} that does not exist"
                found.append(Misfit(table=table.decode(), row=row, column="it", problem=problem))
        return found

    async def batches(self, table: sa.Table) -> AsyncIterator[RowBatch]:
        """All rows of ``table``, in the order of its columns."""
        cursor = await asyncio.to_thread(self._select, table)
        try:
            while batch := await asyncio.to_thread(_batch, cursor, table):
                yield batch
        finally:
            cursor.close()

    def _select(self, table: sa.Table) -> sqlite3.Cursor:
        names = ", ".join(f'"{column.name}"' for column in table.columns)
        with _mapped():
            return self._connection.execute(f'SELECT rowid, {names} FROM "{table.name}" ORDER BY rowid')  # noqa: S608


def _count(table: sa.Table) -> str:
    return f'SELECT count(*) FROM "{table.name}"'  # noqa: S608 - the names are ours


def _batch(cursor: sqlite3.Cursor, table: sa.Table) -> RowBatch | None:
    with _mapped():
        read = cursor.fetchmany(BATCH)
    if not read:
        return None
    checks = fits(table)
    rows: list[Row] = []
    misfits: list[Misfit] = []
    for number, *values in read:
        try:
            # The common case first: no name is looked up.
            rows.append(tuple([check(value) for check, value in zip(checks, values, strict=True)]))
        except Unfit:
            misfits += _misfits(table, number, values)
    return RowBatch(rows=rows, misfits=misfits, read=len(read))


def _misfits(table: sa.Table, number: int, values: list[Any]) -> Iterator[Misfit]:
    for column, check, value in zip(table.columns, fits(table), values, strict=True):
        try:
            check(value)
        except Unfit as error:
            yield Misfit(table=table.name, row=number, column=column.name, problem=str(error))


@contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreUnavailable("the embedded store cannot be read: its file is damaged, locked or gone") from error
