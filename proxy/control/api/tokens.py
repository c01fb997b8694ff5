"""Token operations: personal, team and account tokens. Keys are tokens of another kind and share most of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from proxy.control.api.operation import (
    Call,
    DictView,
    Method,
    NoBody,
    NoQuery,
    Operation,
    View,
    listing,
)
from proxy.control.models import (
    ChangedToken,
    CreatedToken,
    Description,
    Flag,
    IpRange,
    IpRanges,
    KindWord,
    Lifetime,
    Listing,
    PageQuery,
    Permissions,
    PermissionText,
    Query,
    QuerySeconds,
    Reference,
    RequestModel,
    ResponseModel,
    Scopes,
    Seconds,
    Status,
    Title,
    Token,
)
from proxy.core.kinds import Kind, Reach
from proxy.core.model import TokenStatus
from proxy.core.networks import RANGES_MOST
from proxy.services.tokens import issuance
from proxy.services.tokens.queries import TokenFilter


class NewOrgToken(RequestModel):
    """A new team token of the organisation in the path; a body that names an organisation is refused."""

    name: Title
    user: Annotated[Reference | None, Field(description="The owner (id or email); null for the caller.")] = None
    reach: Annotated[
        Literal["personal", "org", "account"] | None,
        Field(description="`account`: every organisation of its owner. Null: depends on `org`."),
    ] = None
    expires: Lifetime | None = None
    scopes: Scopes | None = None
    ip_ranges: IpRanges | None = None
    description: Description = ""


class NewToken(NewOrgToken):
    """A new personal access token. Without scopes it may do all that its owner's role allows."""

    org: Annotated[Reference | None, Field(description="The one organisation that it reaches (id or name).")] = None


class TokenText(RequestModel):
    """Name and description of a token. Null leaves them unchanged."""

    name: Title | None = None
    description: Description | None = None


class Renewal(RequestModel):
    """A new lifetime for a token that has expired or was revoked."""

    expires: Annotated[Seconds | None, Field(description="A lifetime in seconds; null for the original one.")] = None


class Revocation(RequestModel):
    """Which tokens are revoked."""

    descendants: Annotated[bool, Field(description="Also every token that it created, directly or through others.")] = (
        False
    )


class TokenScopes(RequestModel):
    """Scopes of a token."""

    scopes: Permissions


class TokenIpRanges(RequestModel):
    """IP ranges of a token."""

    ip_ranges: Annotated[tuple[IpRange, ...], Field(min_length=1, max_length=RANGES_MOST)]


class TokenQuery(PageQuery):
    """Filters for tokens, of those that the caller may see."""

    user: Annotated[Reference | None, Field(description="Only those of this user (id or email).")] = None
    org: Annotated[Reference | None, Field(description="Only those of this organisation (id or name).")] = None
    status: Annotated[Status | None, Field(description="Only those with this status.")] = None
    kind: Annotated[KindWord | None, Field(description="Only those of this kind.")] = None
    expiring_within: Annotated[
        QuerySeconds | None, Field(description="Only active ones that expire within so many seconds, soonest first.")
    ] = None
    unused_for: Annotated[
        QuerySeconds | None, Field(description="Only those that were not used for so many seconds.")
    ] = None
    parent: Annotated[Reference | None, Field(description="Only those that this token (id or prefix) created.")] = None


class OrgTokenQuery(PageQuery):
    """Filters for the tokens of an organisation."""

    status: Annotated[Status | None, Field(description="Only those with this status.")] = None


class MineQuery(Query):
    """The tokens to delete."""

    user: Annotated[Reference | None, Field(description="Those of this user (id or email); by default your own.")] = (
        None
    )
    keep_current: Annotated[Flag, Field(description="Keep the token that sends this request.")] = False


class ScopeQuery(Query):
    """The scopes to remove."""

    scope: Annotated[tuple[PermissionText, ...], Field(description="Only these; by default all.")] = ()


class Tokens(Listing):
    """Tokens, oldest first."""

    items: list[Token]


class ScopesOf(ResponseModel):
    """The scopes of a token."""

    scopes: Annotated[list[str] | None, Field(description="Null: all that the role allows. Empty: nothing.")]


class IpRangesOf(ResponseModel):
    """The IP ranges of a token."""

    ip_ranges: Annotated[list[str] | None, Field(description="The networks that it may be used from; null: any.")]


class Deleted(ResponseModel):
    """How many tokens were deleted."""

    deleted: int


def reference(call: Call[Any, Any]) -> str:
    """The token or key in the path."""
    return call.path["token"] if "token" in call.path else call.path["key"]


async def create(call: Call[NewToken, NoQuery]) -> View:
    """Handle ``tokens.create``."""
    return await _create(call, call.body.org)


async def create_in_org(call: Call[NewOrgToken, NoQuery]) -> View:
    """Handle ``tokens.create_in_org``."""
    return await _create(call, call.path["org"])


async def _create(call: Call[Any, NoQuery], org: str | None) -> View:
    body: NewOrgToken = call.body
    new = issuance.TokenRequest(
        name=body.name,
        user=body.user,
        description=body.description,
        org=org,
        reach=None if body.reach is None else Reach(body.reach),
        expires=body.expires,
        scopes=body.scopes,
        ip_ranges=body.ip_ranges,
    )
    return await call.services.tokens.create(call.actor, new, idempotency_key=call.idempotency_key)


async def list_tokens(call: Call[NoBody, TokenQuery]) -> View:
    """Handle ``tokens.list``."""
    query = call.query
    wanted = TokenFilter(
        user=query.user,
        org=query.org,
        status=None if query.status is None else TokenStatus(query.status),
        kind=None if query.kind is None else Kind(query.kind),
        expiring_within=query.expiring_within,
        unused_for=query.unused_for,
        parent=query.parent,
    )
    page = await call.services.tokens.list(call.actor, wanted, page=query.page)
    return listing(page)


async def list_of_org(call: Call[NoBody, OrgTokenQuery]) -> View:
    """Handle ``tokens.list_of_org``."""
    query = call.query
    status = None if query.status is None else TokenStatus(query.status)
    wanted = TokenFilter(org=call.path["org"], status=status, kind=Kind.PAT)
    page = await call.services.tokens.list(call.actor, wanted, page=query.page)
    return listing(page)


async def delete_all(call: Call[NoBody, MineQuery]) -> View:
    """Handle ``tokens.delete_all``."""
    query = call.query
    deleted = await call.services.tokens.delete_all(call.actor, query.user, keep_current=query.keep_current)
    return DictView(members={"deleted": deleted})


async def show(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``tokens.show``."""
    return await call.services.tokens.show(call.actor, reference(call))


async def update(call: Call[TokenText, NoQuery]) -> View:
    """Handle ``tokens.update``."""
    body = call.body
    return await call.services.tokens.update(call.actor, reference(call), name=body.name, description=body.description)


async def delete(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``tokens.delete``."""
    return await call.services.tokens.delete(call.actor, reference(call))


async def rotate(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``tokens.rotate``."""
    return await call.services.tokens.rotate(call.actor, reference(call))


async def revoke(call: Call[Revocation, NoQuery]) -> View:
    """Handle ``tokens.revoke``."""
    return await call.services.tokens.revoke(call.actor, reference(call), descendants=call.body.descendants)


async def regenerate(call: Call[Renewal, NoQuery]) -> View:
    """Handle ``tokens.regenerate``."""
    return await call.services.tokens.regenerate(call.actor, reference(call), expires=call.body.expires)


async def show_scopes(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``tokens.show_scopes``."""
    scopes = (await call.services.tokens.show(call.actor, reference(call))).scopes
    return DictView(members={"scopes": None if scopes is None else list(scopes)})


async def add_scopes(call: Call[TokenScopes, NoQuery]) -> View:
    """Handle ``tokens.add_scopes``."""
    return await call.services.tokens.add_scopes(call.actor, reference(call), call.body.scopes)


async def set_scopes(call: Call[TokenScopes, NoQuery]) -> View:
    """Handle ``tokens.set_scopes``."""
    return await call.services.tokens.set_scopes(call.actor, reference(call), call.body.scopes)


async def remove_scopes(call: Call[NoBody, ScopeQuery]) -> View:
    """Handle ``tokens.remove_scopes``."""
    if call.query.scope:
        return await call.services.tokens.remove_scopes(call.actor, reference(call), call.query.scope)
    return await call.services.tokens.clear_scopes(call.actor, reference(call))


async def show_ip_ranges(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``tokens.show_ip_ranges``."""
    ranges = (await call.services.tokens.show(call.actor, reference(call))).ip_ranges
    return DictView(members={"ip_ranges": None if ranges is None else list(ranges)})


async def set_ip_ranges(call: Call[TokenIpRanges, NoQuery]) -> View:
    """Handle ``tokens.set_ip_ranges``."""
    return await call.services.tokens.set_ip_ranges(call.actor, reference(call), call.body.ip_ranges)


async def clear_ip_ranges(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``tokens.clear_ip_ranges``."""
    return await call.services.tokens.set_ip_ranges(call.actor, reference(call), None)


VERBS: Final[tuple[Operation[Any, Any], ...]] = (
    Operation(
        name="tokens.show",
        method=Method.GET,
        path="/tokens/{token}",
        summary="Show a token",
        run=show,
        answer=Token,
    ),
    Operation(
        name="tokens.update",
        method=Method.PATCH,
        path="/tokens/{token}",
        summary="Change the name or description of a token",
        run=update,
        body=TokenText,
        answer=ChangedToken,
    ),
    Operation(
        name="tokens.delete",
        method=Method.DELETE,
        path="/tokens/{token}",
        summary="Revoke and delete a token",
        run=delete,
        answer=ChangedToken,
    ),
    Operation(
        name="tokens.rotate",
        method=Method.POST,
        path="/tokens/{token}/rotate",
        summary="Replace the value of a token",
        run=rotate,
        answer=CreatedToken,
        conflicts=True,
        secret=True,
    ),
    Operation(
        name="tokens.revoke",
        method=Method.POST,
        path="/tokens/{token}/revoke",
        summary="Revoke a token",
        run=revoke,
        body=Revocation,
        answer=ChangedToken,
    ),
    Operation(
        name="tokens.regenerate",
        method=Method.POST,
        path="/tokens/{token}/regenerate",
        summary="Reactivate an expired or revoked token with a new value and lifetime",
        run=regenerate,
        body=Renewal,
        answer=CreatedToken,
        conflicts=True,
        secret=True,
    ),
    Operation(
        name="tokens.show_scopes",
        method=Method.GET,
        path="/tokens/{token}/scopes",
        summary="Show the scopes of a token",
        run=show_scopes,
        answer=ScopesOf,
    ),
    Operation(
        name="tokens.add_scopes",
        method=Method.POST,
        path="/tokens/{token}/scopes",
        summary="Add scopes to a token that has scopes",
        run=add_scopes,
        body=TokenScopes,
        answer=ChangedToken,
        conflicts=True,
    ),
    Operation(
        name="tokens.set_scopes",
        method=Method.PUT,
        path="/tokens/{token}/scopes",
        summary="Set the scopes of a token",
        run=set_scopes,
        body=TokenScopes,
        answer=ChangedToken,
    ),
    Operation(
        name="tokens.remove_scopes",
        method=Method.DELETE,
        path="/tokens/{token}/scopes",
        summary="Remove these scopes from a token, or all",
        run=remove_scopes,
        query=ScopeQuery,
        answer=ChangedToken,
        conflicts=True,
    ),
    Operation(
        name="tokens.show_ip_ranges",
        method=Method.GET,
        path="/tokens/{token}/ip-ranges",
        summary="Show the IP ranges of a token",
        run=show_ip_ranges,
        answer=IpRangesOf,
    ),
    Operation(
        name="tokens.set_ip_ranges",
        method=Method.PUT,
        path="/tokens/{token}/ip-ranges",
        summary="Set the IP ranges of a token",
        run=set_ip_ranges,
        body=TokenIpRanges,
        answer=ChangedToken,
    ),
    Operation(
        name="tokens.clear_ip_ranges",
        method=Method.DELETE,
        path="/tokens/{token}/ip-ranges",
        summary="Let a token be used from any address",
        run=clear_ip_ranges,
        answer=ChangedToken,
    ),
)
"""Operations on an existing token; keys have the same."""

CREATE: Final[Operation[Any, Any]] = Operation(
    name="tokens.create",
    method=Method.POST,
    path="/tokens",
    summary="Create a token",
    run=create,
    body=NewToken,
    answer=CreatedToken,
    status=201,
    conflicts=True,
    creates=True,
    secret=True,
)
"""Every operation that creates a token or key is this one with another name and body."""

OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    Operation(
        name="tokens.list",
        method=Method.GET,
        path="/tokens",
        summary="List tokens",
        run=list_tokens,
        query=TokenQuery,
        answer=Tokens,
    ),
    CREATE,
    Operation(
        name="tokens.delete_all",
        method=Method.DELETE,
        path="/tokens",
        summary="Delete all tokens of a user, by default your own",
        run=delete_all,
        query=MineQuery,
        answer=Deleted,
    ),
    Operation(
        name="tokens.list_of_org",
        method=Method.GET,
        path="/orgs/{org}/tokens",
        summary="List the team tokens of an organisation",
        run=list_of_org,
        query=OrgTokenQuery,
        answer=Tokens,
    ),
    replace(
        CREATE,
        name="tokens.create_in_org",
        path="/orgs/{org}/tokens",
        summary="Create a team token of an organisation",
        run=create_in_org,
        body=NewOrgToken,
    ),
    *VERBS,
)
