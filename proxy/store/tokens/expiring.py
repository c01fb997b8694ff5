"""Living tokens in the order in which they end, for whoever tells of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.kinds import Kind
from proxy.core.model import TokenStatus, UserStatus
from proxy.store import tables

_T, _U, _O = tables.tokens, tables.users, tables.orgs
_DAY: Final = 86400.0
_AT_A_TIME: Final = 200
"""Tokens that are read between two looks at what else there is to do: there may be some thousands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpiringToken:
    """A token and when it ends (unix seconds); texts are "" where there is nothing."""

    id: str
    prefix: str
    kind: Kind
    name: str
    user_id: str | None
    email: str
    org_id: str | None
    org_name: str
    expires_at: float


class ExpiringTokens:
    """Tokens that end soon, over the connection of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def due(self, days: int, *, begin: float, end: float, limit: int) -> list[ExpiringToken]:
        """Living tokens that end after ``begin`` and not after ``end``, lived longer than ``days`` days and have had no
        notice of so few days.
        """
        query = (
            sa.select(
                _T.c.id,
                _T.c.prefix,
                _T.c.kind,
                _T.c.name,
                _T.c.user_id,
                sa.func.coalesce(_U.c.email, "").label("email"),
                _T.c.org_id,
                sa.func.coalesce(_O.c.name, "").label("org_name"),
                _T.c.expires_at,
            )
            .select_from(_T.outerjoin(_U, _U.c.id == _T.c.user_id).outerjoin(_O, _O.c.id == _T.c.org_id))
            .where(
                *_within(begin, end),
                sa.or_(_T.c.notified_days.is_(None), _T.c.notified_days > days),
                _T.c.expires_at - sa.func.coalesce(_T.c.rotated_at, _T.c.created_at) > days * _DAY,
                sa.func.coalesce(_U.c.status, "") != UserStatus.REMOVED.value,
            )
            .order_by(_T.c.expires_at, _T.c.id)
            .limit(limit)
        )
        found: list[ExpiringToken] = []
        for row in (await self._connection.execute(query)).mappings():
            found.append(ExpiringToken(**{**row, "kind": Kind(row["kind"])}))
            if len(found) % _AT_A_TIME == 0:
                await asyncio.sleep(0)
        return found

    async def count(self, *, begin: float, end: float) -> int:
        """How many living tokens end after ``begin`` and not after ``end``."""
        query = sa.select(sa.func.count()).select_from(_T).where(*_within(begin, end))
        return int((await self._connection.execute(query)).scalar_one())

    async def mark(self, given: Sequence[tuple[str, float, int]]) -> None:
        """Remember the notices that were given: token, its end, and of how many days. One that ends at another time by
        now is left alone.
        """
        for token_id, expires_at, days in given:
            await self._connection.execute(
                _T.update().where(_T.c.id == token_id, _T.c.expires_at == expires_at).values(notified_days=days)
            )


def _within(begin: float, end: float) -> tuple[sa.ColumnElement[bool], ...]:
    # With what they are listed as, and not their status, an index has them in the order in which they end.
    return (_T.c.listed_as == TokenStatus.ACTIVE.value, _T.c.expires_at > begin, _T.c.expires_at <= end)
