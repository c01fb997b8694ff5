"""Report-only findings: lists and clears what routes with ``enforce: false`` would have refused; lists the routes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from proxy.core.dependency_keys import ROUTE_REPORTS
from proxy.core.model import Actor
from proxy.core.reasons import TABLE, Reason
from proxy.core.routes import Route, RouteTable
from proxy.services.audit.vocabulary import read_moment
from proxy.services.caller import AccountEntity, AccountOperation, load_caller
from proxy.services.views import rfc3339
from proxy.store.audit.reports import NamedReport, Report
from proxy.store.store import Store

TOKENS_SHOWN: Final = 20
"""The most tokens listed for a route and reason, the most frequent first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteView:
    """A route as configured; ``number`` is its position, starting at 1."""

    number: int
    route: Route

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        route = self.route
        return {
            "number": self.number,
            "path": route.path,
            "host": route.host,
            "query": {name.decode(): value.decode() for name, value in route.query} or None,
            "methods": None if route.methods is None else sorted(route.methods),
            "access": route.access.value,
            "upstream": route.upstream or None,
            "strip_prefix": route.strip_prefix or None,
            "entity": route.entity,
            "id": route.entity_id,
            "operations": dict(route.effective_operations),
            "enforce": route.enforce,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenCount:
    """How many requests of one token would have been refused. The texts are empty without an existing token."""

    id: str
    prefix: str
    name: str
    email: str
    count: int

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {
            "id": self.id or None,
            "prefix": self.prefix or None,
            "name": self.name or None,
            "user": self.email or None,
            "count": self.count,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportView:
    """The requests that one route would have refused for one reason.

    ``permissions`` are the missing ones, each with its count. ``enforce`` is the route's present setting, None if the
    route no longer exists.
    ``tokens_total`` counts the tokens, of which ``tokens`` are the most frequent. Times are unix seconds.
    """

    route: str
    reason: str
    enforce: bool | None
    count: int
    first_at: float
    last_at: float
    last_method: str
    last_decision: str
    permissions: Mapping[str, int]
    tokens: tuple[TokenCount, ...]
    tokens_total: int

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {
            "route": self.route,
            "reason": self.reason,
            "status": _STATUS.get(self.reason),
            "enforce": self.enforce,
            "count": self.count,
            "first_at": rfc3339(self.first_at),
            "last_at": rfc3339(self.last_at),
            "last_method": self.last_method,
            "last_decision": self.last_decision,
            "permissions": [{"permission": text, "count": count} for text, count in self.permissions.items()],
            "tokens": [token.as_dict() for token in self.tokens],
            "tokens_total": self.tokens_total,
        }


_STATUS: Final = {reason.value: TABLE[reason].status for reason in Reason}


class ReportService:
    """Lists the routes in use, and lists and clears their reports. All methods raise StoreUnavailable."""

    def __init__(self, store: Store, clock: Callable[[], float], routes: RouteTable) -> None:
        self._store = store
        self._clock = clock
        self._routes = routes.routes

    async def routes(self, actor: Actor) -> list[RouteView]:
        """Every route, in the order of matching. Raises Forbidden, Unauthenticated."""
        async with self._store.read() as rows:
            (await load_caller(rows, actor, self._clock())).require(AccountEntity.ROUTES, AccountOperation.LIST)
        return [RouteView(number=place, route=route) for place, route in enumerate(self._routes, 1)]

    async def list(self, actor: Actor, since: str | None = None) -> list[ReportView]:
        """The requests that would have been refused, by route and reason, the most frequent first.

        ``since`` (RFC 3339, or a duration before now) omits entries last seen before it; the counts are always those
        since the first report, or since the reports were cleared. Raises Invalid, Forbidden, Unauthenticated.
        """
        after = read_moment(since, self._clock(), "since")
        async with self._store.read() as rows:
            (await load_caller(rows, actor, self._clock())).require(AccountEntity.ROUTES, AccountOperation.LIST)
            found = await rows.reports.named(after)
        return sorted(map(self._view, _grouped(found)), key=_most_first)

    async def clear(self, actor: Actor, route: str | None = None) -> int:
        """Delete the reports, or those of the route with this path; returns their number.

        Raises Forbidden, Unauthenticated.
        """
        async with self._store.change(actor, self._clock()) as change:
            (await load_caller(change, actor, change.now)).require(AccountEntity.ROUTES, AccountOperation.DELETE)
            count = await change.reports.clear(route)
            if count:
                change.touched(ROUTE_REPORTS)
                target = "*" if route is None else route
                change.audit(
                    "account.routes.clear",
                    target_kind="route",
                    target_id=target[:128],
                    target_name=target,
                    details={"reports": count},
                )
        return count

    def _view(self, group: Sequence[NamedReport]) -> ReportView:
        reports = [named.report for named in group]
        last = max(reports, key=_last)
        tokens = _tokens(group)
        return ReportView(
            route=last.route,
            reason=last.reason,
            # Routes with one path differ by host or method; the route that reports is not the enforced one.
            enforce=next(
                (route.enforce for route in sorted(self._routes, key=_enforced) if route.name == last.route), None
            ),
            count=sum(report.count for report in reports),
            first_at=min(report.first_at for report in reports),
            last_at=last.last_at,
            last_method=last.method,
            last_decision=last.decision_id,
            permissions=_counted((report.permission, report.count) for report in reports if report.permission),
            tokens=tokens[:TOKENS_SHOWN],
            tokens_total=len(tokens),
        )


def _grouped(found: Iterable[NamedReport]) -> Iterable[list[NamedReport]]:
    """The reports grouped by route and reason."""
    groups: dict[tuple[str, str], list[NamedReport]] = {}
    for named in found:
        groups.setdefault((named.report.route, named.report.reason), []).append(named)
    return groups.values()


def _tokens(group: Sequence[NamedReport]) -> tuple[TokenCount, ...]:
    counts = _counted((named.report.token_id, named.report.count) for named in group)
    known = {named.report.token_id: named for named in group}
    return tuple(
        TokenCount(id=id_, prefix=known[id_].prefix, name=known[id_].name, email=known[id_].email, count=count)
        for id_, count in counts.items()
    )


def _counted(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The sum for each text, the largest first."""
    sums: dict[str, int] = {}
    for text, count in pairs:
        sums[text] = sums.get(text, 0) + count
    return dict(sorted(sums.items(), key=_by_count))


def _by_count(pair: tuple[str, int]) -> tuple[int, str]:
    return -pair[1], pair[0]


def _most_first(view: ReportView) -> tuple[int, str, str]:
    return -view.count, view.route, view.reason


def _last(report: Report) -> float:
    return report.last_at


def _enforced(route: Route) -> bool:
    return route.enforce
