"""Facts about the store itself: who it is, and the fingerprint of the key that it was made with."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import tables

STORE_ID: Final = "store_id"
KEY_FINGERPRINT: Final = "key_fingerprint"


async def read(connection: AsyncConnection, name: str) -> str | None:
    found = await connection.execute(sa.select(tables.meta.c.value).where(tables.meta.c.name == name))
    return found.scalar_one_or_none()


async def write(connection: AsyncConnection, name: str, value: str) -> None:
    """Add a fact that is not there yet."""
    await connection.execute(tables.meta.insert().values(name=name, value=value))
