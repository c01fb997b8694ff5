"""Queries for pages of tokens: the ids of a page, found through an index regardless of the filters.

Rules:

1. A page costs what its rows cost, not what the table or the tokens of other statuses cost. So each filter has an index
   in the order of the page, and ``tests/unit/store/test_plans.py`` checks the plan of every query.
2. ``listed_as`` chooses the index, and expiry is still compared with the clock: an expired token that is still listed
   as active is found among the active ones in the order of expiry, where it is among the first. ``file_expired`` keeps
   those few. Revocation and removal of the owner set ``listed_as`` in their own transaction.
3. The condition that finds the rows is chosen here (``_leads``) and not by the planner, which would guess: SQLite has
   no statistics unless ANALYZE has run. Every other column is ``unindexed``.
4. Tokens of several organisations (``token_orgs``) are on the list of each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from proxy.core.kinds import OF_ORGS, OF_USERS, Kind, Reach
from proxy.core.model import TokenStatus
from proxy.store import tables
from proxy.store.records import Cursor, TokenEntry
from proxy.store.sql.planner import unindexed

_T, _A, _S = tables.tokens, tables.token_orgs, tables.token_usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Within:
    """Tokens for which all conditions hold; ``None`` is no condition.

    ``lineage`` is the id of a token: that one and all that it minted, directly or through others.
    """

    user_id: str | None = None
    org_id: str | None = None
    reach: Reach | None = None
    lineage: str | None = None
    kind: Kind | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenListQuery:
    """Tokens within any of ``within`` (by default all; none if it is empty) that match the other filters.

    ``expires_by`` selects active tokens that expire until then, in the order of expiry; otherwise the order is that of
    creation. ``position`` is the cursor of either order. ``unused_since`` selects tokens that were neither created nor
    used since then, ``but`` excludes one token.
    """

    within: tuple[Within, ...] = (Within(),)
    kind: Kind | None = None
    status: TokenStatus | None = None
    expires_by: float | None = None
    unused_since: float | None = None
    but: str | None = None

    def position(self, entry: TokenEntry) -> Cursor:
        """The cursor after a page that ends with ``entry``."""
        row = entry.token
        at = row.created_at if self.expires_by is None else row.expires_at
        if at is None:
            raise ValueError("a token without expiry is on no page in the order of expiry")
        return Cursor(created_at=at, id=row.id)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Partition:
    """Tokens listed under one status, and whether their expiry has passed. ``few``: listed wrongly, until corrected."""

    listed_as: TokenStatus | None = None
    past: bool | None = None
    few: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Lead:
    """Conditions that find the rows through one index, and whether the index has them in the order of the page."""

    where: tuple[sa.ColumnElement[bool], ...]
    ordered: bool = False
    source: sa.FromClause = tables.tokens
    expiry: bool = False
    """Whether the index is searched by expiry too."""


_PARTITIONS: Final[dict[TokenStatus | None, tuple[_Partition, ...]]] = {
    None: (_Partition(),),
    TokenStatus.REVOKED: (_Partition(listed_as=TokenStatus.REVOKED),),
    TokenStatus.EXPIRED: (
        _Partition(listed_as=TokenStatus.EXPIRED, past=True),
        _Partition(listed_as=TokenStatus.ACTIVE, past=True, few=True),
    ),
    # The second is for a clock that was set back.
    TokenStatus.ACTIVE: (
        _Partition(listed_as=TokenStatus.ACTIVE, past=False),
        _Partition(listed_as=TokenStatus.EXPIRED, past=False, few=True),
    ),
}


def page_ids(query: TokenListQuery, *, after: Cursor | None, limit: int, now: float) -> sa.Subquery | None:
    """The ``id`` and position (``at``) of the page's tokens; ``None`` if there can be none."""
    status = query.status
    if query.expires_by is not None:
        if status not in (None, TokenStatus.ACTIVE):
            return None
        status = TokenStatus.ACTIVE
    branches = [
        _branch(query, within, partition, lead, now).where(*_after(query, lead, after)).limit(limit)
        for within in query.within
        for partition in _PARTITIONS[status]
        for lead in _leads(query, within, partition)
    ]
    if not branches:
        return None
    if len(branches) == 1:
        return branches[0].subquery("page")
    # A token that two branches find is on the page once.
    together = sa.union(*(sa.select(branch.subquery()) for branch in branches)).subquery()
    return sa.select(together).order_by(together.c.at, together.c.id).limit(limit).subquery("page")


def _leads(query: TokenListQuery, within: Within, partition: _Partition) -> Iterator[_Lead]:
    """The most selective condition: one token's descendants, an owner, the keys, an organisation, or a status."""
    by_creation = query.expires_by is None
    listed = () if partition.listed_as is None else (_T.c.listed_as == partition.listed_as.value,)
    if within.lineage is not None:
        yield _Lead(where=(_T.c.id.in_(lineage(within.lineage)),))
    elif within.user_id is not None:
        yield _Lead(where=(_T.c.user_id == within.user_id, *listed), ordered=by_creation)
    elif query.kind in OF_ORGS:
        org = () if within.org_id is None else (_T.c.org_id == within.org_id,)
        yield _Lead(where=(tables.KEYS, *org), ordered=by_creation)
    elif partition.few:
        yield _Lead(where=listed, expiry=True)
    elif within.org_id is not None:
        yield _Lead(where=(_T.c.org_id == within.org_id, *listed), ordered=by_creation)
    else:
        yield _Lead(where=listed, expiry=not by_creation, ordered=True)
    if within.org_id is not None and within.user_id is None and query.kind not in OF_USERS:
        attached = _A.join(_T, _T.c.id == _A.c.token_id)
        yield _Lead(where=(_A.c.org_id == within.org_id,), source=attached)


def _branch(query: TokenListQuery, within: Within, partition: _Partition, lead: _Lead, now: float) -> sa.Select[Any]:
    """All tokens of one partition that the lead finds and that match, in the order of the page."""
    expires = _T.c.expires_at if lead.expiry else unindexed(_T.c.expires_at)
    where = list(lead.where)
    if partition.listed_as is not None:
        where.append(unindexed(_T.c.listed_as) == partition.listed_as.value)
    if partition.past is True:
        where.append(expires <= now)
    elif partition.past is False:
        later = expires > now
        where.append(later if partition.few or query.expires_by is not None else sa.or_(expires.is_(None), later))
    if query.expires_by is not None:
        where.append(expires <= query.expires_by)
    if query.kind is not None:
        where.append(unindexed(_T.c.kind) == query.kind.value)
    if query.unused_since is not None:
        used = sa.select(_S.c.last_used_at).where(_S.c.token_id == _T.c.id).scalar_subquery()
        where.append(sa.func.coalesce(used, unindexed(_T.c.created_at)) < query.unused_since)
        # Implied by the condition above; it makes the index scan end there and not at the newest token.
        where.append((_T.c.created_at if lead.ordered else unindexed(_T.c.created_at)) < query.unused_since)
    if query.but is not None:
        where.append(unindexed(_T.c.id) != query.but)
    if within.kind is not None:
        where.append(unindexed(_T.c.kind) == within.kind.value)
    if within.reach is not None:
        where.append(unindexed(_T.c.reach) == within.reach.value)
    if within.user_id is not None:
        where.append(unindexed(_T.c.user_id) == within.user_id)
    if within.org_id is not None and lead.source is _T:
        where.append(unindexed(_T.c.org_id) == within.org_id)
    at = _place(query, lead)
    return sa.select(_T.c.id, _at(query).label("at")).select_from(lead.source).where(*where).order_by(at, _T.c.id)


def _after(query: TokenListQuery, lead: _Lead, after: Cursor | None) -> tuple[sa.ColumnElement[bool], ...]:
    if after is None:
        return ()
    return (sa.tuple_(_place(query, lead), _T.c.id) > sa.tuple_(after.created_at, after.id),)


def _at(query: TokenListQuery) -> sa.ColumnElement[float]:
    return _T.c.created_at if query.expires_by is None else _T.c.expires_at


def _place(query: TokenListQuery, lead: _Lead) -> sa.ColumnElement[float]:
    return _at(query) if lead.ordered else unindexed(_at(query))


def lineage(token_id: str) -> sa.Select[tuple[str]]:
    """The ids of a token and of all that it minted, directly or through others."""
    made = sa.select(sa.literal(token_id).label("id")).cte(recursive=True)
    made = made.union(sa.select(_T.c.id).join(made, _T.c.parent_id == made.c.id))
    return sa.select(made.c.id)
