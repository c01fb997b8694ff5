"""Hints for the query planner: keep it from an index that a query is not meant to use.

The query chooses the index that finds its rows; every other condition is wrapped in ``unindexed``. How that is written
is each dialect's: a database that plans with statistics needs no hint and sees the bare column.
"""

from __future__ import annotations

from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

T = TypeVar("T")


class Unindexed(FunctionElement[T]):
    """A column's value, for which no index is to be used."""

    name = "unindexed"
    inherit_cache = True

    def __init__(self, column: sa.ColumnElement[T]) -> None:
        super().__init__(column)
        self.type = column.type


@compiles(Unindexed)
def _bare(element: Unindexed[Any], compiler: sa.sql.compiler.SQLCompiler, **options: Any) -> str:
    return compiler.process(element.clauses, **options)


def unindexed(column: sa.ColumnElement[T]) -> sa.ColumnElement[T]:
    """The value of ``column``, for which no index is to be used."""
    return Unindexed(column)
