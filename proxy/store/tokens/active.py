"""Active tokens in the order of creation, with the fields that a policy checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.kinds import Kind, Reach
from proxy.core.model import TokenStatus, UserStatus
from proxy.store import tables
from proxy.store.records import AttachedRow, Cursor
from proxy.store.tokens import queries
from proxy.store.tokens.queries import TokenListQuery, Within
from proxy.store.tokens.token_orgs import TokenOrgs

_T, _U, _S = tables.tokens, tables.users, tables.token_usage
_FIELDS = (
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
    _T.c.status,
    _U.c.status.label("user_status"),
)
_TEXTS = ("id", "prefix", "name", "user_id", "email", "org_id", "scopes")
_TIMES = ("created_at", "rotated_at", "expires_at", "last_used_at")


@dataclass(frozen=True, kw_only=True, slots=True)
class ActiveToken:
    """An active token as policies see it; ``email`` is "" for a key.

    ``attached`` are the organisations of a token of reach ``orgs``.
    """

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
    attached: tuple[AttachedRow, ...] = ()

    @property
    def org_ids(self) -> tuple[str, ...]:
        """The organisations that the token belongs to: its own, or all that it is attached to."""
        return tuple(one.org_id for one in self.attached) if self.org_id is None else (self.org_id,)


class ActiveTokens:
    """Active tokens, over the connection of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def page(
        self, *, after: Cursor | None, limit: int, now: float, org_id: str | None = None
    ) -> tuple[list[ActiveToken], Cursor | None]:
        """The next ``limit`` active tokens and the position to continue from; ``None`` at the end.

        With ``org_id`` only tokens of that organisation or attached to it.
        """
        query = TokenListQuery(within=(Within(org_id=org_id),), status=TokenStatus.ACTIVE)
        page = queries.page_ids(query, after=after, limit=limit, now=now)
        if page is None:
            return [], None
        found = _from(page.outerjoin(_T, _T.c.id == page.c.id)).order_by(page.c.at, page.c.id)
        rows = (await self._connection.execute(found)).mappings().all()
        last = Cursor(created_at=rows[-1]["created_at"], id=rows[-1]["id"]) if len(rows) == limit else None
        return await self._active(rows, now), last

    async def by_ids(self, token_ids: Sequence[str], now: float) -> list[ActiveToken]:
        """Those of these tokens (at most a page of them) that are active."""
        found = _from(_T).where(_T.c.id.in_(list(token_ids))).order_by(_T.c.created_at, _T.c.id)
        return await self._active((await self._connection.execute(found)).mappings().all(), now)

    async def expire(self, token_ids: Sequence[str], now: float) -> None:
        """Expire these tokens (at most a page of them) now."""
        await self._connection.execute(
            _T.update().where(_T.c.id.in_(list(token_ids))).values(expires_at=now, updated_at=now)
        )

    async def owners_above(self, most: int, now: float, limit: int) -> list[tuple[str, str, int]]:
        """Owners of more active personal access tokens than ``most``: id, email and count; at most ``limit`` owners."""
        count = sa.func.count()
        query = (
            sa.select(_T.c.user_id, _U.c.email, count)
            .select_from(_T.join(_U, _U.c.id == _T.c.user_id))
            .where(
                # The owner's index contains this column, and not the status.
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

    async def _active(self, rows: Sequence[sa.RowMapping], now: float) -> list[ActiveToken]:
        active = [row for row in rows if _is_active(row, now)]
        several = [row["id"] for row in active if row["reach"] == Reach.ORGS.value]
        attached: dict[str, list[AttachedRow]] = {}
        for one in await TokenOrgs(self._connection).of(several) if several else ():
            attached.setdefault(one.token_id, []).append(one)
        return [
            ActiveToken(
                **{name: row[name] for name in (*_TEXTS, *_TIMES)},
                kind=Kind(row["kind"]),
                reach=Reach(row["reach"]),
                attached=tuple(attached.get(row["id"], ())),
            )
            for row in active
        ]


def _from(source: sa.FromClause) -> sa.Select[Any]:
    joined = source.outerjoin(_U, _U.c.id == _T.c.user_id).outerjoin(_S, _S.c.token_id == _T.c.id)
    return sa.select(*_FIELDS).select_from(joined)


def _is_active(row: sa.RowMapping, now: float) -> bool:
    return (
        row["status"] == TokenStatus.ACTIVE.value
        and row["user_status"] != UserStatus.REMOVED.value
        and (row["expires_at"] is None or row["expires_at"] > now)
    )
