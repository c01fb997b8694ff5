"""All that decides about tokens, in one statement.

One statement is one snapshot on every database, so the epoch that it reads is exactly the epoch of the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import repeat
from typing import Any

import sqlalchemy as sa

from proxy.core.model import Kind, Reach, TokenStatus, UserStatus
from proxy.store import tables
from proxy.store.engine import Database, Prepared
from proxy.store.records import GrantRows, TokenGrantRow

_T, _U, _O, _M, _R = tables.tokens, tables.users, tables.orgs, tables.members, tables.roles
_EPOCH = sa.select(sa.func.coalesce(sa.func.max(tables.changes.c.epoch), 0).label("as_of")).subquery("epoch")

# Whose role counts: a key's own, the membership's in the token's organisation, or the owner's in the account.
_ROLE = sa.case((_T.c.kind == Kind.KEY.value, _T.c.role), (_T.c.org_id.is_not(None), _M.c.role), else_=_U.c.role)


@cache
def _query(size: int) -> Prepared:
    """The query for so many ids."""
    ids: list[sa.BindParameter[str]] = [sa.bindparam(name) for name in _names(size)]
    return Prepared(
        sa.select(
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
        ).select_from(
            _EPOCH.outerjoin(_T, _T.c.id.in_(ids))
            .outerjoin(_U, _U.c.id == _T.c.user_id)
            .outerjoin(_O, _O.c.id == _T.c.org_id)
            .outerjoin(_M, sa.and_(_M.c.org_id == _T.c.org_id, _M.c.user_id == _T.c.user_id))
            .outerjoin(_R, _R.c.name == _ROLE)
        )
    )


def _names(size: int) -> list[str]:
    return [f"id_{n}" for n in range(size)]


async def read(database: Database, token_ids: Sequence[str]) -> GrantRows:
    """The tokens (one id at least) with everything that they depend on, and the epoch that this is as of."""
    # Few sizes, so few statements to prepare: the last id fills what is left over, and changes nothing.
    size = 1 << (len(token_ids) - 1).bit_length()
    filled = [*token_ids, *repeat(token_ids[-1], size - len(token_ids))]
    rows = await database.rows(_query(size), dict(zip(_names(size), filled, strict=True)))
    # Without any token there is still one row, with the epoch alone.
    return GrantRows(as_of=rows[0][0], tokens={row[1]: _token(row) for row in rows if row[1] is not None})


def _token(row: tuple[Any, ...]) -> TokenGrantRow:
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
    )
