"""Routes as configured, and what those that only report would have refused."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from proxy.control.api.audit import Moment
from proxy.control.api.operation import Call, DictView, Method, NoBody, NoQuery, Operation, View, listing
from proxy.control.models import Listing, Query, ResponseModel, Time
from proxy.services.paging import Page


class ReportQuery(Query):
    """Which reports."""

    since: Annotated[Moment | None, Field(description="Only what was seen since then, or since so long ago.")] = None


class ClearQuery(Query):
    """Which reports."""

    route: Annotated[str | None, Field(min_length=1, max_length=200, description="Only those of this route.")] = None


class Route(ResponseModel):
    """A route; the first that fits a request counts.  `operations` are by method."""

    number: int
    path: str
    host: str | None
    methods: list[str] | None
    access: Literal["token", "public", "passthrough", "denied"]
    upstream: str | None
    entity: str | None
    operations: dict[str, str]
    enforce: bool


class Routes(Listing):
    """Every route, in the order in which they are tried, on one page."""

    items: list[Route]


class LackingPermission(ResponseModel):
    """A permission that requests lacked."""

    permission: str
    count: int


class ReportedToken(ResponseModel):
    """A token whose requests would have been refused; nulls: none, or one that is gone."""

    id: str | None
    prefix: str | None
    name: str | None
    user: str | None
    count: int


class RouteReport(ResponseModel):
    """What a route would have refused for one reason.  `enforce` null: there is no such route any more."""

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
    """How many entries were forgotten."""

    cleared: int


async def list_routes(call: Call[NoBody, NoQuery]) -> View:
    return listing(Page(items=await call.services.reports.routes(call.actor), next_cursor=None))


async def report(call: Call[NoBody, ReportQuery]) -> View:
    return listing(Page(items=await call.services.reports.list(call.actor, call.query.since), next_cursor=None))


async def clear(call: Call[NoBody, ClearQuery]) -> View:
    return DictView(members={"cleared": await call.services.reports.clear(call.actor, call.query.route)})


OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    Operation(
        name="routes.list",
        method=Method.GET,
        path="/routes",
        summary="List the routes as configured",
        run=list_routes,
        answer=Routes,
    ),
    Operation(
        name="routes.report",
        method=Method.GET,
        path="/routes/report",
        summary="List what routes that only report would have refused",
        run=report,
        query=ReportQuery,
        answer=RouteReports,
    ),
    Operation(
        name="routes.clear_report",
        method=Method.DELETE,
        path="/routes/report",
        summary="Forget what was reported",
        run=clear,
        query=ClearQuery,
        answer=Cleared,
    ),
)
