"""What every database's engine uses: prepared queries, and work that a cancelled caller waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class CompiledQuery:
    """A query compiled for one dialect: its text, the order of its parameters, and how its columns become values."""

    sql: str
    constants: Mapping[str, object]
    order: tuple[str, ...]
    decoders: tuple[Callable[[Any], Any] | None, ...]

    def bind(self, values: Mapping[str, object]) -> tuple[object, ...]:
        """The parameters in the order of the text."""
        return tuple(values[name] if name in values else self.constants[name] for name in self.order)

    def decode(self, row: Iterable[Any]) -> tuple[Any, ...]:
        """A row of the driver as values of the columns' types."""
        return tuple(
            value if decoder is None else decoder(value) for value, decoder in zip(row, self.decoders, strict=True)
        )


class Prepared:
    """A query that is compiled once for each dialect, at its first use."""

    def __init__(self, query: sa.Select[*tuple[Any, ...]]) -> None:
        self._query = query
        self._compiled: dict[str, CompiledQuery] = {}

    def compiled(self, dialect: sa.Dialect) -> CompiledQuery:
        """The query compiled for ``dialect``."""
        found = self._compiled.get(dialect.name)
        if found is None:
            found = self._compiled[dialect.name] = _compile(self._query, dialect)
        return found


def _compile(query: sa.Select[*tuple[Any, ...]], dialect: sa.Dialect) -> CompiledQuery:
    compiled = query.compile(dialect=dialect)
    return CompiledQuery(
        sql=str(compiled),
        constants=dict(compiled.params),
        order=tuple(compiled.positiontup or ()),
        decoders=tuple(
            column.type.dialect_impl(dialect).result_processor(dialect, None) for column in query.selected_columns
        ),
    )


async def undisturbed(work: Coroutine[Any, Any, T], *, name: str) -> T:
    """Await ``work`` to its end even if this task is cancelled meanwhile, and only then raise the cancellation."""
    task = asyncio.create_task(work, name=name)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return task.result()
    failure = None if task.cancelled() else task.exception()
    raise cancelled from failure


async def give_back(connection: AsyncConnection) -> None:
    """Return a writer to its pool, rolled back; a connection that cannot be rolled back is discarded."""
    try:
        if connection.in_transaction() and not connection.invalidated:
            await connection.rollback()
    except (sa.exc.DBAPIError, sa.exc.ResourceClosedError, OSError):
        await connection.invalidate()
    finally:
        await connection.close()
