"""Expressions that each kind of database writes in its own way; its module in ``dialects`` says how."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class History(FunctionElement[str]):
    """Which history of changes the database holds, as text: another one after a promotion or a restore.

    Empty for a database that has no other history than its file.
    """

    name = "history"
    type = sa.Text()
    inherit_cache = True


@compiles(History)
def _no_history(_element: History, _compiler: sa.sql.compiler.SQLCompiler, **_options: Any) -> str:
    return "''"


class DatabaseTime(FunctionElement[float]):
    """The present time by the database's clock, in unix seconds: the same clock for all who use the database.

    For deadlines of work that may be done twice. Nothing that decides about a request depends on it.
    """

    name = "database_time"
    type = sa.Double()
    inherit_cache = True
