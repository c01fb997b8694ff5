"""Batches that are stored once, although their writer must repeat one whose outcome it does not know.

Rules:

1. A writer numbers its batches from 1 and has at most one whose outcome it does not know. It repeats that one, with the
   same number and the same rows, before it writes the next.
2. The row of the writer is updated in the batch's transaction, and before its other rows: so an attempt that is still
   being committed elsewhere is waited for, and a batch that is stored already is recognised.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import cache

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import dialects, tables
from proxy.store.dialects.dialect import Dialect

_W = tables.writers


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The batch ``number`` (from 1) of the writer with this id (32 hex digits)."""

    writer: str
    number: int


@dataclass(slots=True)
class Batches:
    """The batches of one writer: a random id, and the number of the batch to write now."""

    writer: str = field(default_factory=lambda: secrets.token_hex(16))
    number: int = 1

    @property
    def current(self) -> Batch:
        """The batch to write, or to repeat, now."""
        return Batch(writer=self.writer, number=self.number)

    def done(self) -> None:
        """The current batch is stored or given up; the next one is another."""
        self.number += 1


@cache
def _present(dialect: Dialect) -> sa.Insert:
    """Make sure that the writer's row exists, and lock it."""
    columns = ("incarnation", "seq", "at")
    return dialect.upsert(_W, columns, None, keys=(_W.c.incarnation,), update=lambda _new: {"seq": _W.c.seq})


async def begin(connection: AsyncConnection, batch: Batch, at: float) -> bool:
    """Begin to store this batch at ``at`` (unix seconds); false if it is stored already.

    The first statement of the batch's transaction that locks anything.
    """
    present = _present(dialects.of_connection(connection))
    await connection.execute(present, {"incarnation": batch.writer, "seq": 0, "at": at})
    newer = _W.update().where(_W.c.incarnation == batch.writer, _W.c.seq < batch.number)
    return (await connection.execute(newer.values(seq=batch.number, at=at))).rowcount > 0


async def forget(connection: AsyncConnection, before: float, limit: int) -> int:
    """Delete at most ``limit`` writers whose last batch is from before this time (unix seconds). Returns how many."""
    old = sa.select(_W.c.incarnation).where(_W.c.at < before).limit(limit)
    return (await connection.execute(_W.delete().where(_W.c.incarnation.in_(old)))).rowcount
