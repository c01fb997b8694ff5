"""Policy operations: showing and setting the token policy, listing violations, and ending tokens that break it."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from proxy.control.api.operation import Call, DictView, Method, NoBody, NoQuery, Operation, View, listing
from proxy.control.models import (
    Flag,
    KindWord,
    Listing,
    PageQuery,
    Permissions,
    Query,
    Reference,
    RequestModel,
    ResponseModel,
    Time,
)

_YEARS: Final = 1e10
Duration = Annotated[float, Field(ge=60, le=_YEARS, allow_inf_nan=False, description="In seconds.")]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Right = Literal["revoke", "delete"]


class OrgPolicy(RequestModel):
    """An organisation's own policy, in addition to the deployment's: for each field, the stricter applies."""

    max_lifetime: Duration | None = None
    require_expiry: bool | None = None
    tokens_per_user: Count | None = None
    org_tokens_per_org: Count | None = None
    inactive_after: Duration | None = None
    require_scopes: bool | None = None
    forbidden_scopes: Permissions | None = None
    admin_rights: tuple[Right, ...] | None = None


class OrgQuery(Query):
    """The organisation."""

    org: Annotated[Reference | None, Field(description="Of this organisation (id or name).")] = None


class ChangeQuery(Query):
    """What happens to tokens that break the new policy."""

    expire: Annotated[Flag, Field(description="End active tokens of the organisation that break the policy.")] = False


class ViolationQuery(PageQuery):
    """Filters for violations."""

    org: Annotated[Reference | None, Field(description="Only those of this organisation (id or name).")] = None


class Rules(ResponseModel):
    """A complete policy. Durations are in seconds; null is no limit."""

    max_lifetime: float | None
    require_expiry: bool
    tokens_per_user: int | None
    org_tokens_per_org: int | None
    inactive_after: float | None
    require_scopes: bool
    forbidden_scopes: list[str]
    admin_rights: list[Right]


class Policy(ResponseModel):
    """The effective policy, and the policies that it results from."""

    org: str | None
    effective: Rules
    deployment: Rules
    own: Annotated[dict[str, Any] | None, Field(description="The organisation's own policy.")]
    breaking: Annotated[
        int | None, Field(description="After a change: how many active tokens of the organisation break the policy.")
    ]
    expired: Annotated[int | None, Field(description="After a change with `expire`: how many tokens were ended.")]
    warnings: list[str]


class Violation(ResponseModel):
    """An active token that breaks the policy, and the rules that it breaks."""

    id: str
    prefix: str
    kind: KindWord
    name: str
    user_id: str | None
    user: str | None
    org_id: str | None
    expires_at: Time | None
    last_used_at: Time | None
    breaks: list[str]


class Violations(Listing):
    """Active tokens that break the policy. A page may be empty and still have a next one."""

    items: list[Violation]


class Crowd(ResponseModel):
    """A user with more active tokens than the policy allows."""

    user_id: str
    user: str
    tokens: int


class Crowds(Listing):
    """At most a hundred users, on one page."""

    items: list[Crowd]


class Ended(ResponseModel):
    """How many tokens were ended."""

    expired: int


async def show(call: Call[NoBody, OrgQuery]) -> View:
    """Handle ``policy.show``."""
    return await call.services.policies.show(call.actor, call.query.org)


async def show_of_org(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``policy.show_of_org``."""
    return await call.services.policies.show(call.actor, call.path["org"])


async def set_of_org(call: Call[OrgPolicy, ChangeQuery]) -> View:
    """Handle ``policy.set_of_org``."""
    own = call.body.model_dump(exclude_none=True)
    return await call.services.policies.set(call.actor, call.path["org"], own, expire=call.query.expire)


async def update_of_org(call: Call[OrgPolicy, ChangeQuery]) -> View:
    """Handle ``policy.update_of_org``."""
    given = call.body.model_dump(exclude_unset=True)
    return await call.services.policies.update(call.actor, call.path["org"], given, expire=call.query.expire)


async def violations(call: Call[NoBody, ViolationQuery]) -> View:
    """Handle ``policy.violations``."""
    query = call.query
    page = await call.services.policies.violations(call.actor, query.org, page=query.page)
    return listing(page)


async def crowded(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``policy.crowded``."""
    views = await call.services.policies.crowded(call.actor)
    return DictView(members={"items": [view.as_dict() for view in views], "next_cursor": None})


async def expire(call: Call[NoBody, OrgQuery]) -> View:
    """Handle ``policy.expire``."""
    return DictView(members={"expired": await call.services.policies.expire(call.actor, call.query.org)})


OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    Operation(
        name="policy.show",
        method=Method.GET,
        path="/policy",
        summary="Show the effective policy",
        run=show,
        query=OrgQuery,
        answer=Policy,
    ),
    Operation(
        name="policy.violations",
        method=Method.GET,
        path="/policy/violations",
        summary="List active tokens that break the policy",
        run=violations,
        query=ViolationQuery,
        answer=Violations,
    ),
    Operation(
        name="policy.crowded",
        method=Method.GET,
        path="/policy/crowded",
        summary="List users with more active tokens than the policy allows",
        run=crowded,
        answer=Crowds,
    ),
    Operation(
        name="policy.expire",
        method=Method.POST,
        path="/policy/expire",
        summary="End every active token that breaks the policy",
        run=expire,
        query=OrgQuery,
        answer=Ended,
        seconds=600.0,
    ),
    Operation(
        name="policy.show_of_org",
        method=Method.GET,
        path="/orgs/{org}/policy",
        summary="Show the effective policy of an organisation",
        run=show_of_org,
        answer=Policy,
    ),
    Operation(
        name="policy.set_of_org",
        method=Method.PUT,
        path="/orgs/{org}/policy",
        summary="Replace an organisation's own policy",
        run=set_of_org,
        body=OrgPolicy,
        query=ChangeQuery,
        answer=Policy,
        seconds=600.0,
    ),
    Operation(
        name="policy.update_of_org",
        method=Method.PATCH,
        path="/orgs/{org}/policy",
        summary="Change some fields of an organisation's own policy; null removes a field",
        run=update_of_org,
        body=OrgPolicy,
        query=ChangeQuery,
        answer=Policy,
        seconds=600.0,
    ),
)
