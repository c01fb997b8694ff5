"""Rows of roles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import tables
from proxy.store.records import RoleRow

_T = tables.roles
_APPLIED = tables.applied_roles


class RolesTable:
    """Roles, over the connection of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, row: RoleRow) -> None:
        """Add a role."""
        values = asdict(row)
        await self._connection.execute(_T.insert().values(**values))

    async def get(self, name: str) -> RoleRow | None:
        """The role with this name."""
        row = (await self._connection.execute(sa.select(_T).where(_T.c.name == name))).mappings().one_or_none()
        return None if row is None else RoleRow(**row)

    async def all(self) -> list[RoleRow]:
        """Every role, by name."""
        rows = await self._connection.execute(sa.select(_T).order_by(_T.c.name))
        return [RoleRow(**row) for row in rows.mappings()]

    async def set(self, name: str, permissions: Sequence[str], now: float) -> None:
        """Replace the permissions."""
        await self._connection.execute(
            _T.update().where(_T.c.name == name).values(permissions=list(permissions), updated_at=now)
        )

    async def set_from_config(self, name: str, permissions: Sequence[str], now: float) -> None:
        """Set the permissions, and record them as those of the configuration."""
        await self._connection.execute(
            _T.update()
            .where(_T.c.name == name)
            .values(permissions=list(permissions), config_permissions=list(permissions), updated_at=now)
        )

    async def applied(self) -> list[str]:
        """The hashes of all configurations' roles that were applied, the one that was applied last first."""
        return list(await self._connection.scalars(sa.select(_APPLIED.c.hash).order_by(_APPLIED.c.epoch.desc())))

    async def record_applied(self, roles_hash: str, epoch: int, now: float) -> None:
        """Record that the roles with this hash were applied by the change ``epoch``."""
        await self._connection.execute(_APPLIED.delete().where(_APPLIED.c.hash == roles_hash))
        await self._connection.execute(_APPLIED.insert().values(hash=roles_hash, epoch=epoch, at=now))

    async def delete(self, name: str) -> None:
        """Delete a role."""
        await self._connection.execute(_T.delete().where(_T.c.name == name))
