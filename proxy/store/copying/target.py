"""Writes the copy into PostgreSQL, and reads it back: everything in one transaction (``PostgresqlTarget.writing``).

Secondary indexes are dropped before the rows come and created again after them, which is many times faster than to keep
them up to date. Rows are sent by binary COPY, some thousand at a time: the checks of foreign keys queue in the server's
memory until a statement ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final, cast

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.errors import CopyRefused, OutcomeUnknown
from proxy.store import migrate, store_info, tables
from proxy.store.copying.columns import COPIED
from proxy.store.copying.source import BATCH, Row
from proxy.store.dialects.postgresql import POSTGRESQL, PostgresqlDatabase
from proxy.store.dialects.postgresql_driver import PostgresqlConnection, PostgresqlLimits

_DAY: Final = 86_400.0
_LIMITS: Final = PostgresqlLimits(statement=_DAY, idle=0.0, commit=600.0, network=30.0)
"""No statement of a large copy ends early, and the transaction may stand still while rows are read. 0: no limit."""
_LOCAL: Final = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}

_RELATIONS: Final = """
    SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
"""


class PostgresqlTarget:
    """The database at ``url``. Errors are StoreUnavailable, without a password."""

    def __init__(self, url: str, *, limits: PostgresqlLimits | None = None) -> None:
        durable = limits is None or limits.durable
        self._database = PostgresqlDatabase(url, readers=1, writers=1, limits=replace(_LIMITS, durable=durable))

    @property
    def location(self) -> str:
        """Where it is, without user and password."""
        return self._database.location

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Connect, and disconnect in the end."""
        try:
            await self._database.open()
            yield
        finally:
            await self._database.close()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Copying]:
        """The transaction, which no other copy and no start of a node can meet. Without ``commit`` nothing stays."""
        async with self._database.write() as connection:
            await POSTGRESQL.lock_schema(connection)
            for name, value in _LOCAL.items():
                await connection.exec_driver_sql(f"SET LOCAL {name} = '{value}'")
            raw = await connection.get_raw_connection()
            yield Copying(self._database, connection, cast("PostgresqlConnection", raw.driver_connection))

    async def has(self, store_id: str) -> bool:
        """Whether this store is in it, after a commit whose outcome is unknown."""
        async with self._database.snapshot() as connection:
            if await migrate.version(connection) is None:
                return False
            return await store_info.read(connection, store_info.STORE_ID) == store_id


class Copying:
    """The transaction of a copy."""

    def __init__(self, database: PostgresqlDatabase, connection: AsyncConnection, driver: PostgresqlConnection) -> None:
        self._database = database
        self.connection = connection
        self._driver = driver

    async def require_empty(self, store_id: str, key_fingerprint: str) -> None:
        """Raise CopyRefused unless the database has no tables at all; say so if it has a store already."""
        version = await migrate.version(self.connection)
        if version is not None:
            raise CopyRefused(await self._occupied(version, store_id, key_fingerprint))
        if await self._driver.fetchval("SELECT current_schema()") is None:
            raise CopyRefused("the target has no schema in which this user could create tables")
        if await self._driver.fetchval(_RELATIONS):
            raise CopyRefused("the target is not empty: it has tables or views; a store needs a database of its own")

    async def _occupied(self, version: str, store_id: str, key_fingerprint: str) -> str:
        if version != migrate.REVISIONS[-1]:
            return (
                f"the target has a store of another schema ({version}, this version of patgate has "
                f"{migrate.REVISIONS[-1]}): copy into an empty database"
            )
        if await store_info.read(self.connection, store_info.STORE_ID) == store_id:
            return "the target has this store already: it was copied before"
        if await store_info.read(self.connection, store_info.KEY_FINGERPRINT) != key_fingerprint:
            return "the target has a store of another secret key: copy into an empty database"
        return "the target has another store: copy into an empty database"

    async def create(self) -> None:
        """Create the tables, empty and without secondary indexes."""
        await migrate.run(self.connection)
        for name, value in _LOCAL.items():
            await self._driver.execute(f"SET LOCAL {name} = '{value}'")
        for table in reversed(COPIED):
            await self.connection.execute(table.delete())  # rows that a migration has added
        for index in _indexes():
            await self._driver.execute(f'DROP INDEX "{index.name}"')

    async def add(self, table: sa.Table, rows: Sequence[Row]) -> None:
        """Add rows, whose values are in the order of the table's columns."""
        columns = [column.name for column in table.columns]
        await self._driver.copy_records_to_table(table.name, records=rows, columns=columns, timeout=_DAY)

    async def index(self) -> None:
        """Create the indexes, and the statistics that plans depend on."""
        tables.set_index_conditions(POSTGRESQL.sql.name)
        for index in _indexes():
            await self.connection.execute(sa.schema.CreateIndex(index))
        for table in COPIED:
            await self._driver.execute(f'ANALYZE "{table.name}"', timeout=_DAY)

    async def batches(self, table: sa.Table) -> AsyncIterator[list[Any]]:
        """All rows of ``table`` as stored, in any order."""
        names = ", ".join(f'"{column.name}"' for column in table.columns)
        cursor = await self._driver.cursor(f'SELECT {names} FROM "{table.name}"', timeout=_DAY)  # noqa: S608
        while rows := await cursor.fetch(BATCH, timeout=_DAY):
            yield rows

    async def commit(self, target: PostgresqlTarget, store_id: str) -> None:
        """Commit; if the answer is lost, look whether the store is there."""
        try:
            await self._database.commit(self.connection)
        except OutcomeUnknown:
            if not await target.has(store_id):
                raise


def _indexes() -> list[sa.Index]:
    return [index for table in COPIED for index in sorted(table.indexes, key=lambda index: str(index.name))]
