"""Querying the audit log: filtered pages, through an index regardless of the filters.

Rules:

1. One condition leads: the first of ``_LEADS`` in the query, answered by its index; otherwise the index of time. The
   index has the events in the order of the page, so a page costs what its rows cost. Every other column is
   ``unindexed``, so that the planner does not choose another index.
2. Conditions that do not lead are tested row by row, for at most ``LOOKED_AT`` or ``LOOKED_UP`` events. A page with few
   or no matches still has a position to continue from.
3. Pages are in the order of time, then of number. For a client that follows the log they are in the order of number
   alone: request events are recorded some seconds after they happened, and newly recorded events have greater numbers.
4. A list from the oldest event on ends with the event that was the newest when its first page was requested.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import tables
from proxy.store.audit.chain import Mark, head
from proxy.store.sql.planner import unindexed

_T, _U, _O = tables.audit_events, tables.users, tables.orgs
LOOKED_AT: Final = 50_000
"""Events that a page reads if they are adjacent in the index: 50 ms from memory."""
LOOKED_UP: Final = 10_000
"""Events that a page reads if an index names them one by one: 50 ms, or a second from a slow disk."""
_YIELD_EVERY: Final = 100
"""Events that are converted before the event loop may run other tasks."""
_LEADS: Final = ("target_id", "actor_id", "actor_name", "user_id", "org_id")
"""From the most selective column to the least."""
_EQUAL: Final = (*_LEADS, "actor_kind", "target_kind", "level", "reason", "address")
_USUAL: Final = frozenset({"done", "allowed"})
_ENTRIES: Final = sa.select(
    *(column for column in _T.columns if column.name not in ("details", "prev_hash", "hash")),
    sa.type_coerce(_T.c.details, sa.Text).label("details"),
    # Subqueries, so that they run for the rows of the page and not for every row that is read.
    sa.func.coalesce(sa.select(_O.c.name).where(_O.c.id == _T.c.org_id).scalar_subquery(), "").label("org_name"),
    sa.func.coalesce(sa.select(_U.c.email).where(_U.c.id == _T.c.user_id).scalar_subquery(), "").label("email"),
)


class SortOrder(StrEnum):
    """The order of a list of events: by time, or by the number under which they were recorded."""

    NEWEST = "newest"
    OLDEST = "oldest"
    RECORDED = "recorded"


@dataclass(frozen=True, kw_only=True, slots=True)
class LogQuery:
    """A filter of events: all conditions must hold; ``None`` is no condition, "" selects events without a value.

    ``since`` (included) and ``until`` (not included) are unix seconds. ``action`` may be a prefix that ends with a dot.
    ``request_id`` is that of a request or of a decision.
    """

    target_id: str | None = None
    actor_id: str | None = None
    actor_name: str | None = None
    user_id: str | None = None
    org_id: str | None = None
    request_id: str | None = None
    actor_kind: str | None = None
    target_kind: str | None = None
    level: str | None = None
    action: str | None = None
    outcomes: tuple[str, ...] | None = None
    reason: str | None = None
    address: str | None = None
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LogPosition:
    """The event after which a page continues. ``last`` is the newest event that the list contains (rule 4)."""

    at: float
    n: int
    last: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LogEntry:
    """An event for display, with the current names of its organisation and its user; "" if there is none."""

    n: int
    at: float
    level: str
    org_id: str
    org_name: str
    actor_kind: str
    actor_id: str
    actor_name: str
    action: str
    target_kind: str
    target_id: str
    target_name: str
    outcome: str
    reason: str
    address: str
    request_id: str
    decision_id: str
    epoch: int
    user_id: str
    email: str
    details: Mapping[str, object]


@dataclass(frozen=True, kw_only=True, slots=True)
class LogEntries:
    """A page. ``place`` is the position to continue from; ``None`` at the end. ``RECORDED`` has no end."""

    entries: list[LogEntry]
    place: LogPosition | None


class AuditQueries:
    """Reading the audit log, over the connection of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def head(self) -> Mark:
        """The newest event."""
        return await head(self._connection)

    async def newest(self, *, limit: int) -> list[LogEntry]:
        """The newest events without a filter, the newest first."""
        return (await self.page(LogQuery(), SortOrder.NEWEST, None, limit)).entries

    async def page(self, query: LogQuery, order: SortOrder, after: LogPosition | None, limit: int) -> LogEntries:
        """At most ``limit`` events, after ``after`` if given."""
        if order is SortOrder.RECORDED:
            return await self._recorded(query, 0 if after is None else after.n, limit)
        last = None
        if order is SortOrder.OLDEST:
            last = (await self.head()).n if after is None or after.last is None else after.last
        lead, rest = _split(query)
        # A request has few events; sorting them is cheap.
        at = _T.c.at if query.request_id is None else unindexed(_T.c.at)
        where = [*lead, *_period(query, at)]
        if after is not None:
            where.append(_behind(order, at, after))
        bound = None
        if rest and query.request_id is None:
            bound = await self._bound(where, order, last, LOOKED_UP if lead else LOOKED_AT)
        if bound is not None:
            where.append(sa.not_(_behind(order, at, bound)))
        if last is not None:
            rest.append(unindexed(_T.c.n) <= last)
        found = await self._entries(_ENTRIES.where(*where, *rest).order_by(*_by(order, at)).limit(limit + 1))
        if len(found) > limit:
            end = found[limit - 1]
            return LogEntries(entries=found[:limit], place=LogPosition(at=end.at, n=end.n, last=last))
        return LogEntries(entries=found, place=bound)

    async def _recorded(self, query: LogQuery, after: int, limit: int) -> LogEntries:
        until = min(after + LOOKED_AT, (await self.head()).n)
        where = [_T.c.n > after, _T.c.n <= until, *_all(query)]
        found = await self._entries(_ENTRIES.where(*where).order_by(_T.c.n).limit(limit))
        n = found[-1].n if len(found) == limit else max(after, until)
        return LogEntries(entries=found, place=LogPosition(at=0.0, n=n))

    async def _bound(
        self, where: list[sa.ColumnElement[bool]], order: SortOrder, last: int | None, most: int
    ) -> LogPosition | None:
        """The last event to read (rule 2), found in the index alone; ``None`` if there are fewer."""
        query = sa.select(_T.c.at, _T.c.n).where(*where).order_by(*_by(order, _T.c.at)).limit(1).offset(most - 1)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else LogPosition(at=row[0], n=row[1], last=last)

    async def _entries(self, query: sa.Select[Any]) -> list[LogEntry]:
        found = await self._connection.execute(query)
        names = tuple(found.keys())
        entries = []
        for row in found:
            entries.append(_entry(dict(zip(names, row, strict=True))))
            if len(entries) % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
        return entries


def _split(query: LogQuery) -> tuple[list[sa.ColumnElement[bool]], list[sa.ColumnElement[bool]]]:
    """The leading condition (rule 1), if there is one, and all others except those of time."""
    if query.request_id is not None:
        own, asked = _T.c.decision_id == query.request_id, _T.c.request_id == query.request_id
        return [sa.or_(own, sa.and_(tables.EVENT_ASKED, asked))], _others(query)
    for name in _LEADS:
        value = getattr(query, name)
        if value:
            return [tables.EVENT_HAS[name], _T.c[name] == value], _others(query, name)
    if query.outcomes is not None and _USUAL.isdisjoint(query.outcomes):
        return [tables.EVENT_UNUSUAL], _others(query)
    return [], _others(query)


def _others(query: LogQuery, lead: str = "") -> list[sa.ColumnElement[bool]]:
    found = []
    for name in _EQUAL:
        value = getattr(query, name)
        if name != lead and value is not None:
            found.append(unindexed(_T.c[name]) == value)
    if query.outcomes is not None:
        found.append(unindexed(_T.c.outcome).in_(query.outcomes))
    if query.action is not None:
        found.append(_is_action(query.action))
    return found


def _all(query: LogQuery) -> list[sa.ColumnElement[bool]]:
    found = [*_others(query), *_period(query, unindexed(_T.c.at))]
    if query.request_id is not None:
        own, asked = unindexed(_T.c.decision_id), unindexed(_T.c.request_id)
        found.append(sa.or_(own == query.request_id, asked == query.request_id))
    return found


def _is_action(action: str) -> sa.ColumnElement[bool]:
    column = unindexed(_T.c.action)
    if not action.endswith("."):
        return column == action
    # In the order of bytes this is exactly the texts with this prefix: "/" comes right after "."
    return sa.and_(column >= action, column < action[:-1] + "/")


def _period(query: LogQuery, at: sa.ColumnElement[float]) -> list[sa.ColumnElement[bool]]:
    since = [] if query.since is None else [at >= query.since]
    return since if query.until is None else [*since, at < query.until]


def _behind(order: SortOrder, at: sa.ColumnElement[float], place: LogPosition) -> sa.ColumnElement[bool]:
    here, there = sa.tuple_(at, _T.c.n), sa.tuple_(place.at, place.n)
    return here < there if order is SortOrder.NEWEST else here > there


def _by(order: SortOrder, at: sa.ColumnElement[float]) -> tuple[sa.ColumnElement[Any], ...]:
    return (at.desc(), _T.c.n.desc()) if order is SortOrder.NEWEST else (at, _T.c.n)


def _entry(values: dict[str, Any]) -> LogEntry:
    try:
        details = json.loads(values["details"])
    except (ValueError, TypeError, RecursionError):
        details = None
    # A tampered row must not make the rest of the page unreadable; ``patgate audit verify`` reports it.
    values["details"] = details if isinstance(details, dict) else {"unreadable": True}
    return LogEntry(**values)
