"""Usage of tokens: counts and last use. No decision depends on it, so there is no change row and no epoch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import dialects, tables
from proxy.store.dialects.dialect import Columns, Dialect

_T, _U = tables.tokens, tables.token_usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """``count`` requests with one token, the last of them at ``at`` (unix seconds) from ``ip``."""

    token_id: str
    count: int
    at: float
    ip: str

    def plus(self, other: Use) -> Use:
        """The sum of both."""
        last = other if other.at >= self.at else self
        return replace(last, count=self.count + other.count)


# A token that does not exist (any more) selects nothing.
_NEW = sa.select(
    _T.c.id,
    sa.bindparam("at", type_=sa.Double),
    sa.bindparam("ip", type_=sa.String),
    sa.bindparam("count", type_=sa.BigInteger),
).where(_T.c.id == sa.bindparam("token_id"))


def _added(new: Columns) -> dict[str, sa.ColumnElement[Any]]:
    # Two workers may report uses of the same token, and the earlier use may be reported later.
    later = sa.or_(_U.c.last_used_at.is_(None), new.last_used_at >= _U.c.last_used_at)
    return {
        "use_count": _U.c.use_count + new.use_count,
        "last_used_at": sa.case((later, new.last_used_at), else_=_U.c.last_used_at),
        "last_used_ip": sa.case((later, new.last_used_ip), else_=_U.c.last_used_ip),
    }


@cache
def _add(dialect: Dialect) -> sa.Insert:
    columns = ("token_id", "last_used_at", "last_used_ip", "use_count")
    return dialect.upsert(_U, columns, _NEW, keys=(_U.c.token_id,), update=_added)


async def add(connection: AsyncConnection, uses: Iterable[Use]) -> None:
    """Add these uses to the stored usage of their tokens; uses of unknown tokens are ignored.

    In the order of the ids, so that two writers wait for each other but never each for the other.
    """
    rows = [asdict(use) for use in sorted(uses, key=lambda use: use.token_id)]
    if rows:
        await connection.execute(_add(dialects.of_connection(connection)), rows)
