"""Living tokens in the order of their creation, with what a policy asks about them: for whoever goes through all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.model import Kind, Reach, TokenStatus, UserStatus
from proxy.store import tables
from proxy.store.records import Cursor

_T, _U, _S = tables.tokens, tables.users, tables.token_usage
_COLUMNS = sa.select(
    _T.c.id,
    _T.c.prefix,
    _T.c.kind,
    _T.c.reach,
    _T.c.name,
    _T.c.user_id,
    sa.func.coalesce(_U.c.email, "").label("email"),
    _T.c.org_id,
    _T.c.scopes,
    _T.c.created_at,
    _T.c.rotated_at,
    _T.c.expires_at,
    _S.c.last_used_at,
).select_from(_T.outerjoin(_U, _U.c.id == _T.c.user_id).outerjoin(_S, _S.c.token_id == _T.c.id))


@dataclass(frozen=True, kw_only=True, slots=True)
class LivingToken:
    """A token that works, as policies see it; ``email`` is "" for a key."""

    id: str
    prefix: str
    kind: Kind
    reach: Reach
    name: str
    user_id: str | None
    email: str
    org_id: str | None
    scopes: Sequence[str] | None
    created_at: float
    rotated_at: float | None
    expires_at: float | None
    last_used_at: float | None


class Living:
    """Living tokens, over the connection of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def page(
        self, *, after: Cursor | None, limit: int, now: float, org_id: str | None = None
    ) -> tuple[list[LivingToken], Cursor | None]:
        """Those among the next ``limit`` tokens that are living, of one organisation where given; and where to go on.

        Every page costs the same, however few of its tokens live. ``None`` for where to go on is the end.
        """
        query = _COLUMNS.add_columns(_T.c.status, _U.c.status.label("user_status"))
        query = query.order_by(_T.c.created_at, _T.c.id).limit(limit)
        if after is not None:
            query = query.where(sa.tuple_(_T.c.created_at, _T.c.id) > sa.tuple_(after.created_at, after.id))
        if org_id is not None:
            query = query.where(_T.c.org_id == org_id)
        rows = (await self._connection.execute(query)).mappings().all()
        found = [_living(row) for row in rows if _is_living(row, now)]
        last = Cursor(created_at=rows[-1]["created_at"], id=rows[-1]["id"]) if len(rows) == limit else None
        return found, last

    async def end(self, token_id: str, now: float) -> None:
        """Let a token's time be over."""
        await self._connection.execute(_T.update().where(_T.c.id == token_id).values(expires_at=now, updated_at=now))

    async def crowded(self, most: int, now: float, limit: int) -> list[tuple[str, str, int]]:
        """Owners of more living personal access tokens than ``most``: id, email and how many; at most ``limit``."""
        count = sa.func.count()
        query = (
            sa.select(_T.c.user_id, _U.c.email, count)
            .select_from(_T.join(_U, _U.c.id == _T.c.user_id))
            .where(
                # An index has this beside the owner, and not the status.
                _T.c.listed_as.in_((TokenStatus.ACTIVE.value, TokenStatus.EXPIRED.value)),
                sa.or_(_T.c.expires_at.is_(None), _T.c.expires_at > now),
                _U.c.status != UserStatus.REMOVED.value,
            )
            .group_by(_T.c.user_id)
            .having(count > most)
            .order_by(_T.c.user_id)
            .limit(limit)
        )
        return [(row[0], row[1], row[2]) for row in await self._connection.execute(query)]


def _is_living(row: sa.RowMapping, now: float) -> bool:
    return (
        row["status"] == TokenStatus.ACTIVE.value
        and row["user_status"] != UserStatus.REMOVED.value
        and (row["expires_at"] is None or row["expires_at"] > now)
    )


def _living(row: sa.RowMapping) -> LivingToken:
    values = {name: row[name] for name in LivingToken.__slots__}
    values.update(kind=Kind(row["kind"]), reach=Reach(row["reach"]))
    return LivingToken(**values)
