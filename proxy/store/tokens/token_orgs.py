"""Rows of the organisations that tokens of reach ``orgs`` are attached to; each takes a seat there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.model import TokenStatus
from proxy.store import tables
from proxy.store.records import AttachedRow

_T, _O, _K = tables.token_orgs, tables.orgs, tables.tokens


class TokenOrgs:
    """Attachments, over the connection of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def of(self, token_ids: Iterable[str]) -> list[AttachedRow]:
        """The organisations of these tokens (at most a page of them), by name."""
        query = (
            sa.select(_T.c.token_id, _T.c.org_id, _O.c.name.label("org_name"), _T.c.permissions)
            .join_from(_T, _O, _O.c.id == _T.c.org_id)
            .where(_T.c.token_id.in_(list(token_ids)))
            .order_by(_T.c.token_id, _O.c.name)
        )
        found = (await self._connection.execute(query)).mappings()
        return [AttachedRow(**{**row, "permissions": row["permissions"] or ()}) for row in found]

    async def add(self, token_id: str, org_id: str, permissions: Sequence[str], now: float) -> None:
        """Attach a token to an organisation with these permissions."""
        values = {"token_id": token_id, "org_id": org_id, "permissions": list(permissions), "created_at": now}
        await self._connection.execute(_T.insert().values(**values))

    async def set(self, token_id: str, org_id: str, permissions: Sequence[str]) -> None:
        """Replace the permissions of an attachment."""
        where = (_T.c.token_id == token_id, _T.c.org_id == org_id)
        await self._connection.execute(_T.update().where(*where).values(permissions=list(permissions)))

    async def remove(self, token_id: str, org_id: str) -> None:
        """Detach a token from an organisation."""
        await self._connection.execute(_T.delete().where(_T.c.token_id == token_id, _T.c.org_id == org_id))

    async def seats(self, org_id: str, now: float) -> int:
        """How many active tokens are attached to this organisation."""
        living = (_K.c.status == TokenStatus.ACTIVE.value, sa.or_(_K.c.expires_at.is_(None), _K.c.expires_at > now))
        query = (
            sa.select(sa.func.count())
            .select_from(_T.join(_K, _K.c.id == _T.c.token_id))
            .where(_T.c.org_id == org_id, *living)
        )
        return int((await self._connection.execute(query)).scalar_one())
