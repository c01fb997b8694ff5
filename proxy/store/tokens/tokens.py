"""Rows of tokens: adding, reading, listing, rotating, revoking and deleting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.kinds import Kind, Reach
from proxy.core.model import TokenStatus, UserStatus
from proxy.store import tables
from proxy.store.records import Cursor, TokenEntry, TokenRow
from proxy.store.tokens import queries
from proxy.store.tokens.queries import TokenListQuery

_T = tables.tokens
_U = tables.users
_SHOWN = (
    sa.func.coalesce(_U.c.email, "").label("email"),
    _U.c.status.label("user_status"),
    sa.func.coalesce(tables.orgs.c.name, "").label("org_name"),
    tables.token_usage.c.last_used_at,
    tables.token_usage.c.last_used_ip,
    sa.func.coalesce(tables.token_usage.c.use_count, 0).label("use_count"),
)
_BATCH: Final = 500
_COLUMNS = tuple(field.name for field in fields(TokenRow))


def _entries(source: sa.FromClause) -> sa.Select[Any]:
    """The tokens of ``source``, each with the columns that lists show beside it."""
    return sa.select(*(_T.c[name] for name in _COLUMNS), *_SHOWN).select_from(
        source.outerjoin(_U, _U.c.id == _T.c.user_id)
        .outerjoin(tables.orgs, tables.orgs.c.id == _T.c.org_id)
        .outerjoin(tables.token_usage, tables.token_usage.c.token_id == _T.c.id)
    )


_ENTRIES = _entries(_T)


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
        last_used_ip=row["last_used_ip"],
    )


class TokensTable:
    """Tokens, over the connection of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, row: TokenRow) -> None:
        """Add a token; its lifetime is the time from creation to expiry."""
        lifetime = None if row.expires_at is None else row.expires_at - row.created_at
        values = {**asdict(row), "lifetime": lifetime, "listed_as": row.status.value}
        await self._connection.execute(_T.insert().values(**values))

    async def get(self, token_id: str) -> TokenEntry | None:
        """The token with this id."""
        row = (await self._connection.execute(_ENTRIES.where(_T.c.id == token_id))).mappings().one_or_none()
        return None if row is None else _entry(row)

    async def hash(self, token_id: str) -> str | None:
        """The slow hash of the token's value."""
        found = await self._connection.execute(sa.select(_T.c.hash).where(_T.c.id == token_id))
        return found.scalar_one_or_none()

    async def page(self, query: TokenListQuery, *, after: Cursor | None, limit: int, now: float) -> list[TokenEntry]:
        """A page in the order of ``query``; the next one begins at ``query.position`` of its last entry."""
        page = queries.page_ids(query, after=after, limit=limit, now=now)
        if page is None:
            return []
        # The page is the left side of the join, so that only its rows are read.
        found = _entries(page.outerjoin(_T, _T.c.id == page.c.id)).order_by(page.c.at, page.c.id)
        return [_entry(row) for row in (await self._connection.execute(found)).mappings()]

    async def count_behind(self, query: TokenListQuery, after: Cursor, most: int, now: float) -> int:
        """How many tokens ``page`` lists after this one, at most ``most``."""
        page = queries.page_ids(query, after=after, limit=most, now=now)
        if page is None:
            return 0
        return int((await self._connection.execute(sa.select(sa.func.count()).select_from(page))).scalar_one())

    async def count_active(self, user_id: str, now: float, org_id: str | None = None) -> int:
        """How many unexpired, unrevoked tokens this owner has, in one organisation if given; suspension is ignored."""
        query = sa.select(sa.func.count()).where(
            *(() if org_id is None else (_T.c.org_id == org_id,)),
            _T.c.user_id == user_id,
            _T.c.listed_as.in_((TokenStatus.ACTIVE.value, TokenStatus.EXPIRED.value)),
            sa.or_(_T.c.expires_at.is_(None), _T.c.expires_at > now),
        )
        return int((await self._connection.execute(query)).scalar_one())

    async def replace_secret(self, token_id: str, *, hash: str, digest: bytes, now: float) -> None:
        """Replace the secret: id, name, scopes and expiry stay, and the old secret is invalid at once."""
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

    async def regenerate(
        self, token_id: str, *, hash: str, digest: bytes, expires_at: float | None, now: float
    ) -> None:
        """Give an expired or revoked token a new secret and a new expiry; everything else stays."""
        lifetime = None if expires_at is None else expires_at - now
        await self.replace_secret(token_id, hash=hash, digest=digest, now=now)
        await self._update(
            token_id,
            status=TokenStatus.ACTIVE.value,
            revoked_at=None,
            expires_at=expires_at,
            lifetime=lifetime,
            notified_days=None,
            updated_at=now,
        )

    async def set_scopes(self, token_id: str, scopes: Sequence[str], now: float) -> None:
        """Replace the scopes."""
        await self._update(token_id, scopes=list(scopes), updated_at=now)

    async def set_ip_ranges(self, token_id: str, ranges: Sequence[str] | None, now: float) -> None:
        """Replace the IP ranges; None: it may be used from any address."""
        await self._update(token_id, ip_ranges=None if ranges is None else list(ranges), updated_at=now)

    async def describe(self, token_id: str, *, name: str, description: str, now: float) -> None:
        """Set the name and the description."""
        await self._update(token_id, name=name, description=description, updated_at=now)

    async def made_by(self, token_id: str, now: float, *, after: Cursor | None, limit: int) -> list[TokenEntry]:
        """The next unexpired, unrevoked tokens that this one minted, directly or through others, oldest first."""
        query = _ENTRIES.where(*_usable(token_id, now)).order_by(_T.c.created_at, _T.c.id).limit(limit)
        if after is not None:
            query = query.where(sa.tuple_(_T.c.created_at, _T.c.id) > sa.tuple_(after.created_at, after.id))
        return [_entry(row) for row in (await self._connection.execute(query)).mappings()]

    async def count_made_by(self, token_id: str, now: float) -> int:
        """How many unexpired, unrevoked tokens this one minted, directly or through others."""
        query = sa.select(sa.func.count()).where(*_usable(token_id, now))
        return int((await self._connection.execute(query)).scalar_one())

    async def descends(self, token_id: str, ancestor_id: str) -> bool:
        """Whether one token was minted by the other, directly or through others."""
        line = sa.select(_T.c.parent_id.label("id")).where(_T.c.id == token_id).cte("line", recursive=True)
        line = line.union(sa.select(_T.c.parent_id).join(line, _T.c.id == line.c.id))
        found = await self._connection.execute(sa.select(sa.literal(1)).where(line.c.id == ancestor_id))
        return found.first() is not None

    async def revoke(self, token_id: str, now: float) -> None:
        """Revoke the token, at ``now`` (unix seconds)."""
        await self._update(token_id, status=TokenStatus.REVOKED.value, revoked_at=now, updated_at=now)

    async def revoke_many(self, token_ids: Sequence[str], now: float) -> None:
        """As ``revoke`` for each token, in few statements."""
        values = {"status": TokenStatus.REVOKED.value, "revoked_at": now, "updated_at": now}
        for ids in _batched(token_ids):
            update = _T.update().where(_T.c.id.in_(ids)).values(**values, **_listed(values))
            await self._connection.execute(update)

    async def delete_many(self, rows: Sequence[TokenRow]) -> None:
        """As ``delete`` for each token, in few statements: remaining descendants get the next remaining parent."""
        parents = {row.id: row.parent_id for row in rows}
        for ids in _batched(tuple(parents)):
            parent_ids = sa.select(_T.c.parent_id).where(_T.c.parent_id.in_(ids)).distinct()
            for (parent,) in (await self._connection.execute(parent_ids)).all():
                # Descendants that are deleted too are moved with the others: one parent may have minted thousands.
                above = _T.update().where(_T.c.parent_id == parent).values(parent_id=_above(parents, parent))
                await self._connection.execute(above)
        for ids in _batched(tuple(parents)):
            await self._connection.execute(_T.delete().where(_T.c.id.in_(ids)))

    async def delete(self, token_id: str) -> None:
        """Delete a token. Its parent becomes the parent of the tokens it minted, so that lineage has no gaps."""
        row = _T.alias("row")
        above = sa.select(sa.func.coalesce(row.c.parent_id, token_id)).where(row.c.id == token_id)
        parent = above.scalar_subquery()
        await self._connection.execute(_T.update().where(_T.c.parent_id == token_id).values(parent_id=parent))
        await self._connection.execute(_T.delete().where(_T.c.id == token_id))

    async def write_digest(self, token_id: str, digest: bytes, expected_hash: str) -> bool:
        """Store the digest of a value verified against ``expected_hash``; false if that is no longer the hash."""
        done = await self._connection.execute(
            _T.update().where(_T.c.id == token_id, _T.c.hash == expected_hash).values(digest=digest)
        )
        return done.rowcount == 1

    async def file_owner_removed(self, user_id: str) -> None:
        """List the tokens of a removed owner as revoked; their status does not change."""
        await self._connection.execute(
            _T.update().where(_T.c.user_id == user_id).values(listed_as=TokenStatus.REVOKED.value)
        )

    async def file_expired(self, now: float, limit: int) -> int:
        """List tokens as expired whose expiry has passed, and back as active what a clock running ahead put there.

        At most ``limit`` of each; returns how many. A hint for ``queries``: no decision and no view depends on it.
        """
        active, expired = TokenStatus.ACTIVE.value, TokenStatus.EXPIRED.value
        passed = await self._move(active, _T.c.expires_at <= now, expired, limit)
        return max(passed, await self._move(expired, _T.c.expires_at > now, active, limit))

    async def _move(self, listed_as: str, where: sa.ColumnElement[bool], target: str, limit: int) -> int:
        found = sa.select(_T.c.id).where(_T.c.listed_as == listed_as, where)
        # A row that a change has locked stays for the next turn: neither may wait for the other.
        found = found.order_by(_T.c.expires_at, _T.c.id).limit(limit).with_for_update(skip_locked=True)
        done = await self._connection.execute(_T.update().where(_T.c.id.in_(found)).values(listed_as=target))
        return done.rowcount

    async def _update(self, token_id: str, **values: object) -> None:
        listed = _listed(values)
        await self._connection.execute(_T.update().where(_T.c.id == token_id).values(**values, **listed))


def _above(parents: Mapping[str, str | None], token_id: str) -> str:
    """The nearest ancestor that is not among ``parents``, or the topmost of them."""
    while (above := parents.get(token_id)) is not None:
        token_id = above
    return token_id


def _usable(parent: str, now: float) -> tuple[sa.ColumnElement[bool], ...]:
    """Conditions for unexpired, unrevoked tokens that ``parent`` minted, directly or through others."""
    return (
        _T.c.id.in_(queries.lineage(parent)),
        _T.c.id != parent,
        _T.c.listed_as != TokenStatus.REVOKED.value,
        sa.or_(_T.c.expires_at.is_(None), _T.c.expires_at > now),
    )


def _batched(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """The ids in batches, each few enough to be the parameters of one statement."""
    return (ids[start : start + _BATCH] for start in range(0, len(ids), _BATCH))


def _listed(values: Mapping[str, object]) -> dict[str, object]:
    """The ``listed_as`` of a token after an update with these values."""
    if "status" in values:
        return {"listed_as": values["status"]}
    if "expires_at" in values:
        revoked = TokenStatus.REVOKED.value
        return {"listed_as": sa.case((_T.c.listed_as == revoked, revoked), else_=TokenStatus.ACTIVE.value)}
    return {}
