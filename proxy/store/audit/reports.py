"""Counts of requests that report-only routes would have refused, by route, reason, permission and token.

There are at most ``LIMIT`` rows: new combinations beyond them are counted by route and reason alone, without permission
and token. Each writer at the same time may exceed that by one batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import dialects, tables
from proxy.store.dialects.dialect import Columns, Dialect

LIMIT: Final = 10_000

_T, _N, _U = tables.route_reports, tables.tokens, tables.users
_KEYS: Final = ("route", "reason", "permission", "token_id")


def _added(new: Columns) -> dict[str, sa.ColumnElement[Any]]:
    later = new.last_at >= _T.c.last_at
    return {
        "count": _T.c.count + new["count"],
        "first_at": sa.case((new.first_at < _T.c.first_at, new.first_at), else_=_T.c.first_at),
        **{name: sa.case((later, new[name]), else_=_T.c[name]) for name in ("method", "decision_id", "last_at")},
    }


@cache
def _add(dialect: Dialect) -> sa.Insert:
    columns = [column.name for column in _T.columns]
    return dialect.upsert(_T, columns, None, keys=[_T.c[key] for key in _KEYS], update=_added)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """``count`` requests that would have been refused, between ``first_at`` and ``last_at`` (unix seconds).

    ``permission`` is the missing permission, ``token_id`` the token they presented ("" for none that is known);
    ``method`` and ``decision_id`` are those of the last request.
    """

    route: str
    reason: str
    permission: str
    token_id: str
    count: int
    first_at: float
    last_at: float
    method: str
    decision_id: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The key under which reports are added up."""
        return self.route, self.reason, self.permission, self.token_id

    def plus(self, other: Report) -> Report:
        """The sum of both, under the key of this one."""
        last = other if other.last_at >= self.last_at else self
        return replace(
            self,
            count=self.count + other.count,
            first_at=min(self.first_at, other.first_at),
            last_at=last.last_at,
            method=last.method,
            decision_id=last.decision_id,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedReport:
    """A report with the token's prefix and name and its owner's email; "" if there is none (any more)."""

    report: Report
    prefix: str
    name: str
    email: str


class ReportsTable:
    """The table of reports, over the connection of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, reports: Sequence[Report]) -> None:
        """Add these to the stored counts. An unknown token is stored as none."""
        if not reports:
            return
        reports = await self._of_known_tokens(reports)
        count = (await self._connection.execute(sa.select(sa.func.count()).select_from(_T))).scalar_one()
        room = LIMIT - int(count)
        if len(reports) > room:
            reports = await self._limited(reports, room)
        # In the order of the keys, so that two writers wait for each other but never each for the other.
        rows = [asdict(report) for report in sorted(reports, key=lambda report: report.key)]
        await self._connection.execute(_add(dialects.of_connection(self._connection)), rows)

    async def all(self) -> list[Report]:
        """Every report, the most frequent first."""
        query = sa.select(_T).order_by(_T.c.count.desc(), *(_T.c[key] for key in _KEYS))
        return [Report(**row) for row in (await self._connection.execute(query)).mappings()]

    async def named(self, since: float | None) -> list[NamedReport]:
        """Every report whose last request was at ``since`` (unix seconds) or later."""
        query = sa.select(
            _T,
            sa.func.coalesce(_N.c.prefix, "").label("prefix"),
            sa.func.coalesce(_N.c.name, "").label("name"),
            sa.func.coalesce(_U.c.email, "").label("email"),
        ).select_from(_T.outerjoin(_N, _N.c.id == _T.c.token_id).outerjoin(_U, _U.c.id == _N.c.user_id))
        if since is not None:
            query = query.where(_T.c.last_at >= since)
        return [_named(dict(row)) for row in (await self._connection.execute(query)).mappings()]

    async def clear(self, route: str | None = None) -> int:
        """Delete every report, or those of one route. Returns how many there were."""
        query = _T.delete() if route is None else _T.delete().where(_T.c.route == route)
        return (await self._connection.execute(query)).rowcount

    async def _of_known_tokens(self, reports: Sequence[Report]) -> list[Report]:
        ids = {report.token_id for report in reports if report.token_id}
        query = sa.select(tables.tokens.c.id).where(tables.tokens.c.id.in_(ids))
        known = set((await self._connection.execute(query)).scalars()) if ids else set()
        return _merged(
            report if not report.token_id or report.token_id in known else replace(report, token_id="")
            for report in reports
        )

    async def _limited(self, reports: Sequence[Report], room: int) -> list[Report]:
        """The same reports with at most ``room`` new rows; further ones lose their permission and token."""
        limited = []
        for report in reports:
            if not await self._has(report):
                room -= 1
                if room < 0:
                    report = replace(report, permission="", token_id="")
            limited.append(report)
        return _merged(limited)

    async def _has(self, report: Report) -> bool:
        query = sa.select(sa.true()).where(
            *(_T.c[name] == value for name, value in zip(_KEYS, report.key, strict=True))
        )
        return (await self._connection.execute(query)).first() is not None


def _named(values: dict[str, Any]) -> NamedReport:
    prefix, name, email = (values.pop(key) for key in ("prefix", "name", "email"))
    return NamedReport(report=Report(**values), prefix=prefix, name=name, email=email)


def _merged(reports: Iterable[Report]) -> list[Report]:
    """One report for each key, the sum of all with that key."""
    found: dict[tuple[str, str, str, str], Report] = {}
    for report in reports:
        held = found.get(report.key)
        found[report.key] = report if held is None else held.plus(report)
    return list(found.values())
