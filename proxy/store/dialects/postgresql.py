"""PostgreSQL: a store that several nodes share (docs/consistency.md).

Rules:

1. A change is READ COMMITTED and locks the change head first, so that it sees what every earlier change has written.
   Snapshots are REPEATABLE READ and READ ONLY.
2. Texts are compared by bytes, as SQLite compares them, regardless of the database's collation: every column of text
   that is created here, and every text that is sent, has the collation ``C``.
3. JSON is stored as the text that was sent (``json``, not ``jsonb``), and floats are sent as 8 bytes. Both come back
   bit for bit, as the hashes of the audit log need it.
4. What must not stop halfway (a commit, returning a connection) runs in a task of its own, and a cancelled caller waits
   for its end. ``postgresql_driver`` says what a commit is worth.
5. A connection that the server has closed is replaced when it is borrowed: after a restart nothing fails for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

import sqlalchemy as sa
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql import asyncpg as driver_dialect
from sqlalchemy.dialects.postgresql import base, insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles

from proxy.core.errors import StoreUnavailable
from proxy.store.dialects import postgresql_dsn, postgresql_pooler
from proxy.store.dialects.postgresql_driver import (
    FAILURES,
    Gone,
    PostgresqlConnection,
    PostgresqlLimits,
    Servers,
    cause,
    is_lost,
    value_problem,
    without_values,
)
from proxy.store.engine import Prepared, give_back, undisturbed
from proxy.store.errors import DriverErrors, mapped
from proxy.store.sql.expressions import DatabaseTime, History

if TYPE_CHECKING:
    from proxy.store.dialects.dialect import Columns

POOL_SECONDS: Final = 5.0
"""How long a caller waits for a free connection."""
WRITERS: Final = 4
"""Connections that write: changes wait for each other at the lock, and the other writes must not wait for them."""
OLDEST: Final = 14
"""The oldest major version of PostgreSQL that is supported."""

_LOCK_KEY: Final = 0x70617467617465
"""The advisory lock of those who open a store: ``patgate`` in ASCII."""
_OPENING: Final = {
    # A node that starts waits for another that migrates a large table, and Alembic takes its time between statements.
    "lock_timeout": "0",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "60s",
}
_ERRORS: Final = DriverErrors(raised=FAILURES, cause=cause, value=value_problem)


class _Float(driver_dialect.AsyncpgFloat):
    """A float as the driver returns it; the type of the result is not asked for, so queries can be prepared."""

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> None:
        return None


class _TypeCompiler(base.PGTypeCompiler):
    def _render_string_type(self, name: str, length: int | None, collation: str | None, *args: Any, **kw: Any) -> str:
        # A column of a table, and not a cast (rule 2).
        if collation is None and isinstance(kw.get("type_expression"), sa.Column):
            collation = "C"
        return super()._render_string_type(name, length, collation, *args, **kw)


class _StatementCompiler(driver_dialect.PGCompiler_asyncpg):
    def render_bind_cast(self, type_: Any, dbapi_type: Any, sqltext: str) -> str:
        text: str = super().render_bind_cast(type_, dbapi_type, sqltext)  # type: ignore[no-untyped-call]
        return f'{text} COLLATE "C"' if dbapi_type._type_affinity is sa.String else text


class PostgresqlSql(driver_dialect.PGDialect_asyncpg):
    """SQLAlchemy's dialect with rules 2 and 3."""

    supports_statement_cache = True
    # The driver returns JSON as text, and SQLAlchemy decodes it where a column says so.
    supports_native_json_deserialization = False
    dialect_injects_custom_json_deserializer = False
    statement_compiler = _StatementCompiler
    type_compiler_cls = _TypeCompiler
    colspecs = {**driver_dialect.PGDialect_asyncpg.colspecs, sa.Float: _Float}  # noqa: RUF012

    def initialize(self, connection: sa.Connection) -> None:
        """Nothing is asked from the server: what SQLAlchemy uses here is the same in every supported version."""
        self.server_version_info = (OLDEST,)
        self.default_schema_name = "public"
        self.default_isolation_level = "READ COMMITTED"
        self._backslash_escapes = False

    def on_connect(self) -> None:
        """Nothing: the driver's own codecs do, and asking for others costs several round trips."""
        return None


@compiles(History, "postgresql")
def _history(_element: History, _compiler: sa.sql.compiler.SQLCompiler, **_options: Any) -> str:
    """The timeline, which a promotion and a restore raise, and the ids of the database and of the table of changes."""
    return (
        "(left(pg_walfile_name(pg_current_wal_lsn()), 8)"
        " || '/' || (SELECT oid FROM pg_database WHERE datname = current_database())"
        " || '/' || 'changes'::regclass::oid)"
    )


@compiles(DatabaseTime, "postgresql")
def _clock(_element: DatabaseTime, _compiler: sa.sql.compiler.SQLCompiler, **_options: Any) -> str:
    return "extract(epoch FROM clock_timestamp())::double precision"


registry.register("postgresql.patgate", __name__, PostgresqlSql.__name__)
_SQL: Final[sa.Dialect] = PostgresqlSql()  # type: ignore[no-untyped-call]


def _engine(servers: Servers, *, size: int, isolation: str) -> AsyncEngine:
    async def connect(*_: object, **__: object) -> PostgresqlConnection:
        return await servers.connect()

    engine = create_async_engine(
        sa.URL.create("postgresql+patgate"),
        async_creator=connect,
        connect_args=(
            {"prepared_statement_cache_size": 0, "prepared_statement_name_func": str} if servers.pooled else {}
        ),
        isolation_level=isolation,
        pool_size=size,
        max_overflow=0,
        pool_timeout=POOL_SECONDS,
        hide_parameters=True,
        # Every transaction ends explicitly here.
        pool_reset_on_return=None,
    )

    def on_checkout(connection: Any, _record: object, _proxy: object) -> None:
        if connection.driver_connection.is_closed():
            raise sa.exc.DisconnectionError("the server has closed it")

    def on_error(context: Any) -> None:
        without_values(context.original_exception)

    sa.event.listen(engine.sync_engine, "checkout", on_checkout)
    sa.event.listen(engine.sync_engine, "handle_error", on_error)
    return engine


class PostgresqlDatabase:
    """One database of PostgreSQL (``dialect.Database``). Nothing is opened before ``open``.

    ``session`` is an address of the same database without a pooler, if there is one before ``url``. ``limits`` is for
    tests.
    """

    shared: Final = True
    settled: Final = True
    wake: Final = "NOTIFY patgate_changes"

    def __init__(
        self,
        url: str,
        *,
        readers: int = 4,
        writers: int = WRITERS,
        session: str | None = None,
        limits: PostgresqlLimits | None = None,
    ) -> None:
        self.limits = limits or PostgresqlLimits()
        self._address = postgresql_dsn.parse(url)
        direct = self._address if session is None else postgresql_dsn.parse(session, "store_session")
        self._servers = Servers(self._address, self.limits, pooled=direct != self._address)
        # A reader that stands still holds no lock that a change waits for, so a busy machine may take its time.
        patient = replace(self.limits, idle=max(self.limits.idle, self.limits.statement))
        self._reading_servers = Servers(self._address, patient, pooled=self._servers.pooled)
        self.session_servers = Servers(direct, self.limits)
        """Connects without a pooler, for what needs a session: renewals, acknowledgements and LISTEN."""
        # In front of the pools, which are slow and unfair if many callers wait.
        self._reading = asyncio.Semaphore(readers)
        self._attempts = readers + 2
        self._writing = asyncio.Semaphore(writers)
        self._writer = _engine(self._servers, size=writers, isolation="READ COMMITTED")
        self._readers = _engine(self._reading_servers, size=readers, isolation="REPEATABLE READ")
        self._snapshots = self._readers.execution_options(postgresql_readonly=True)
        self.on_lost: Callable[[], None] = lambda: None
        """Never called: the server looks after the files."""

    @property
    def location(self) -> str:
        """The hosts and the name of the database; without user and password."""
        return self._address.location

    async def open(self) -> None:
        """Connect and check that the server can hold a store. Raises StoreUnavailable."""
        with mapped(_ERRORS):
            await self._check_session()
            async with self._writing:
                connection = await self._writer.connect()
                try:
                    await self._check(connection)
                finally:
                    await undisturbed(give_back(connection), name="store-give-back")
            if self._servers.pooled:
                await postgresql_pooler.require_same(self._servers, self.session_servers)

    async def _check_session(self) -> None:
        try:
            with mapped(_ERRORS):
                await postgresql_pooler.require_direct(self.session_servers)
        except StoreUnavailable as error:
            if not self._servers.pooled:
                raise
            raise StoreUnavailable(f"{error}: store_session {self.session_servers.address.location}") from error

    async def _check(self, connection: AsyncConnection) -> None:
        settings = ("server_version_num", "server_encoding")
        query = sa.select(*(sa.func.current_setting(sa.literal_column(f"'{name}'")) for name in settings))
        version, encoding = (await connection.execute(query)).one()
        if int(version) < OLDEST * 10_000:
            raise StoreUnavailable(f"the store cannot be used: PostgreSQL {OLDEST} or newer is needed")
        if encoding != "UTF8":
            raise StoreUnavailable("the store cannot be used: its database must have the encoding UTF8")

    async def close(self) -> None:
        """Close every connection. Raises StoreUnavailable."""
        with mapped(_ERRORS):
            await self._readers.dispose()
            await self._writer.dispose()

    def is_in_place(self) -> bool:
        """True: the server looks after its files."""
        return True

    def require_in_place(self) -> None:
        """Nothing to do: the server looks after its files."""

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A READ COMMITTED transaction. The body commits with ``commit``; otherwise it is rolled back.

        Raises StoreUnavailable, with nothing written, and Conflict for a constraint.
        """
        with mapped(_ERRORS):
            async with self._writing:
                connection = await self._writer.connect()
                try:
                    await connection.begin()
                    yield connection
                finally:
                    await undisturbed(give_back(connection), name="store-give-back")

    async def commit(self, connection: AsyncConnection) -> None:
        """Commit the transaction of ``write``; it runs to its end even if the caller is cancelled.

        Raises StoreUnavailable if nothing of it is stored; OutcomeUnknown if that is unknown.
        """
        with mapped(_ERRORS):
            await undisturbed(connection.commit(), name="store-commit")

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """A reader whose statements all see the state that its first statement saw."""
        with mapped(_ERRORS):
            async with self._reading, self._snapshots.connect() as connection:
                yield connection

    async def rows(self, query: Prepared, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
        """Run one prepared query on a reader, in one round trip; one statement is a snapshot by itself."""
        compiled = query.compiled(_SQL)
        arguments = compiled.bind(values)
        with mapped(_ERRORS):
            async with self._reading:
                for _ in range(self._attempts):
                    # After a restart every connection of the pool is gone, and the last to be borrowed is a new one.
                    with suppress(Gone):
                        return [compiled.decode(row) for row in await self._fetch(compiled.sql, arguments)]
                return [compiled.decode(row) for row in await self._fetch(compiled.sql, arguments)]

    async def _fetch(self, sql: str, arguments: Sequence[object]) -> list[Any]:
        borrowed = await self._readers.raw_connection()
        try:
            driver = cast("PostgresqlConnection", borrowed.driver_connection)
            try:
                found: list[Any] = await driver.fetch(sql, *arguments)
                return found
            except TimeoutError:
                driver.terminate()
                raise
            except FAILURES as error:
                without_values(error)
                if is_lost(error, driver):
                    raise Gone from error
                raise
        finally:
            borrowed.close()


@dataclass(frozen=True, slots=True)
class PostgresqlDialect:
    """PostgreSQL as ``dialect.Dialect``. ``limits`` is for tests."""

    limits: PostgresqlLimits = field(default_factory=PostgresqlLimits)

    @property
    def sql(self) -> sa.Dialect:
        """The SQLAlchemy dialect that compiles queries for it."""
        return _SQL

    def database(self, url: str, *, readers: int, session: str | None = None) -> PostgresqlDatabase:
        """The database at ``url``, not opened yet. Raises StoreUnavailable for an address that cannot be used."""
        return PostgresqlDatabase(url, readers=readers, session=session, limits=self.limits)

    async def lock_schema(self, connection: AsyncConnection) -> None:
        """Wait until no other node opens the store: of several that start together, one migrates it."""
        for name, value in _OPENING.items():
            await connection.exec_driver_sql(f"SET LOCAL {name} = '{value}'")
        await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})")

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


POSTGRESQL: Final = PostgresqlDialect()
