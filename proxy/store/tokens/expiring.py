"""Tokens that expire soon, for expiry notices."""

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
_YIELD_EVERY: Final = 200
"""Tokens that are converted before the event loop may run other tasks: there may be some thousands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpiringToken:
    """A token and its expiry (unix seconds); missing texts are ""."""

    id: str
    prefix: str
    kind: Kind
    name: str
    user_id: str | None
    email: str
    org_id: str | None
    org_name: str
    expires_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class NoticeKey:
    """One notice: the token's id, its expiry (unix seconds), and the days before the expiry."""

    token_id: str
    expires_at: float
    days: int

    @property
    def claim(self) -> str:
        """The name of the task to send it (``upkeep.chores``)."""
        return f"notice.{self.token_id}.{self.days}"


class ExpiringTokens:
    """Tokens that expire soon, over the connection of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def due(self, days: int, *, begin: float, end: float, limit: int) -> list[ExpiringToken]:
        """Active tokens that expire after ``begin`` and not after ``end``, and need the notice of ``days`` days.

        These have a lifetime of more than ``days`` days and got no notice of so few days yet.
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
            if len(found) % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
        return found

    async def count(self, *, begin: float, end: float) -> int:
        """How many active tokens expire after ``begin`` and not after ``end``."""
        query = sa.select(sa.func.count()).select_from(_T).where(*_within(begin, end))
        return int((await self._connection.execute(query)).scalar_one())

    async def unsent(self, notices: Sequence[NoticeKey]) -> list[NoticeKey]:
        """Those of these notices that were not sent yet, and whose token still expires then."""
        query = sa.select(_T.c.id, _T.c.expires_at, _T.c.notified_days).where(
            _T.c.id.in_({notice.token_id for notice in notices})
        )
        rows = (await self._connection.execute(query)).all() if notices else []
        stored = {row.id: (row.expires_at, row.notified_days) for row in rows}

        def is_unsent(notice: NoticeKey) -> bool:
            expires_at, days = stored.get(notice.token_id, (None, None))
            return expires_at == notice.expires_at and (days is None or days > notice.days)

        return [notice for notice in notices if is_unsent(notice)]

    async def mark(self, given: Sequence[NoticeKey]) -> None:
        """Record notices that were sent. A token whose expiry has changed meanwhile is left alone."""
        # In the order of the ids, as every write of several rows.
        for notice in sorted(given, key=lambda notice: notice.token_id):
            await self._connection.execute(
                _T.update()
                .where(_T.c.id == notice.token_id, _T.c.expires_at == notice.expires_at)
                .values(notified_days=notice.days)
            )


def _within(begin: float, end: float) -> tuple[sa.ColumnElement[bool], ...]:
    # By ``listed_as``, and not by status, an index has them in the order of expiry.
    return (_T.c.listed_as == TokenStatus.ACTIVE.value, _T.c.expires_at > begin, _T.c.expires_at <= end)
