"""Rows of users and of their memberships."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.model import UserStatus
from proxy.store import tables
from proxy.store.records import Cursor, MemberRow, UserRow
from proxy.store.sql.counting import count_most
from proxy.store.tokens.tokens import TokensTable

_T = tables.users
_M = tables.members
_MEMBERS = sa.select(_M, tables.orgs.c.name.label("org_name")).join_from(_M, tables.orgs)


def _user(row: sa.RowMapping) -> UserRow:
    return UserRow(**{**row, "status": UserStatus(row["status"])})


def _in_order(query: sa.Select[Any], after: Cursor | None, *, removed: bool = False) -> sa.Select[Any]:
    """These columns of users in the order of their creation."""
    query = query.order_by(_T.c.created_at, _T.c.id)
    if after is not None:
        query = query.where(sa.tuple_(_T.c.created_at, _T.c.id) > sa.tuple_(after.created_at, after.id))
    return query if removed else query.where(_T.c.removed_at.is_(None))


class UsersTable:
    """Users, over the connection of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, row: UserRow) -> None:
        """Add a user."""
        await self._connection.execute(_T.insert().values(**asdict(row)))

    async def by_id(self, user_id: str) -> UserRow | None:
        """The user with this id, removed or not."""
        row = (await self._connection.execute(sa.select(_T).where(_T.c.id == user_id))).mappings().one_or_none()
        return None if row is None else _user(row)

    async def by_email_key(self, key: str) -> UserRow | None:
        """The user with this folded email that is not removed."""
        query = sa.select(_T).where(_T.c.email_key == key, _T.c.removed_at.is_(None))
        row = (await self._connection.execute(query)).mappings().one_or_none()
        return None if row is None else _user(row)

    async def page(self, *, after: Cursor | None, limit: int, removed: bool = False) -> list[UserRow]:
        """Users in the order of creation, removed ones only with ``removed``."""
        query = _in_order(sa.select(_T), after, removed=removed).limit(limit)
        return [_user(row) for row in (await self._connection.execute(query)).mappings()]

    async def count_behind(self, after: Cursor, most: int) -> int:
        """How many users that are not removed ``page`` lists after this one, at most ``most``."""
        return await count_most(self._connection, _in_order(sa.select(_T.c.id), after), most)

    async def set_role(self, user_id: str, role: str, now: float) -> None:
        """Set the role in the account."""
        await self._update(user_id, role=role, updated_at=now)

    async def set_status(self, user_id: str, status: UserStatus, now: float) -> None:
        """Set the status; ``removed`` also frees the email for a new user, and lists show the tokens as revoked."""
        removed_at = now if status is UserStatus.REMOVED else None
        if status is UserStatus.REMOVED:
            await TokensTable(self._connection).file_owner_removed(user_id)
        await self._update(user_id, status=status.value, updated_at=now, removed_at=removed_at)

    async def _update(self, user_id: str, **values: object) -> None:
        await self._connection.execute(_T.update().where(_T.c.id == user_id).values(**values))


def _as_joined(org_id: str, after: Cursor | None) -> sa.Select[Any]:
    """The ids of an organisation's members in the order in which they joined."""
    query = sa.select(_M.c.user_id, _M.c.created_at).where(_M.c.org_id == org_id)
    if after is not None:
        query = query.where(sa.tuple_(_M.c.created_at, _M.c.user_id) > sa.tuple_(after.created_at, after.id))
    return query.order_by(_M.c.created_at, _M.c.user_id)


class MembersTable:
    """Memberships, over the connection of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, row: MemberRow) -> None:
        """Add a membership."""
        values = asdict(row)
        del values["org_name"]
        await self._connection.execute(_M.insert().values(**values))

    async def get(self, org_id: str, user_id: str) -> MemberRow | None:
        """The membership of this user in this organisation."""
        query = _MEMBERS.where(_M.c.org_id == org_id, _M.c.user_id == user_id)
        row = (await self._connection.execute(query)).mappings().one_or_none()
        return None if row is None else MemberRow(**row)

    async def by_email_key(self, org_id: str, key: str) -> MemberRow | None:
        """The membership of the user with this folded email: one statement, whether such a user exists or not."""
        query = _MEMBERS.join(_T, _T.c.id == _M.c.user_id)
        query = query.where(_M.c.org_id == org_id, _T.c.email_key == key, _T.c.removed_at.is_(None))
        row = (await self._connection.execute(query)).mappings().one_or_none()
        return None if row is None else MemberRow(**row)

    async def of_user(self, user_id: str) -> list[MemberRow]:
        """The memberships of this user."""
        return await self._all(_MEMBERS.where(_M.c.user_id == user_id))

    async def of_users(self, user_ids: list[str]) -> list[MemberRow]:
        """The memberships of these users (at most a page of them)."""
        return await self._all(_MEMBERS.where(_M.c.user_id.in_(user_ids)))

    async def page(self, org_id: str, *, after: Cursor | None, limit: int) -> list[tuple[MemberRow, UserRow]]:
        """Members of an organisation in the order in which they joined, then by their ids."""
        query = _as_joined(org_id, after).limit(limit)
        ids = [row[0] for row in await self._connection.execute(query)]
        users = (await self._connection.execute(sa.select(_T).where(_T.c.id.in_(ids)))).mappings()
        by_id = {row["id"]: _user(row) for row in users}
        rows = await self._all(_MEMBERS.where(_M.c.org_id == org_id, _M.c.user_id.in_(ids)))
        found = {row.user_id: row for row in rows}
        return [(found[user_id], by_id[user_id]) for user_id in ids]

    async def count_behind(self, org_id: str, after: Cursor, most: int) -> int:
        """How many members ``page`` lists after this one, at most ``most``."""
        return await count_most(self._connection, _as_joined(org_id, after), most)

    async def count(self, org_id: str) -> int:
        """How many members an organisation has."""
        query = sa.select(sa.func.count()).select_from(_M).where(_M.c.org_id == org_id)
        return int((await self._connection.execute(query)).scalar_one())

    async def set_role(self, org_id: str, user_id: str, role: str, now: float) -> None:
        """Set the role in the organisation."""
        await self._connection.execute(
            _M.update().where(_M.c.org_id == org_id, _M.c.user_id == user_id).values(role=role, updated_at=now)
        )

    async def delete(self, org_id: str, user_id: str) -> None:
        """Delete a membership."""
        await self._connection.execute(_M.delete().where(_M.c.org_id == org_id, _M.c.user_id == user_id))

    async def delete_of_user(self, user_id: str) -> None:
        """Delete every membership of a user."""
        await self._connection.execute(_M.delete().where(_M.c.user_id == user_id))

    async def _all(self, query: sa.Select[*tuple[object, ...]]) -> list[MemberRow]:
        ordered = query.order_by(_M.c.user_id, tables.orgs.c.name)
        return [MemberRow(**row) for row in (await self._connection.execute(ordered)).mappings()]
