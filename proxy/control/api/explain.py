"""Explain operation: why a token's request is, or was, allowed or refused."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, RootModel

from proxy.control.api.operation import Call, Method, NoBody, Operation, View
from proxy.control.models import KindWord, Query, ResponseModel, Time
from proxy.core.errors import Invalid

Verdict = Literal["allowed", "refused", "reported"]
Name = Annotated[str, Field(min_length=1, max_length=64)]


class ExplainQuery(Query):
    """Either `token`, `method` and `path`, or `decision`."""

    token: Annotated[Name | None, Field(description="A token's id or public prefix; never the whole token.")] = None
    method: Annotated[Name | None, Field(examples=["GET"])] = None
    path: Annotated[
        str | None, Field(max_length=65_536, description="A path, or a whole URL; the query is ignored.")
    ] = None
    host: Annotated[str | None, Field(max_length=512, description="The `Host`; by default that of the URL.")] = None
    ip: Annotated[str | None, Field(max_length=64, description="The client's address, for a token with IP ranges.")] = (
        None
    )
    decision: Annotated[Name | None, Field(description="The id of a decision, from a refusal or a log.")] = None


class ExplainedToken(ResponseModel):
    """The token, without its value, and its owner."""

    id: str
    prefix: str
    name: str
    kind: KindWord
    reach: Literal["personal", "org", "account", "orgs"]
    status: Literal["active", "expired", "revoked"]
    user_id: str | None
    user: str | None
    user_status: Literal["active", "suspended", "removed"] | None
    org_id: str | None
    org: str | None
    org_status: str | None
    expires_at: Time | None
    revoked_at: Time | None
    ip_ranges: Annotated[list[str] | None, Field(description="The networks that it may be used from; null: any.")]


class ExplainedStep(ResponseModel):
    """One of the checks of a request, in their order."""

    step: Literal["route", "token", "expiry", "owner", "address", "organisation", "operation", "role", "scopes"]
    result: Literal["pass", "fail", "not reached"]
    text: str


class ExplainedHeader(ResponseModel):
    """A header that the backend receives."""

    name: str
    value: str


class SecondTarget(ResponseModel):
    """A resource that a header of the request names, and that the request was refused for."""

    header: str
    method: Annotated[str | None, Field(description="The method that it is checked with; null: not checked.")]
    path: str | None


class ExplainedRequest(ResponseModel):
    """How a token's request would be answered now.

    On a report-only route, `verdict` is `reported`, and status and challenge are those of an enforcing route.
    """

    at: Time
    verdict: Literal["allowed", "refused", "reported"]
    reason: str
    status: Annotated[int | None, Field(description="The status of the refusal; null without one.")]
    public_reason: Annotated[str | None, Field(description="The reason in the body of the refusal.")]
    title: str
    detail: str
    challenge: Annotated[list[str], Field(description="The values of `WWW-Authenticate`.")]
    method: str
    path: str
    host: str | None
    ip: Annotated[
        str | None,
        Field(description="The client's address; null: not given, taken to be one that the token may be used from."),
    ]
    second_target: Annotated[
        SecondTarget | None, Field(description="Of a decision: checked in addition to the request.")
    ]
    requirement: Annotated[
        str | None, Field(description="Of a decision: what the ingress said that the request needs.")
    ]
    route: Annotated[str | None, Field(description="The pattern of the matched route.")]
    access: Literal["token", "public", "passthrough", "denied"] | None
    upstream: str | None
    enforce: bool | None
    operation: str | None
    entity: str | None
    entity_id: str | None
    permission: Annotated[str | None, Field(description="The permission that the request needs.")]
    org: Annotated[str | None, Field(description="The organisation that the request is about.")]
    role: Annotated[str | None, Field(description="The role in effect.")]
    role_org: Annotated[str | None, Field(description="The organisation of that role; null: the account.")]
    role_permissions: list[str]
    role_entry: Annotated[str | None, Field(description="The permission of the role that allows the request.")]
    scopes: Annotated[list[str] | None, Field(description="The token's scopes; null: all permissions of the role.")]
    scope_entry: Annotated[str | None, Field(description="The scope that allows the request.")]
    token: ExplainedToken | None
    steps: list[ExplainedStep]
    identity: Annotated[list[ExplainedHeader], Field(description="The identity headers that the backend receives.")]


class DecidedThen(ResponseModel):
    """A decision as the audit log has it."""

    at: Time
    verdict: Literal["allowed", "refused", "reported", "failed"]
    reason: str
    status: int | None
    method: str | None
    path: str | None
    host: str | None
    second_target: SecondTarget | None
    requirement: str | None
    route: str | None
    action: str
    target: str | None
    token_id: str | None
    token_name: str | None
    user: str | None
    org: str | None
    address: str | None


class ChangedSince(ResponseModel):
    """A later change to the token or to something that it depends on."""

    at: Time
    action: str
    target: str
    by: str


class ExplainedDecision(ResponseModel):
    """A decision, and how the same request would be answered now (null when unknown, or not visible to you)."""

    decision: str
    then: DecidedThen
    now: ExplainedRequest | None
    differences: list[str]
    notes: list[str]
    since: list[ChangedSince]


class Explained(RootModel[ExplainedRequest | ExplainedDecision]):
    """The explanation of a request or of a decision."""


async def explain(call: Call[NoBody, ExplainQuery]) -> View:
    """Handle ``explain.explain``."""
    query = call.query
    if query.decision is not None:
        given = {"token": query.token, "method": query.method, "path": query.path, "host": query.host, "ip": query.ip}
        faults = [(field, "a decision is explained by its id alone") for field, value in given.items() if value]
        if faults:
            raise Invalid(*faults[0], *faults[1:])
        return await call.services.explain.decision(call.actor, query.decision)
    needed = {"token": query.token, "method": query.method, "path": query.path}
    faults = [(field, "this field is required, or a decision") for field, value in needed.items() if value is None]
    if faults:
        raise Invalid(*faults[0], *faults[1:])
    return await call.services.explain.token(
        call.actor, query.token or "", query.method or "", query.path or "", query.host or "", query.ip or ""
    )


OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    Operation(
        name="explain.explain",
        method=Method.GET,
        path="/explain",
        summary="Explain a token's request by method and path, or a decision by its id",
        run=explain,
        query=ExplainQuery,
        answer=Explained,  # type: ignore[arg-type]  # one of two models
    ),
)
