"""The numbered change feed: the one channel by which caches learn which grants to drop.

A row is one committed change; the greatest number is the epoch. Numbers are assigned under the writer's lock, so they
are in the order of the commits, without gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import tables
from proxy.store.engine import Prepared
from proxy.store.records import Changes

_EPOCH = sa.select(sa.func.coalesce(sa.func.max(tables.changes.c.epoch), 0))
EPOCH_QUERY = Prepared(_EPOCH)
_FIRST = sa.select(sa.func.coalesce(sa.func.min(tables.changes.c.epoch), 0))
_SINCE = (
    sa.select(tables.changes.c.touched)
    .where(tables.changes.c.epoch > sa.bindparam("since"))
    .order_by(tables.changes.c.epoch)
    .limit(sa.bindparam("most"))
)

KEPT: Final = 100_000
"""Change rows that pruning keeps: ten times as many as a reader gets listed (``store.CHANGES_LIMIT``)."""


async def epoch(connection: AsyncConnection) -> int:
    """The number of the last committed change; 0 before the first."""
    return int((await connection.execute(_EPOCH)).scalar_one())


async def append(connection: AsyncConnection, number: int, keys: Sequence[str], at: float) -> None:
    """Add the change with this number, the keys it touched and its time (unix seconds)."""
    await connection.execute(tables.changes.insert().values(epoch=number, touched=list(keys), at=at))


async def since(connection: AsyncConnection, known: int, limit: int) -> Changes:
    """The distinct keys touched after epoch ``known``, oldest first, of at most ``limit`` changes, over a snapshot."""
    now = await epoch(connection)
    if known == now:
        return Changes(epoch=now, keys=(), complete=True)
    first = int((await connection.execute(_FIRST)).scalar_one())
    if known > now or now - known > limit or known + 1 < first:
        return Changes(epoch=now, keys=(), complete=False)
    rows = (await connection.execute(_SINCE, {"since": known, "most": limit})).scalars()
    keys = dict.fromkeys(key for row in rows for key in row)
    return Changes(epoch=now, keys=tuple(keys), complete=True)


async def prune(connection: AsyncConnection, limit: int, *, kept: int = KEPT) -> int:
    """Delete the oldest changes, at most ``limit``, down to the newest ``kept``. Returns how many were deleted."""
    first = int((await connection.execute(_FIRST)).scalar_one())
    last = min(first + limit - 1, await epoch(connection) - kept)
    done = await connection.execute(tables.changes.delete().where(tables.changes.c.epoch <= last))
    return done.rowcount
