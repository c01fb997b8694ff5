"""Facts about the store itself: its id, and the fingerprint of the key that it was created with."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import tables

STORE_ID: Final = "store_id"
KEY_FINGERPRINT: Final = "key_fingerprint"


async def read(connection: AsyncConnection, name: str) -> str | None:
    """The fact with this name, if it is stored."""
    found = await connection.execute(sa.select(tables.meta.c.value).where(tables.meta.c.name == name))
    return found.scalar_one_or_none()


async def write(connection: AsyncConnection, name: str, value: str) -> None:
    """Store a fact that is not stored yet."""
    await connection.execute(tables.meta.insert().values(name=name, value=value))
