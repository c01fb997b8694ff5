"""Claims on periodic tasks, so that one node of several does each: a name, the node, and until when.

Rules:

1. A claim ends by itself, so a task is left alone no longer than that after its node died. Time is the database's: one
   clock for all nodes.
2. A node that was frozen for longer than its claim may do a task together with its successor. So every task here is one
   that may be done twice; a claim only makes that rare.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import dialects, tables
from proxy.store.dialects.dialect import Dialect
from proxy.store.sql.expressions import DatabaseTime

_T = tables.chores


@cache
def _present(dialect: Dialect) -> sa.Insert:
    """Make sure that the row of a task exists, claimed by nobody at first, and lock it."""
    columns = ("name", "node", "until")
    return dialect.upsert(_T, columns, None, keys=(_T.c.name,), update=lambda _new: {"until": _T.c.until})


async def claim(
    connection: AsyncConnection, names: Sequence[str], node: str, seconds: float, *, alone: bool
) -> frozenset[str]:
    """Claim these tasks for ``node``, or keep its claims, for so many seconds from now.

    Returns those that it has now; the others are another node's. ``alone``: there is no other node, so whoever had a
    claim is gone.
    """
    # In one order, so that two nodes that claim the same tasks do not block each other.
    wanted = sorted(set(names))
    if not wanted:
        return frozenset()
    present = _present(dialects.of_connection(connection))
    await connection.execute(present, [{"name": name, "node": "", "until": 0.0} for name in wanted])
    free = sa.true() if alone else sa.or_(_T.c.node == node, _T.c.until <= DatabaseTime())
    await connection.execute(
        _T.update().where(_T.c.name.in_(wanted), free).values(node=node, until=DatabaseTime() + seconds)
    )
    mine = sa.select(_T.c.name).where(_T.c.name.in_(wanted), _T.c.node == node)
    return frozenset((await connection.execute(mine)).scalars())


async def give_up(connection: AsyncConnection, names: Sequence[str], node: str) -> None:
    """End the claims of ``node`` on these tasks."""
    await connection.execute(_T.delete().where(_T.c.name.in_(sorted(set(names))), _T.c.node == node))


async def forget(connection: AsyncConnection, limit: int) -> int:
    """Delete at most ``limit`` claims that have ended. Returns how many."""
    ended = sa.select(_T.c.name).where(_T.c.until <= DatabaseTime()).limit(limit)
    return (await connection.execute(_T.delete().where(_T.c.name.in_(ended)))).rowcount
