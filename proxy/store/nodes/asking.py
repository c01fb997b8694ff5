"""Which database answered: what is read or written is used only if it is in the store that this node follows.

A pooled connection may lead to a database that was put in the place of the former one, and that the node has not judged
yet. So everything that feeds an answer, a decision or the shared page reads the history in the same snapshot, and has
it judged. ``Asking`` is called before a question and may refuse it; ``Judge`` then gets what the snapshot saw.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import feed
from proxy.store.dialects.dialect import Database

Judge = Callable[[int, str], None]
"""Called with the number of the newest change in a snapshot, and its history (``feed.Head``).

Raises StoreUnavailable if nothing of it may be used.
"""
Asking = Callable[[], Judge]
"""Called before a question. Raises StoreUnavailable while no store is followed."""


def _accept_all(_number: int, _history: str) -> None:
    return None


def ask_anything() -> Judge:
    """Every database is the right one: nobody else writes it, or nobody judges it."""
    return _accept_all


async def require(connection: AsyncConnection, judge: Judge) -> None:
    """Have the database of this connection judged, as the first statement of its transaction."""
    head = await feed.located_head(connection)
    judge(head.n, head.history)


@asynccontextmanager
async def snapshot(database: Database, asking: Asking) -> AsyncIterator[AsyncConnection]:
    """``Database.snapshot`` of the store that is followed. Raises StoreUnavailable."""
    judge = asking()
    async with database.snapshot() as connection:
        if database.shared:
            await require(connection, judge)
        yield connection
