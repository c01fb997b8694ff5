"""Counting the rows of a list, up to a bound."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection


async def count_most(connection: AsyncConnection, rows: sa.Select[Any], most: int) -> int:
    """How many rows there are, at most ``most``: it stops reading there."""
    counted = sa.select(sa.func.count()).select_from(rows.limit(most).subquery())
    return int((await connection.execute(counted)).scalar_one())
