"""Reading everything that a token's grant depends on, in one statement.

One statement is one snapshot on every database, so the epoch that it reads is exactly the epoch of the other rows, and
the history says which database has answered.
A token that reaches several organisations yields a row for each of them; every other token yields one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import repeat
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.kinds import OF_ORGS, Kind, Reach
from proxy.core.model import TokenStatus, UserStatus
from proxy.store import tables
from proxy.store.dialects.dialect import Database, Dialect
from proxy.store.engine import Prepared
from proxy.store.records import GrantRows, OrgGrantRow, TokenGrantRow
from proxy.store.sql.expressions import History

_T, _U, _O, _M, _R = tables.tokens, tables.users, tables.orgs, tables.members, tables.roles
_EACH, _ATTACHED, _REACHED, _THERE = _M.alias("each"), tables.token_orgs, _O.alias("reached"), _R.alias("there")
_EPOCH = sa.select(
    sa.func.coalesce(sa.func.max(tables.changes.c.epoch), 0).label("as_of"), History().label("history")
).subquery("epoch")

# Whose role counts: a key's own, the membership's in the token's organisation, or the owner's in the account.
_ROLE = sa.case(
    (sa.or_(*(_T.c.kind == kind.value for kind in OF_ORGS)), _T.c.role),
    (_T.c.org_id.is_not(None), _M.c.role),
    else_=_U.c.role,
)

# What finds each of several organisations: null for a token of another reach, which then reads no such rows.
_ACCOUNT = sa.case((_T.c.reach == Reach.ACCOUNT.value, _T.c.user_id))
_ATTACHABLE = sa.case((_T.c.reach == Reach.ORGS.value, _T.c.id))
_ORG_ID = sa.func.coalesce(_EACH.c.org_id, _ATTACHED.c.org_id)


@cache
def _select(size: int) -> sa.Select[*tuple[Any, ...]]:
    """The query for ``size`` ids."""
    ids: list[sa.BindParameter[str]] = [sa.bindparam(name) for name in _names(size)]
    columns = (
        _EPOCH.c.as_of,
        _T.c.id,
        _T.c.prefix,
        _T.c.kind,
        _T.c.reach,
        _T.c.name,
        _T.c.user_id,
        _T.c.org_id,
        _T.c.scopes,
        _T.c.status,
        _T.c.digest,
        _T.c.expires_at,
        _U.c.email,
        _U.c.status,
        _O.c.name,
        _O.c.status,
        _M.c.role,
        _ROLE,
        _R.c.permissions,
        _REACHED.c.id,
        _REACHED.c.name,
        _REACHED.c.status,
        _EACH.c.role,
        _THERE.c.permissions,
        _ATTACHED.c.permissions,
        _T.c.created_at,
        _T.c.rotated_at,
        _REACHED.c.policy,
        _T.c.ip_ranges,
        _EPOCH.c.history,
    )
    return sa.select(*columns).select_from(
        _EPOCH.outerjoin(_T, _T.c.id.in_(ids))
        .outerjoin(_U, _U.c.id == _T.c.user_id)
        .outerjoin(_O, _O.c.id == _T.c.org_id)
        .outerjoin(_M, sa.and_(_M.c.org_id == _T.c.org_id, _M.c.user_id == _T.c.user_id))
        .outerjoin(_R, _R.c.name == _ROLE)
        .outerjoin(_EACH, _EACH.c.user_id == _ACCOUNT)
        .outerjoin(_ATTACHED, _ATTACHED.c.token_id == _ATTACHABLE)
        .outerjoin(_REACHED, _REACHED.c.id == _ORG_ID)
        .outerjoin(_THERE, _THERE.c.name == _EACH.c.role)
    )


@cache
def _query(size: int) -> Prepared:
    return Prepared(_select(size))


def prepare(most: int, dialect: Dialect) -> None:
    """Compile the queries for up to ``most`` ids, so that the first of each size is as fast as the next."""
    size = 1
    while size <= most:
        _query(size).compiled(dialect.sql)
        size *= 2


def _names(size: int) -> list[str]:
    return [f"id_{n}" for n in range(size)]


async def read(database: Database, token_ids: Sequence[str]) -> GrantRows:
    """The tokens (at least one id) with everything that they depend on, and the epoch of that state."""
    size, values = _values(token_ids)
    return _grant_rows(await database.rows(_query(size), values))


async def read_within(connection: AsyncConnection, token_ids: Sequence[str]) -> GrantRows:
    """As ``read``, within the transaction of this connection; the epoch is that of the last change before it."""
    size, values = _values(token_ids)
    return _grant_rows([tuple(row) for row in await connection.execute(_select(size), values)])


def _values(token_ids: Sequence[str]) -> tuple[int, dict[str, object]]:
    """The size of the query for these ids, and its parameters."""
    # Few sizes, so few statements to prepare: the last id is repeated, which changes nothing.
    size = 1 << (len(token_ids) - 1).bit_length()
    filled = [*token_ids, *repeat(token_ids[-1], size - len(token_ids))]
    return size, dict(zip(_names(size), filled, strict=True))


def _grant_rows(rows: Sequence[tuple[Any, ...]]) -> GrantRows:
    # If no token is found there is still one row, with the epoch alone.
    orgs: dict[str, list[OrgGrantRow]] = {}
    for row in rows:
        if row[19] is not None:
            orgs.setdefault(row[1], []).append(_org(row))
    tokens = {row[1]: row for row in rows if row[1] is not None}
    return GrantRows(
        as_of=rows[0][0],
        tokens={id_: _token(row, tuple(orgs.get(id_, ()))) for id_, row in tokens.items()},
        history=rows[0][29],
    )


def _org(row: tuple[Any, ...]) -> OrgGrantRow:
    role = row[22]
    return OrgGrantRow(
        org_id=row[19],
        org_name=row[20],
        status=row[21],
        role=role,
        permissions=row[24] if role is None else row[23],
        policy=row[27],
    )


def _token(row: tuple[Any, ...], orgs: tuple[OrgGrantRow, ...]) -> TokenGrantRow:
    return TokenGrantRow(
        id=row[1],
        prefix=row[2],
        kind=Kind(row[3]),
        reach=Reach(row[4]),
        name=row[5],
        user_id=row[6],
        org_id=row[7],
        scopes=row[8],
        status=TokenStatus(row[9]),
        digest=row[10],
        expires_at=row[11],
        email=row[12],
        user_status=None if row[13] is None else UserStatus(row[13]),
        org_name=row[14],
        org_status=row[15],
        member_role=row[16],
        role=row[17],
        permissions=row[18],
        orgs=orgs,
        created_at=row[25],
        rotated_at=row[26],
        ip_ranges=row[28],
    )
