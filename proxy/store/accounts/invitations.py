"""Rows of invitations. One is open while its row exists and has not expired."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import tables
from proxy.store.records import Cursor, InvitationRow
from proxy.store.sql.counting import count_most

_T = tables.invitations
_NAMED = sa.select(_T, tables.orgs.c.name.label("org_name")).join_from(_T, tables.orgs)


def _in_order(
    query: sa.Select[Any], after: Cursor | None, now: float, org_id: str | None, email_key: str | None
) -> sa.Select[Any]:
    """These columns of open invitations, oldest first."""
    query = query.where(_T.c.expires_at > now).order_by(_T.c.created_at, _T.c.id)
    if org_id is not None:
        query = query.where(_T.c.org_id == org_id)
    if email_key is not None:
        query = query.where(_T.c.email_key == email_key)
    if after is not None:
        query = query.where(sa.tuple_(_T.c.created_at, _T.c.id) > sa.tuple_(after.created_at, after.id))
    return query


class InvitationsTable:
    """Invitations, over the connection of one transaction. Times are unix seconds."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, row: InvitationRow) -> None:
        """Add an invitation."""
        values = asdict(row)
        del values["org_name"]
        await self._connection.execute(_T.insert().values(**values))

    async def get(self, invitation_id: str, now: float) -> InvitationRow | None:
        """The open invitation with this id."""
        return await self._one(_T.c.id == invitation_id, now)

    async def of(self, org_id: str, email_key: str, now: float) -> InvitationRow | None:
        """The open invitation of this folded email to an organisation."""
        return await self._one(sa.and_(_T.c.org_id == org_id, _T.c.email_key == email_key), now)

    async def page(
        self, *, after: Cursor | None, limit: int, now: float, org_id: str | None = None, email_key: str | None = None
    ) -> list[InvitationRow]:
        """Open invitations, oldest first: to an organisation, of an email, or all."""
        return await self._all(_in_order(_NAMED, after, now, org_id, email_key).limit(limit))

    async def count_behind(
        self, after: Cursor, most: int, *, now: float, org_id: str | None = None, email_key: str | None = None
    ) -> int:
        """How many invitations ``page`` lists after this one, at most ``most``."""
        return await count_most(self._connection, _in_order(sa.select(_T.c.id), after, now, org_id, email_key), most)

    async def count(self, org_id: str) -> int:
        """How many rows an organisation has."""
        query = sa.select(sa.func.count()).select_from(_T).where(_T.c.org_id == org_id)
        return int((await self._connection.execute(query)).scalar_one())

    async def delete(self, invitation_id: str) -> None:
        """Delete an invitation."""
        await self._connection.execute(_T.delete().where(_T.c.id == invitation_id))

    async def delete_expired(self, org_id: str, now: float) -> None:
        """Delete the expired invitations to an organisation."""
        await self._connection.execute(_T.delete().where(_T.c.org_id == org_id, _T.c.expires_at <= now))

    async def _one(self, where: sa.ColumnElement[bool], now: float) -> InvitationRow | None:
        found = await self._all(_NAMED.where(where, _T.c.expires_at > now))
        return found[0] if found else None

    async def _all(self, query: sa.Select[Any]) -> list[InvitationRow]:
        return [InvitationRow(**row) for row in (await self._connection.execute(query)).mappings()]
