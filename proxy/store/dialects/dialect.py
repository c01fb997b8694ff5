"""The contract between the store and one kind of database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import KeyedColumnElement

if TYPE_CHECKING:
    from proxy.store.engine import Prepared

Columns = sa.sql.base.ReadOnlyColumnCollection[str, KeyedColumnElement[Any]]
"""Columns by name."""


class Dialect(Protocol):
    """What only this kind of database can do. One frozen value for each kind."""

    def __hash__(self) -> int: ...

    @property
    def sql(self) -> sa.Dialect:
        """The SQLAlchemy dialect that compiles queries for it."""
        ...

    def database(self, url: str, *, readers: int, session: str | None = None) -> Database:
        """The database at ``url``, not opened yet, with ``readers`` connections that read. Raises StoreUnavailable.

        ``session`` is the address of a database server without the transaction pooler that stands at ``url``.
        """
        ...

    async def lock_schema(self, connection: AsyncConnection) -> None:
        """Wait, in the transaction of this writer, until no other process creates or migrates the store."""
        ...

    def upsert(
        self,
        table: sa.Table,
        columns: Sequence[str],
        source: sa.Select[Any] | None,
        *,
        keys: Sequence[sa.Column[Any]],
        update: Callable[[Columns], Mapping[str, sa.ColumnElement[Any]]],
    ) -> sa.Insert:
        """Insert into ``columns`` what ``source`` selects (``None``: parameters of the columns' names).

        Where a row with the same ``keys`` exists, it is updated instead, to what ``update`` makes of the columns of the
        row that was to be inserted.
        """
        ...


class Database(Protocol):
    """One database: a writer and several readers. ``open`` comes first, ``close`` last."""

    on_lost: Callable[[], None]
    """Called when the store's files turn out to be gone, before DataDirLost is raised."""

    @property
    def shared(self) -> bool:
        """Whether other processes may write the database too, and ``write`` runs several transactions at once."""
        ...

    @property
    def wake(self) -> str | None:
        """The statement that wakes those who listen for changes, once its transaction commits; None if nobody can."""
        ...

    @property
    def location(self) -> str:
        """Where the database is, as errors show it; without a password."""
        ...

    @property
    def settled(self) -> bool:
        """Whether a restart would read exactly what this process reads."""
        ...

    async def open(self) -> None:
        """Create the database if it does not exist, and open it. Raises StoreUnavailable."""
        ...

    async def close(self) -> None:
        """Close every connection. Raises StoreUnavailable."""
        ...

    def is_in_place(self) -> bool:
        """Whether the store's files are still those that were opened, as far as can be seen now."""
        ...

    def require_in_place(self) -> None:
        """Raise DataDirLost or StoreUnavailable where nothing may be acknowledged."""
        ...

    def write(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A writing transaction, the only one unless ``shared``. Ended with ``commit``; otherwise rolled back.

        Raises StoreUnavailable and DataDirLost, with nothing written, and Conflict for a constraint.
        """
        ...

    async def commit(self, connection: AsyncConnection) -> None:
        """Commit the transaction of ``write``; a cancelled caller waits for the end of it.

        Raises StoreUnavailable if nothing of it is stored, now or after any crash; OutcomeUnknown if that cannot be
        known; DataDirLost if it is stored in files that have lost their place.
        """
        ...

    def snapshot(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A reader whose statements all see the state that its first statement saw."""
        ...

    async def rows(self, query: Prepared, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
        """Run one prepared query on a reader; one statement is a snapshot by itself."""
        ...
