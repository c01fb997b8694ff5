"""Transactions that are no changes: nothing that they write decides about a request.

They do not lock the change head. On a database with several writers two of them can block each other for good; the
database then undoes one, which is tried again here. A change is never tried again: its caller is told, and decides.
Nothing is written to a store that the node refuses, or has not judged yet (``nodes.asking``).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.errors import OutcomeUnknown, StoreUnavailable
from proxy.store.dialects.dialect import Database
from proxy.store.nodes import asking
from proxy.store.nodes.asking import Asking

ATTEMPTS: Final = 5
_PAUSE_SECONDS: Final = 0.02
_UNDONE: Final = frozenset({"40001", "40P01"})
"""SQLSTATE of a serialization failure and of a deadlock: the transaction is undone and may be repeated."""

_Result = TypeVar("_Result")


async def written(
    database: Database,
    work: Callable[[AsyncConnection], Awaitable[_Result]],
    ask: Asking = asking.ask_anything,
) -> _Result:
    """Run ``work`` in a transaction, commit it, and return its result; up to ``ATTEMPTS`` times after a deadlock.

    ``ask`` says whether the database may be written. Raises StoreUnavailable with nothing written; OutcomeUnknown;
    DataDirLost; and what ``work`` raises.
    """
    attempt = 1
    while True:
        judge = ask()
        try:
            async with database.write() as connection:
                if database.shared:
                    await asking.require(connection, judge)
                result = await work(connection)
                await database.commit(connection)
                return result
        except StoreUnavailable as error:
            if isinstance(error, OutcomeUnknown) or attempt >= ATTEMPTS or not _undone(error):
                raise
        await asyncio.sleep(random.uniform(0, _PAUSE_SECONDS * attempt))  # noqa: S311 - a pause is no secret
        attempt += 1


def _undone(error: BaseException) -> bool:
    """Whether the database undid the transaction because it was in the way of another."""
    cause = error.__cause__
    return getattr(getattr(cause, "orig", cause), "sqlstate", "") in _UNDONE
