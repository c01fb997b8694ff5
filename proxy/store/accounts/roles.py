"""Roles as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import tables
from proxy.store.records import RoleRow

_T = tables.roles


class RolesTable:
    """Roles, over the connection of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, row: RoleRow) -> None:
        values = asdict(row)
        await self._connection.execute(_T.insert().values(**values))

    async def get(self, name: str) -> RoleRow | None:
        row = (await self._connection.execute(sa.select(_T).where(_T.c.name == name))).mappings().one_or_none()
        return None if row is None else RoleRow(**row)

    async def all(self) -> list[RoleRow]:
        rows = await self._connection.execute(sa.select(_T).order_by(_T.c.name))
        return [RoleRow(**row) for row in rows.mappings()]

    async def set(self, name: str, permissions: Sequence[str], now: float) -> None:
        await self._connection.execute(
            _T.update().where(_T.c.name == name).values(permissions=list(permissions), updated_at=now)
        )

    async def set_from_config(self, name: str, permissions: Sequence[str], now: float) -> None:
        """Set the permissions, and remember that the configuration said so."""
        await self._connection.execute(
            _T.update()
            .where(_T.c.name == name)
            .values(permissions=list(permissions), config_permissions=list(permissions), updated_at=now)
        )

    async def delete(self, name: str) -> None:
        await self._connection.execute(_T.delete().where(_T.c.name == name))
