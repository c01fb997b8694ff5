"""The history of a store: which database it is in, which of them nodes accept, and the longest lease.

A history is ``system identifier/timeline/oid of the database/oid of the table changes``. It is another one after a
promotion, a restored dump or an upgrade with pg_upgrade. Those that are accepted stand in ``meta``, oldest first.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.errors import StoreUnavailable
from proxy.store import feed, store_info, tables
from proxy.store.nodes.records import Acceptance, AcceptedBy, Remembered, StoreState

ACCEPTANCES: Final = "accepted_histories"
"""The name of the fact in ``meta``. A copy of the store must not have it: the copy is another database."""
KEPT: Final = 50
"""Acceptances that are kept: the oldest ones are forgotten."""

_HEAD: Final = tables.change_head


def decode(text: str | None) -> tuple[Acceptance, ...]:
    """The acceptances in a fact's text. Raises StoreUnavailable if it is not one that this module wrote."""
    try:
        return tuple(
            Acceptance(id=str(one["id"]), history=str(one["history"]), by=AcceptedBy(one["by"]))
            for one in json.loads(text or "[]")
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StoreUnavailable("the store's list of accepted histories cannot be read") from error


def encode(acceptances: Iterable[Acceptance]) -> str:
    """The text of a fact with these acceptances."""
    return json.dumps([{"id": one.id, "history": one.history, "by": one.by.value} for one in acceptances])


async def accept(connection: AsyncConnection, history: str, by: AcceptedBy) -> str:
    """Add an acceptance, inside a change, and return its id; "", and nothing is written, if it changes nothing.

    An operator's acceptance of a history that is listed already is a new one: it is about the content of the store.
    """
    fact = tables.meta.c.value
    text = (await connection.execute(sa.select(fact).where(tables.meta.c.name == ACCEPTANCES))).scalar_one_or_none()
    listed = decode(text)
    if by is not AcceptedBy.OPERATOR and any(one.history == history for one in listed):
        return ""
    new = Acceptance(id=uuid.uuid4().hex, history=history, by=by)
    added = encode([*listed, new][-KEPT:])
    if text is None:
        await connection.execute(tables.meta.insert().values(name=ACCEPTANCES, value=added))
    else:
        await connection.execute(tables.meta.update().where(tables.meta.c.name == ACCEPTANCES).values(value=added))
    return new.id


async def seen(connection: AsyncConnection, remembered: Remembered | None) -> StoreState:
    """What this connection sees of a store, for judging it before it is migrated. Raises StoreUnavailable.

    The connection does not know the system identifier, so this part of the history is taken from what is remembered.
    """
    head = await feed.located_head(connection)
    acceptances = decode(await store_info.read(connection, ACCEPTANCES))
    known = {one.history for one in acceptances} | ({remembered.history} if remembered is not None else set())
    return StoreState(
        renewed=False,
        n=head.n,
        mark=head.mark,
        history=next((one for one in known if one.endswith(f"/{head.history}")), f"/{head.history}"),
        bound=0.0,
        acceptances=acceptances,
        remembered=remembered is None or await _has(connection, head, remembered),
        acknowledged=0,
        database_time=0.0,
    )


async def _has(connection: AsyncConnection, head: feed.Head, remembered: Remembered) -> bool:
    """Whether the remembered change is in the store, as the statement of a renewal decides it."""
    if head.n <= remembered.n:
        return (head.n, head.mark) == (remembered.n, remembered.mark)
    found = await feed.has(connection, remembered.n, remembered.mark)
    if found is not None:
        return found
    first = (await connection.execute(sa.select(sa.func.min(tables.changes.c.epoch)))).scalar_one()
    return first is not None and remembered.n < first


async def raise_bound(connection: AsyncConnection, lease: float) -> bool:
    """Raise the longest lease to ``lease`` seconds, inside a change; false if it is that long already."""
    done = await connection.execute(
        _HEAD.update().where(_HEAD.c.id == 1, _HEAD.c.lease_bound < lease).values(lease_bound=lease)
    )
    return bool(done.rowcount)


async def needs_new_numbers(connection: AsyncConnection, seen: int) -> bool:
    """Whether a change must continue the numbers above ``seen``, which another history of the store has used.

    Not where the store has forgotten all changes up to there: then a cache that has applied ``seen`` drops everything
    anyway, when it asks for the changes since.
    """
    first = (await connection.execute(sa.select(sa.func.min(tables.changes.c.epoch)))).scalar_one()
    return first is None or seen + 1 >= first
