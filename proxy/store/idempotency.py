"""Rows of idempotency keys: what each request with a key has created."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import tables

_T = tables.idempotency


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeRow:
    """What was created under a key: by a request with this hash, at this time (unix seconds)."""

    request_hash: str
    target_id: str
    at: float


class Idempotency:
    """Idempotency keys, over the connection of one transaction. Keys and requests are hashes here."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def get(self, caller: str, key_hash: str) -> MadeRow | None:
        """What this caller created under this key, if anything."""
        query = sa.select(_T.c.request_hash, _T.c.target_id, _T.c.at)
        found = await self._connection.execute(query.where(_T.c.caller == caller, _T.c.key_hash == key_hash))
        row = found.mappings().one_or_none()
        return None if row is None else MadeRow(**row)

    async def add(self, caller: str, key_hash: str, *, request_hash: str, target_id: str, at: float) -> None:
        """Record that this caller created ``target_id`` under this key, at ``at`` (unix seconds)."""
        await self._connection.execute(
            _T.insert().values(caller=caller, key_hash=key_hash, request_hash=request_hash, target_id=target_id, at=at)
        )

    async def forget(self, until: float) -> None:
        """Delete the keys that were used at ``until`` (unix seconds) or before."""
        await self._connection.execute(_T.delete().where(_T.c.at <= until))
