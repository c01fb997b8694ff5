"""The numbered change feed: the one channel by which caches learn which grants to drop.

A row is one committed change; the greatest number is the epoch. The *head* is one row with the newest number and its
mark. Each change locks the head first, so numbers are in the order of the commits, without gaps, however many processes
write. The mark, 16 random bytes, tells a writer whose commit is in doubt whether its own change is stored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.errors import StoreUnavailable
from proxy.store import tables
from proxy.store.engine import Prepared
from proxy.store.records import Changes
from proxy.store.sql.expressions import History

_C, _H = tables.changes, tables.change_head
_HEAD_ID: Final = 1
MARK_BYTES: Final = 16

_EPOCH = sa.select(sa.func.coalesce(sa.func.max(_C.c.epoch), 0))
EPOCH_QUERY = Prepared(_EPOCH)
_FIRST = sa.select(sa.func.coalesce(sa.func.min(_C.c.epoch), 0))
_HEAD = sa.select(_H.c.n, _H.c.mark).where(_H.c.id == _HEAD_ID)
_LOCK = _HEAD.add_columns(History(), _H.c.lease_bound).with_for_update(of=_H)
_LOCATED = _HEAD.add_columns(History())
_MARKED = sa.select(_C.c.mark).where(_C.c.epoch == sa.bindparam("number"))

# One statement, so one snapshot on every database: the number, the oldest change that is kept,
# the history and the changes.
_NOW = sa.select(
    _EPOCH.scalar_subquery().label("now"), _FIRST.scalar_subquery().label("first"), History().label("history")
).subquery("kept")
_KNOWN, _MOST = sa.bindparam("known", type_=sa.BigInteger), sa.bindparam("most", type_=sa.BigInteger)
_SINCE = (
    sa.select(_NOW.c.now, _NOW.c.first, _NOW.c.history, _C.c.touched)
    .select_from(
        _NOW.outerjoin(
            _C,
            sa.and_(_C.c.epoch > _KNOWN, _C.c.epoch <= _NOW.c.now, _NOW.c.now <= _KNOWN + _MOST),
        )
    )
    .order_by(_C.c.epoch)
)

KEPT: Final = 100_000
"""Change rows that pruning keeps: ten times as many as a reader gets listed (``store.store.CHANGES_LIMIT``)."""


@dataclass(frozen=True, slots=True)
class Head:
    """The number of the newest change, 0 before the first, and its mark.

    ``history`` says which history of changes it belongs to (``expressions.History``), and ``bound`` is the longest
    lease of any node, in seconds; "" and 0 if they were not asked for.
    """

    n: int
    mark: bytes
    history: str = ""
    bound: float = 0.0


def new_mark() -> bytes:
    """A mark that no other change has."""
    return os.urandom(MARK_BYTES)


async def epoch(connection: AsyncConnection) -> int:
    """The number of the last committed change; 0 before the first."""
    return int((await connection.execute(_EPOCH)).scalar_one())


async def head(connection: AsyncConnection) -> Head:
    """The head, without a lock."""
    return await _head(connection, _HEAD)


async def located_head(connection: AsyncConnection) -> Head:
    """The head and its history, without a lock. Raises StoreUnavailable."""
    return await _head(connection, _LOCATED)


async def lock_head(connection: AsyncConnection) -> Head:
    """The head and its history, locked until the transaction ends; waits for the one who has it.

    The first statement of each change. A database with a single writer needs no lock, and only reads. Raises
    StoreUnavailable.
    """
    return await _head(connection, _LOCK)


async def _head(connection: AsyncConnection, query: sa.Select[*tuple[Any, ...]]) -> Head:
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise StoreUnavailable("the store cannot be used: the row of its newest change is missing")
    return Head(int(row[0]), bytes(row[1]), *row[2:])


async def append(connection: AsyncConnection, number: int, mark: bytes, keys: Sequence[str], at: float) -> None:
    """Add the change with this number and mark, the keys it touched and its time (unix seconds), and move the head."""
    await connection.execute(_C.insert().values(epoch=number, mark=mark, touched=list(keys), at=at))
    await connection.execute(_H.update().where(_H.c.id == _HEAD_ID).values(n=number, mark=mark))


async def forget(connection: AsyncConnection) -> None:
    """Delete all changes: whoever asks for those since any number is answered that they are not complete."""
    await connection.execute(_C.delete())


async def has(connection: AsyncConnection, number: int, mark: bytes) -> bool | None:
    """Whether the change with this number has this mark; None if there is no such row, or it has no mark."""
    found = (await connection.execute(_MARKED, {"number": number})).scalar_one_or_none()
    return None if found is None else bytes(found) == mark


async def since(connection: AsyncConnection, known: int, limit: int) -> Changes:
    """The distinct keys touched after epoch ``known``, oldest first, of at most ``limit`` changes, in one statement."""
    rows = (await connection.execute(_SINCE, {"known": known, "most": limit})).all()
    now, first, history = int(rows[0].now), int(rows[0].first), rows[0].history
    if known == now:
        return Changes(epoch=now, keys=(), complete=True, history=history)
    if known > now or now - known > limit or known + 1 < first:
        return Changes(epoch=now, keys=(), complete=False, history=history)
    keys = dict.fromkeys(key for row in rows for key in row.touched or ())
    return Changes(epoch=now, keys=tuple(keys), complete=True, history=history)


async def prune(connection: AsyncConnection, limit: int, *, kept: int = KEPT) -> int:
    """Delete the oldest changes, at most ``limit``, down to the newest ``kept``. Returns how many were deleted."""
    first = int((await connection.execute(_FIRST)).scalar_one())
    last = min(first + limit - 1, await epoch(connection) - kept)
    done = await connection.execute(_C.delete().where(_C.c.epoch <= last))
    return done.rowcount
