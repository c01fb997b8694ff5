"""Keys: API keys of one organisation, and organisation tokens, which are attached to several.

They are tokens of another kind, and their other verbs are those of tokens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated, Any, Final

from pydantic import Field

from proxy.control.api import tokens
from proxy.control.api.operation import PARAMETERS, Call, Method, NoBody, NoQuery, Operation, View, listing
from proxy.control.api.tokens import (
    ChangedToken,
    Lifetime,
    OrgTokenQuery,
    Scopes,
    Status,
    Tokens,
)
from proxy.control.models import Description, PageQuery, PermissionText, QuerySeconds, Reference, RequestModel, Title
from proxy.core.errors import NotFound
from proxy.core.kinds import Kind
from proxy.core.model import TokenStatus
from proxy.services.tokens import issuance
from proxy.services.tokens.queries import TokenFilter

OrgReference = Annotated[str, Field(pattern=PARAMETERS["org"].pattern, max_length=PARAMETERS["org"].longest)]
Granted = Annotated[tuple[PermissionText, ...], Field(min_length=1, max_length=1000)]


class NewOrgKey(RequestModel):
    """A key of the organisation that the path names, with a role that is fixed from now on."""

    name: Title
    role: Reference
    expires: Lifetime | None = None
    scopes: Scopes | None = None
    description: Description = ""


class NewKey(RequestModel):
    """A key of one organisation (`org`, `role`), or an organisation token: permissions by organisation (`grants`)."""

    name: Title
    org: Annotated[OrgReference | None, Field(description="The one organisation (id or name) of an API key.")] = None
    role: Annotated[Reference | None, Field(description="What an API key may do there.")] = None
    grants: Annotated[
        dict[OrgReference, Granted] | None,
        Field(min_length=1, max_length=issuance.ORGS_MOST, description="What an organisation token may do, and where."),
    ] = None
    expires: Lifetime | None = None
    scopes: Scopes | None = None
    description: Description = ""


class AttachedPermissions(RequestModel):
    """What an organisation token may do in one organisation, and nothing else there."""

    permissions: Granted


class KeyQuery(PageQuery):
    """Which keys, of those that whoever asks may know of."""

    org: Annotated[Reference | None, Field(description="Only those of this organisation (id or name).")] = None
    status: Annotated[Status | None, Field(description="Only those with this status.")] = None
    expiring_within: Annotated[
        QuerySeconds | None, Field(description="Only active ones that end within so many seconds, those first.")
    ] = None
    unused_for: Annotated[
        QuerySeconds | None, Field(description="Only those that nobody has used for so many seconds.")
    ] = None


async def create(call: Call[NewKey, NoQuery]) -> View:
    body = call.body
    new = issuance.KeyRequest(
        name=body.name,
        description=body.description,
        org=body.org,
        role=body.role,
        grants=body.grants,
        expires=body.expires,
        scopes=body.scopes,
    )
    return await call.services.keys.create(call.actor, new, idempotency_key=call.idempotency_key)


async def create_in_org(call: Call[NewOrgKey, NoQuery]) -> View:
    body = call.body
    new = issuance.KeyRequest(
        name=body.name,
        description=body.description,
        org=call.path["org"],
        role=body.role,
        expires=body.expires,
        scopes=body.scopes,
    )
    return await call.services.keys.create(call.actor, new, idempotency_key=call.idempotency_key)


async def list_keys(call: Call[NoBody, KeyQuery]) -> View:
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
    query = call.query
    status = None if query.status is None else TokenStatus(query.status)
    wanted = TokenFilter(org=call.path["org"], status=status)
    page = await call.services.keys.list(call.actor, wanted, page=query.page)
    return listing(page)


async def attach(call: Call[AttachedPermissions, NoQuery]) -> View:
    return await call.services.keys.attach(call.actor, call.path["key"], call.path["org"], call.body.permissions)


async def detach(call: Call[NoBody, NoQuery]) -> View:
    return await call.services.keys.detach(call.actor, call.path["key"], call.path["org"])


def of_keys(run: Callable[[Call[Any, Any]], Awaitable[View]]) -> Callable[[Call[Any, Any]], Awaitable[View]]:
    """A verb of tokens, for keys only: the id of another token is that of no key."""

    async def verb(call: Call[Any, Any]) -> View:
        found = await call.services.tokens.show(call.actor, call.path["key"])
        if found.kind != Kind.KEY.value:
            raise NotFound(PARAMETERS["key"].missing)
        return await run(call)

    return verb


def of_key(row: Operation[Any, Any]) -> Operation[Any, Any]:
    """The row of a token's verb, for keys: the same, under their path and by their name."""
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
        summary="Make a key of one organisation, or an organisation token of several",
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
        summary="Make a key of an organisation",
        run=create_in_org,
        body=NewOrgKey,
    ),
    Operation(
        name="keys.attach",
        method=Method.PUT,
        path="/keys/{key}/orgs/{org}",
        summary="Give an organisation token these permissions in an organisation, and no others there",
        run=of_keys(attach),
        body=AttachedPermissions,
        answer=ChangedToken,
        conflicts=True,
    ),
    Operation(
        name="keys.detach",
        method=Method.DELETE,
        path="/keys/{key}/orgs/{org}",
        summary="Take an organisation token away from an organisation",
        run=of_keys(detach),
        answer=ChangedToken,
        conflicts=True,
    ),
    *map(of_key, tokens.VERBS),
)
