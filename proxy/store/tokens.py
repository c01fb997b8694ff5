"""Tokens as rows."""

from __future__ import annotations

from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.model import Kind, Reach, TokenStatus, UserStatus
from proxy.store import tables
from proxy.store.records import Cursor, TokenEntry, TokenRow

_T = tables.tokens
_U = tables.users
_ENTRIES = sa.select(
    _T,
    sa.func.coalesce(_U.c.email, "").label("email"),
    _U.c.status.label("user_status"),
    sa.func.coalesce(tables.orgs.c.name, "").label("org_name"),
    tables.token_usage.c.last_used_at,
    sa.func.coalesce(tables.token_usage.c.use_count, 0).label("use_count"),
).select_from(
    _T.outerjoin(_U, _U.c.id == _T.c.user_id)
    .outerjoin(tables.orgs, tables.orgs.c.id == _T.c.org_id)
    .outerjoin(tables.token_usage, tables.token_usage.c.token_id == _T.c.id)
)
_COLUMNS = tuple(column.name for column in _T.columns)


def _token(row: sa.RowMapping) -> TokenRow:
    values = {name: row[name] for name in _COLUMNS}
    values.update(kind=Kind(row["kind"]), reach=Reach(row["reach"]), status=TokenStatus(row["status"]))
    return TokenRow(**values)


def _entry(row: sa.RowMapping) -> TokenEntry:
    return TokenEntry(
        token=_token(row),
        email=row["email"],
        user_status=None if row["user_status"] is None else UserStatus(row["user_status"]),
        org_name=row["org_name"],
        last_used_at=row["last_used_at"],
        use_count=row["use_count"],
    )


def _with_status(status: TokenStatus, now: float) -> sa.ColumnElement[bool]:
    """The status that people see: a token of a removed owner counts as revoked, one past its time as expired."""
    revoked = sa.or_(
        _T.c.status == TokenStatus.REVOKED.value, sa.func.coalesce(_U.c.status, "") == UserStatus.REMOVED.value
    )
    expired = sa.func.coalesce(_T.c.expires_at <= now, sa.false())
    if status is TokenStatus.REVOKED:
        return revoked
    if status is TokenStatus.EXPIRED:
        return sa.and_(sa.not_(revoked), expired)
    return sa.and_(sa.not_(revoked), sa.not_(expired))


class Tokens:
    """Tokens, over the connection of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, row: TokenRow) -> None:
        await self._connection.execute(_T.insert().values(**asdict(row)))

    async def get(self, token_id: str) -> TokenEntry | None:
        row = (await self._connection.execute(_ENTRIES.where(_T.c.id == token_id))).mappings().one_or_none()
        return None if row is None else _entry(row)

    async def hash(self, token_id: str) -> str | None:
        """The slow hash of the token's value."""
        found = await self._connection.execute(sa.select(_T.c.hash).where(_T.c.id == token_id))
        return found.scalar_one_or_none()

    async def page(
        self, *, after: Cursor | None, limit: int, now: float, user_id: str | None, status: TokenStatus | None
    ) -> list[TokenEntry]:
        """Tokens in the order of their creation, of one owner and with one status where given."""
        query = _ENTRIES.order_by(_T.c.created_at, _T.c.id).limit(limit)
        if after is not None:
            query = query.where(sa.tuple_(_T.c.created_at, _T.c.id) > sa.tuple_(after.created_at, after.id))
        if user_id is not None:
            query = query.where(_T.c.user_id == user_id)
        if status is not None:
            query = query.where(_with_status(status, now))
        return [_entry(row) for row in (await self._connection.execute(query)).mappings()]

    async def count_active(self, user_id: str, now: float) -> int:
        """How many tokens of this owner could be used now, were the owner not suspended."""
        query = (
            sa.select(sa.func.count())
            .select_from(_T.outerjoin(_U, _U.c.id == _T.c.user_id))
            .where(_T.c.user_id == user_id, _with_status(TokenStatus.ACTIVE, now))
        )
        return int((await self._connection.execute(query)).scalar_one())

    async def replace_secret(self, token_id: str, *, hash: str, digest: bytes, now: float) -> None:
        """A new value in place: id, name, scopes and expiry stay, the old value is worth nothing."""
        await self._update(
            token_id,
            hash=hash,
            digest=digest,
            previous_hash=None,
            previous_digest=None,
            previous_until=None,
            rotated_at=now,
            updated_at=now,
        )

    async def revoke(self, token_id: str, now: float) -> None:
        await self._update(token_id, status=TokenStatus.REVOKED.value, revoked_at=now, updated_at=now)

    async def delete(self, token_id: str) -> None:
        await self._connection.execute(_T.delete().where(_T.c.id == token_id))

    async def write_digest(self, token_id: str, digest: bytes, expected_hash: str) -> bool:
        """Remember the digest of a value verified against ``expected_hash``; false if that is no longer the hash."""
        done = await self._connection.execute(
            _T.update().where(_T.c.id == token_id, _T.c.hash == expected_hash).values(digest=digest)
        )
        return done.rowcount == 1

    async def _update(self, token_id: str, **values: object) -> None:
        await self._connection.execute(_T.update().where(_T.c.id == token_id).values(**values))
