"""Rows of organisations."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import tables
from proxy.store.records import Cursor, OrgRow
from proxy.store.sql.counting import count_most

_T = tables.orgs


def _in_order(query: sa.Select[Any], after: Cursor | None, ids: Collection[str] | None) -> sa.Select[Any]:
    """These columns of organisations in the order of their creation."""
    query = query.order_by(_T.c.created_at, _T.c.id)
    if ids is not None:
        query = query.where(_T.c.id.in_(ids))
    if after is not None:
        query = query.where(sa.tuple_(_T.c.created_at, _T.c.id) > sa.tuple_(after.created_at, after.id))
    return query


class OrgsTable:
    """Organisations, over the connection of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, row: OrgRow) -> None:
        """Add an organisation."""
        await self._connection.execute(_T.insert().values(**asdict(row)))

    async def by_id(self, org_id: str) -> OrgRow | None:
        """The organisation with this id."""
        return await self._one(_T.c.id == org_id)

    async def by_name(self, name: str) -> OrgRow | None:
        """The organisation with this name."""
        return await self._one(_T.c.name == name)

    async def page(self, *, after: Cursor | None, limit: int, ids: Collection[str] | None = None) -> list[OrgRow]:
        """Organisations in the order of creation, only those with these ids if given."""
        query = _in_order(sa.select(_T), after, ids).limit(limit)
        return [OrgRow(**row) for row in (await self._connection.execute(query)).mappings()]

    async def count_behind(self, after: Cursor, most: int, ids: Collection[str] | None = None) -> int:
        """How many organisations ``page`` lists after this one, at most ``most``."""
        return await count_most(self._connection, _in_order(sa.select(_T.c.id), after, ids), most)

    async def set_status(self, org_id: str, status: str, now: float) -> None:
        """Set the status."""
        await self._connection.execute(_T.update().where(_T.c.id == org_id).values(status=status, updated_at=now))

    async def policies(self) -> list[Mapping[str, object]]:
        """The policies that organisations have of their own."""
        found = await self._connection.execute(sa.select(_T.c.policy).where(_T.c.policy.is_not(None)))
        return list(found.scalars())

    async def set_policy(self, org_id: str, policy: Mapping[str, object], now: float) -> None:
        """Replace the policy; an empty one is removed."""
        await self._connection.execute(
            _T.update().where(_T.c.id == org_id).values(policy=dict(policy) or None, updated_at=now)
        )

    async def _one(self, where: sa.ColumnElement[bool]) -> OrgRow | None:
        row = (await self._connection.execute(sa.select(_T).where(where))).mappings().one_or_none()
        return None if row is None else OrgRow(**row)
