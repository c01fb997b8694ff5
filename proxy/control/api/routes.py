"""Route operations: listing the configured routes, and the refusals that report-only routes have recorded."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from proxy.control.api.audit import Moment
from proxy.control.api.operation import Call, DictView, Method, NoBody, NoQuery, Operation, View, listing
from proxy.control.models import Listing, Query, ResponseModel, Time
from proxy.services.paging import Page


class ReportQuery(Query):
    """Filters for reports."""

    since: Annotated[Moment | None, Field(description="Only reports since this time, or since this long ago.")] = None


class ClearQuery(Query):
    """The reports to clear."""

    route: Annotated[str | None, Field(min_length=1, max_length=200, description="Only those of this route.")] = None


class Route(ResponseModel):
    """A route; the first that matches a request applies. `operations` are by method."""

    number: int
    path: str
    host: str | None
    query: dict[str, str] | None
    methods: list[str] | None
    access: Literal["token", "public", "passthrough", "denied"]
    upstream: str | None
    strip_prefix: str | None
    entity: str | None
    id: str | None
    operations: dict[str, str]
    enforce: bool


class Routes(Listing):
    """All routes, in the order in which they are tried, on one page."""

    items: list[Route]


class LackingPermission(ResponseModel):
    """A permission that requests lacked."""

    permission: str
    count: int


class ReportedToken(ResponseModel):
    """A token whose requests would have been refused; null without a token, or if it was deleted."""

    id: str | None
    prefix: str | None
    name: str | None
    user: str | None
    count: int


class RouteReport(ResponseModel):
    """Requests that a route would have refused for one reason. `enforce` is null if the route no longer exists."""

    route: str
    reason: str
    status: int | None
    enforce: bool | None
    count: int
    first_at: Time
    last_at: Time
    last_method: str
    last_decision: str
    permissions: list[LackingPermission]
    tokens: Annotated[list[ReportedToken], Field(description="The most frequent ones.")]
    tokens_total: int


class RouteReports(Listing):
    """By route and reason, the most frequent first, on one page."""

    items: list[RouteReport]


class Cleared(ResponseModel):
    """How many entries were cleared."""

    cleared: int


async def list_routes(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``routes.list``."""
    return listing(Page(items=await call.services.reports.routes(call.actor), next_cursor=None))


async def report(call: Call[NoBody, ReportQuery]) -> View:
    """Handle ``routes.report``."""
    return listing(Page(items=await call.services.reports.list(call.actor, call.query.since), next_cursor=None))


async def clear(call: Call[NoBody, ClearQuery]) -> View:
    """Handle ``routes.clear_report``."""
    return DictView(members={"cleared": await call.services.reports.clear(call.actor, call.query.route)})


OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    Operation(
        name="routes.list",
        method=Method.GET,
        path="/routes",
        summary="List the configured routes",
        run=list_routes,
        answer=Routes,
    ),
    Operation(
        name="routes.report",
        method=Method.GET,
        path="/routes/report",
        summary="List what report-only routes would have refused",
        run=report,
        query=ReportQuery,
        answer=RouteReports,
    ),
    Operation(
        name="routes.clear_report",
        method=Method.DELETE,
        path="/routes/report",
        summary="Clear the reports",
        run=clear,
        query=ClearQuery,
        answer=Cleared,
    ),
)
