"""SQLite: the embedded store, one file with its write-ahead log (WAL).

Rules (stock SQLite before 3.51.3 can corrupt a WAL that two connections write or checkpoint at once):

1. One connection writes, under one asyncio lock, in transactions that begin with ``BEGIN IMMEDIATE``.
2. Readers are ``query_only`` and never checkpoint (``wal_autocheckpoint=0``); they close before the writer.
3. ``synchronous=FULL``: a commit that returned survives a power cut.
4. A transaction that failed is rolled back. A connection that cannot even roll back is discarded and replaced, so the
   store recovers by itself once the cause (full disk, I/O error) has gone.
5. What must not stop halfway (a commit, returning a connection) runs in a task of its own, and a cancelled caller
   waits for its end.
6. A commit that failed may have left its frames in the log, whole: this process does not see them, but the next start
   would. So the log is read, and if they are in it, the log is *settled* before anything else is reported or written:
   another transaction is committed over them, and since each frame's checksum covers all frames before it, nothing
   behind counts any more. If that fails too, the outcome is unknown, and nothing is written until the log could be
   settled (docs/decisions/0010).
7. While the database is open one connection stays open: after the last one closes, the next reads the log again.
8. Nothing is committed, and no commit is acknowledged, unless the files are still in their place
   (``sqlite_wal.WalPosition``).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import aiosqlite as driver_dialect
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles

from proxy.core.errors import DataDirLost, OutcomeUnknown, StoreUnavailable
from proxy.store.address import sqlite_path
from proxy.store.dialects import sqlite_wal
from proxy.store.engine import Prepared, give_back, undisturbed
from proxy.store.errors import DriverErrors, mapped
from proxy.store.sql.expressions import DatabaseTime
from proxy.store.sql.planner import Unindexed

if TYPE_CHECKING:
    import aiosqlite

    from proxy.store.dialects.dialect import Columns

BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for a lock that another process holds."""

_WRITER_PRAGMAS: Final = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA temp_store=MEMORY",
    # The file is truncated to this after a checkpoint, so that one large change does not keep the disk for ever.
    f"PRAGMA journal_size_limit={sqlite_wal.JOURNAL_SIZE_LIMIT}",
)
_READER_PRAGMAS: Final = (
    "PRAGMA wal_autocheckpoint=0",
    "PRAGMA query_only=ON",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA cache_size=-16384",
)
#: Execution option of connections whose statements share one snapshot.
_SNAPSHOT: Final = "patgate_snapshot"


_SQL: Final = driver_dialect.dialect()

# Primary result codes, https://www.sqlite.org/rescode.html; the low byte of an extended code.
_CAUSES: Final = {
    5: "another process holds its lock",
    6: "another process holds its lock",
    8: "it can only be read",
    10: "of a disk I/O error",
    11: "it is damaged",
    13: "its disk is full",
    14: "it cannot be opened",
    26: "it is not a database",
}
# The index beside the log could not get its size: the cause is always that the disk is full.
_NO_ROOM_FOR_INDEX: Final = 4874


def _cause(error: Exception) -> str:
    # Errors that the driver raises by itself, such as for a closed connection, have no code.
    code = getattr(error, "sqlite_errorcode", None)
    if code == _NO_ROOM_FOR_INDEX:
        code = 13
    return "" if code is None else _CAUSES.get(code & 0xFF, "")


_ERRORS: Final = DriverErrors(raised=(sqlite3.Error,), cause=_cause)


@compiles(Unindexed, "sqlite")
def _unary_plus(element: Unindexed[Any], compiler: sa.sql.compiler.SQLCompiler, **options: Any) -> str:
    """An index has columns, and this is an expression: SQLite plans without statistics and would guess."""
    return f"+{compiler.process(element.clauses, **options)}"


@compiles(DatabaseTime, "sqlite")
def _clock(_element: DatabaseTime, _compiler: sa.sql.compiler.SQLCompiler, **_options: Any) -> str:
    """The time of this host, to the millisecond; day 2440587.5 of SQLite's calendar is 1970-01-01."""
    return "((julianday('now') - 2440587.5) * 86400.0)"


def _engine(path: Path, *, size: int, pragmas: tuple[str, ...], begin: str, always: bool) -> AsyncEngine:
    engine = create_async_engine(
        sa.URL.create("sqlite+aiosqlite", database=str(path)),
        # None: the driver begins nothing by itself; the listener below does.
        connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT},
        pool_size=size,
        max_overflow=0,
        pool_timeout=BUSY_TIMEOUT,
        hide_parameters=True,
        # Every transaction ends explicitly here; a second rollback would only cost a trip to the connection's thread.
        pool_reset_on_return=None,
    )

    def on_connect(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        try:
            for pragma in pragmas:
                cursor.execute(pragma)
                cursor.fetchall()
        finally:
            cursor.close()

    def on_begin(connection: sa.Connection) -> None:
        if always or connection.get_execution_options().get(_SNAPSHOT):
            connection.exec_driver_sql(begin)

    sa.event.listen(engine.sync_engine, "connect", on_connect)
    sa.event.listen(engine.sync_engine, "begin", on_begin)
    return engine


class SqliteDatabase:
    """One SQLite file: a writer and ``readers`` readers (``dialect.Database``). Nothing is opened before ``open``."""

    shared: Final = False
    wake: Final = None

    def __init__(self, path: Path, *, readers: int = 4) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        # In front of the pool, which is slow and unfair if many callers wait, and times out those who waited long.
        self._slots = asyncio.Semaphore(readers)
        self._writer = _engine(path, size=1, pragmas=_WRITER_PRAGMAS, begin="BEGIN IMMEDIATE", always=True)
        # One more than the slots: the connection that stays open (rule 7).
        self._readers = _engine(path, size=readers + 1, pragmas=_READER_PRAGMAS, begin="BEGIN", always=False)
        self._snapshots = self._readers.execution_options(**{_SNAPSHOT: True})
        self._kept_open: AsyncConnection | None = None
        self._position: sqlite_wal.WalPosition | None = None
        self._settled = True
        self.on_lost: Callable[[], None] = lambda: None
        """Called when the files turn out to be gone, before DataDirLost is raised."""

    @property
    def location(self) -> str:
        """The path of the database file."""
        return str(self._path)

    @property
    def settled(self) -> bool:
        """Whether a restart would read exactly what this process reads."""
        return self._settled

    async def open(self) -> None:
        """Create the file if it does not exist, and test the writer. Raises StoreUnavailable.

        What a dead process left in the log is on disk before it is read (``sqlite_wal.rewrite``).
        """
        sqlite_wal.prepare(self._path)
        self._settled = await asyncio.to_thread(sqlite_wal.rewrite, sqlite_wal.log_of(self._path))
        with mapped(_ERRORS):
            async with self._lock:
                connection = await self._writer.connect()
                try:
                    await connection.begin()
                    await connection.commit()
                finally:
                    await undisturbed(give_back(connection), name="store-give-back")
            self._kept_open = await self._readers.connect()
            await self._kept_open.exec_driver_sql("SELECT count(*) FROM sqlite_master")
            await self._kept_open.rollback()
        self._position = sqlite_wal.WalPosition(self._path)

    async def close(self) -> None:
        """Close the readers, then the writer, which checkpoints. Raises StoreUnavailable."""
        with mapped(_ERRORS):
            if self._kept_open is not None:
                await self._kept_open.close()
                self._kept_open = None
            await self._readers.dispose()
            async with self._lock:
                await self._writer.dispose()
        if self._position is not None:
            self._position.close()
            self._position = None

    def is_in_place(self) -> bool:
        """Whether the files are still the opened ones, under their names; true if that cannot be checked now."""
        try:
            return self._position is None or self._position.is_kept()
        except OSError:
            return True  # a failing disk is not a lost file

    def require_in_place(self) -> None:
        """Raise DataDirLost or StoreUnavailable if nothing may be acknowledged (rule 8)."""
        try:
            kept = self._position is None or self._position.is_kept()
        except OSError as error:
            raise StoreUnavailable(f"the store cannot be used now: {error.strerror}") from error
        if not kept:
            self.on_lost()
            raise DataDirLost("the store's files were removed or replaced while they were in use")

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """The writer inside ``BEGIN IMMEDIATE``. The body commits with ``commit``; otherwise it is rolled back.

        Raises StoreUnavailable and DataDirLost, with nothing written.
        """
        async with self._lock:
            self.require_in_place()
            with mapped(_ERRORS):
                connection = await self._writer.connect()
                try:
                    if not self._settled:
                        await undisturbed(self._settle(connection), name="store-settle")
                    await connection.begin()
                    yield connection
                finally:
                    await undisturbed(give_back(connection), name="store-give-back")

    async def commit(self, connection: AsyncConnection) -> None:
        """Commit the transaction of ``write``; it runs to its end even if the caller is cancelled.

        Raises StoreUnavailable if nothing of it is stored, now or after any crash; OutcomeUnknown if that cannot be
        known (rule 6); DataDirLost if it is stored in files that have lost their place.
        """
        await undisturbed(self._commit(connection), name="store-commit")

    async def _commit(self, connection: AsyncConnection) -> None:
        self.require_in_place()
        try:
            await connection.commit()
        except Exception:
            # The error is raised again. The log must be settled first, because it may hold the whole transaction.
            self._settled = False
            try:
                await connection.rollback()  # does nothing if no transaction is open
                if self._position is not None and not await asyncio.to_thread(self._position.has_tail):
                    self._settled = True
                else:
                    await self._settle(connection)
            except Exception as error:
                raise OutcomeUnknown(
                    "the disk failed while the change was written, so it is unknown whether it is stored"
                ) from error
            raise
        try:
            self.require_in_place()
        except StoreUnavailable as error:
            raise OutcomeUnknown("the change is stored, but its files could not be looked at afterwards") from error

    async def _settle(self, connection: AsyncConnection) -> None:
        """Overwrite what a failed commit left in the log (rule 6)."""
        await connection.begin()
        # The smallest transaction that always writes a page, regardless of the schema; nothing reads this number.
        await connection.exec_driver_sql("PRAGMA user_version=0")
        await connection.commit()
        self._settled = True

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """A reader whose statements all see the state that its first statement saw."""
        with mapped(_ERRORS):
            async with self._slots, self._snapshots.connect() as connection:
                yield connection

    async def rows(self, query: Prepared, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
        """Run one prepared query on a reader; one statement is a snapshot by itself.

        This bypasses SQLAlchemy's cursor, which makes five trips to the connection's thread where one is enough.
        """
        compiled = query.compiled(_SQL)
        async with self._slots:
            with mapped(_ERRORS):
                pooled = await self._readers.raw_connection()
                try:
                    driver = cast("aiosqlite.Connection", pooled.driver_connection)
                    found = await driver.execute_fetchall(compiled.sql, compiled.bind(values))
                finally:
                    pooled.close()
        return [compiled.decode(row) for row in found]


@dataclass(frozen=True, slots=True)
class SqliteDialect:
    """SQLite as ``dialect.Dialect``."""

    @property
    def sql(self) -> sa.Dialect:
        """The SQLAlchemy dialect that compiles queries for it."""
        return _SQL

    def database(self, url: str, *, readers: int, session: str | None = None) -> SqliteDatabase:
        """The database file at ``url``, not opened yet. Raises StoreUnavailable for an address without a file."""
        return SqliteDatabase(sqlite_path(url), readers=readers)

    async def lock_schema(self, connection: AsyncConnection) -> None:
        """Nothing to do: ``BEGIN IMMEDIATE`` holds the lock already."""

    def upsert(
        self,
        table: sa.Table,
        columns: Sequence[str],
        source: sa.Select[Any] | None,
        *,
        keys: Sequence[sa.Column[Any]],
        update: Callable[[Columns], Mapping[str, sa.ColumnElement[Any]]],
    ) -> sa.Insert:
        """``INSERT … ON CONFLICT (keys) DO UPDATE`` (``dialect.Dialect.upsert``)."""
        new = insert(table)
        if source is None:
            new = new.values({name: sa.bindparam(name) for name in columns})
        else:
            new = new.from_select(list(columns), source)
        return new.on_conflict_do_update(index_elements=list(keys), set_=dict(update(new.excluded)))


SQLITE: Final = SqliteDialect()
