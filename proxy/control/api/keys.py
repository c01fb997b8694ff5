"""Key operations: API keys of one organisation, and organisation tokens, which are attached to several.

Keys are tokens of another kind; all other operations on them are those of tokens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated, Any, Final

from pydantic import Field

from proxy.control.api import tokens
from proxy.control.api.operation import PARAMETERS, Call, Method, NoBody, NoQuery, Operation, View, listing
from proxy.control.api.tokens import OrgTokenQuery, Tokens
from proxy.control.models import (
    ChangedToken,
    Description,
    IpRanges,
    Lifetime,
    PageQuery,
    PermissionText,
    QuerySeconds,
    Reference,
    RequestModel,
    Scopes,
    Status,
    Title,
)
from proxy.core.errors import NotFound
from proxy.core.kinds import Kind
from proxy.core.model import TokenStatus
from proxy.services.tokens import issuance
from proxy.services.tokens.queries import TokenFilter

OrgReference = Annotated[str, Field(pattern=PARAMETERS["org"].pattern, max_length=PARAMETERS["org"].longest)]
Granted = Annotated[tuple[PermissionText, ...], Field(min_length=1, max_length=1000)]


class NewOrgKey(RequestModel):
    """A key of the organisation in the path; its role cannot be changed later."""

    name: Title
    role: Reference
    expires: Lifetime | None = None
    scopes: Scopes | None = None
    ip_ranges: IpRanges | None = None
    description: Description = ""


class NewKey(RequestModel):
    """A key of one organisation (`org`, `role`), or an organisation token with permissions for several (`grants`)."""

    name: Title
    org: Annotated[OrgReference | None, Field(description="The one organisation (id or name) of an API key.")] = None
    role: Annotated[Reference | None, Field(description="The role of an API key in that organisation.")] = None
    grants: Annotated[
        dict[OrgReference, Granted] | None,
        Field(
            min_length=1,
            max_length=issuance.ORGS_MOST,
            description="Permissions of an organisation token by organisation.",
        ),
    ] = None
    expires: Lifetime | None = None
    scopes: Scopes | None = None
    ip_ranges: IpRanges | None = None
    description: Description = ""


class AttachedPermissions(RequestModel):
    """All permissions of an organisation token in one organisation."""

    permissions: Granted


class KeyQuery(PageQuery):
    """Filters for keys, of those that the caller may see."""

    org: Annotated[Reference | None, Field(description="Only those of this organisation (id or name).")] = None
    status: Annotated[Status | None, Field(description="Only those with this status.")] = None
    expiring_within: Annotated[
        QuerySeconds | None, Field(description="Only active ones that expire within so many seconds, soonest first.")
    ] = None
    unused_for: Annotated[
        QuerySeconds | None, Field(description="Only those that were not used for so many seconds.")
    ] = None


async def create(call: Call[NewKey, NoQuery]) -> View:
    """Handle ``keys.create``."""
    body = call.body
    new = issuance.KeyRequest(
        name=body.name,
        description=body.description,
        org=body.org,
        role=body.role,
        grants=body.grants,
        expires=body.expires,
        scopes=body.scopes,
        ip_ranges=body.ip_ranges,
    )
    return await call.services.keys.create(call.actor, new, idempotency_key=call.idempotency_key)


async def create_in_org(call: Call[NewOrgKey, NoQuery]) -> View:
    """Handle ``keys.create_in_org``."""
    body = call.body
    new = issuance.KeyRequest(
        name=body.name,
        description=body.description,
        org=call.path["org"],
        role=body.role,
        expires=body.expires,
        scopes=body.scopes,
        ip_ranges=body.ip_ranges,
    )
    return await call.services.keys.create(call.actor, new, idempotency_key=call.idempotency_key)


async def list_keys(call: Call[NoBody, KeyQuery]) -> View:
    """Handle ``keys.list``."""
    query = call.query
    wanted = TokenFilter(
        org=query.org,
        status=None if query.status is None else TokenStatus(query.status),
        expiring_within=query.expiring_within,
        unused_for=query.unused_for,
    )
    page = await call.services.keys.list(call.actor, wanted, page=query.page)
    return listing(page)


async def list_of_org(call: Call[NoBody, OrgTokenQuery]) -> View:
    """Handle ``keys.list_of_org``."""
    query = call.query
    status = None if query.status is None else TokenStatus(query.status)
    wanted = TokenFilter(org=call.path["org"], status=status)
    page = await call.services.keys.list(call.actor, wanted, page=query.page)
    return listing(page)


async def attach(call: Call[AttachedPermissions, NoQuery]) -> View:
    """Handle ``keys.attach``."""
    return await call.services.keys.attach(call.actor, call.path["key"], call.path["org"], call.body.permissions)


async def detach(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``keys.detach``."""
    return await call.services.keys.detach(call.actor, call.path["key"], call.path["org"])


def of_keys(run: Callable[[Call[Any, Any]], Awaitable[View]]) -> Callable[[Call[Any, Any]], Awaitable[View]]:
    """A token handler for keys only: a token of another kind is not found."""

    async def handler(call: Call[Any, Any]) -> View:
        view = await call.services.tokens.show(call.actor, call.path["key"])
        if view.kind != Kind.KEY.value:
            raise NotFound(PARAMETERS["key"].missing)
        return await run(call)

    return handler


def of_key(row: Operation[Any, Any]) -> Operation[Any, Any]:
    """The key operation for a token operation: the same under another path and name."""
    return replace(
        row,
        name=row.name.replace("tokens.", "keys."),
        path=row.path.replace("/tokens/{token}", "/keys/{key}"),
        summary=row.summary.replace("token", "key"),
        run=of_keys(row.run),
    )


OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    Operation(
        name="keys.list",
        method=Method.GET,
        path="/keys",
        summary="List keys",
        run=list_keys,
        query=KeyQuery,
        answer=Tokens,
    ),
    replace(
        tokens.CREATE,
        name="keys.create",
        path="/keys",
        summary="Create a key of one organisation, or an organisation token for several",
        run=create,
        body=NewKey,
    ),
    Operation(
        name="keys.list_of_org",
        method=Method.GET,
        path="/orgs/{org}/keys",
        summary="List the keys of an organisation",
        run=list_of_org,
        query=OrgTokenQuery,
        answer=Tokens,
    ),
    replace(
        tokens.CREATE,
        name="keys.create_in_org",
        path="/orgs/{org}/keys",
        summary="Create a key of an organisation",
        run=create_in_org,
        body=NewOrgKey,
    ),
    Operation(
        name="keys.attach",
        method=Method.PUT,
        path="/keys/{key}/orgs/{org}",
        summary="Set the permissions of an organisation token in an organisation",
        run=of_keys(attach),
        body=AttachedPermissions,
        answer=ChangedToken,
        conflicts=True,
    ),
    Operation(
        name="keys.detach",
        method=Method.DELETE,
        path="/keys/{key}/orgs/{org}",
        summary="Detach an organisation token from an organisation",
        run=of_keys(detach),
        answer=ChangedToken,
        conflicts=True,
    ),
    *map(of_key, tokens.VERBS),
)
