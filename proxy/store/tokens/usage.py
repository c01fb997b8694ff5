"""What tokens were used for, added up: no decision depends on it, so there is no change row and no epoch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import tables

_T, _U = tables.tokens, tables.token_usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """``count`` requests with one token, the last of them at ``at`` (unix seconds) from ``ip``."""

    token_id: str
    count: int
    at: float
    ip: str

    def plus(self, other: Use) -> Use:
        """Both added up."""
        last = other if other.at >= self.at else self
        return replace(last, count=self.count + other.count)


# A token that is not there (any more) selects nothing.
_NEW = insert(_U).from_select(
    ["token_id", "last_used_at", "last_used_ip", "use_count"],
    sa.select(
        _T.c.id,
        sa.bindparam("at", type_=sa.Double),
        sa.bindparam("ip", type_=sa.String),
        sa.bindparam("count", type_=sa.BigInteger),
    ).where(_T.c.id == sa.bindparam("token_id")),
)
# Two workers may tell of the same token, and the earlier use may be told later.
_LATER = sa.or_(_U.c.last_used_at.is_(None), _NEW.excluded.last_used_at >= _U.c.last_used_at)
_ADD = _NEW.on_conflict_do_update(
    index_elements=[_U.c.token_id],
    set_={
        "use_count": _U.c.use_count + _NEW.excluded.use_count,
        "last_used_at": sa.case((_LATER, _NEW.excluded.last_used_at), else_=_U.c.last_used_at),
        "last_used_ip": sa.case((_LATER, _NEW.excluded.last_used_ip), else_=_U.c.last_used_ip),
    },
)


async def add(connection: AsyncConnection, uses: Iterable[Use]) -> None:
    """Add these uses to what is known of their tokens; those of unknown tokens are left out."""
    rows = [asdict(use) for use in uses]
    if rows:
        await connection.execute(_ADD, rows)
