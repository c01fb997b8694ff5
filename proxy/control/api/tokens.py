"""Tokens: personal ones, those of a team, and those of a whole account."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from proxy.control.api.operation import Call, Method, NoBody, NoQuery, Operation, View, listing
from proxy.control.models import (
    Answer,
    Body,
    Description,
    Listing,
    PageQuery,
    Permissions,
    Reference,
    Seconds,
    Time,
    Title,
)
from proxy.core.model import TokenStatus

Status = Literal["active", "expired", "revoked"]


Lifetime = Annotated[Seconds, Field(description="A lifetime in seconds; null for what the policy gives.")]


class NewToken(Body):
    """A token to be made.  Without scopes it may do all that its owner's role allows."""

    user: Reference
    name: Title
    org: Reference | None = None
    expires: Annotated[
        Seconds | None, Field(description="Its lifetime in seconds; null for what the policy gives.")
    ] = None
    scopes: Permissions = ()
    description: Description = ""


class TokenQuery(PageQuery):
    """Which tokens."""

    user: Annotated[Reference | None, Field(description="Only those of this user (id or email).")] = None
    status: Annotated[Status | None, Field(description="Only those with this status.")] = None


class Token(Answer):
    """A token, without its value."""

    id: str
    prefix: str
    kind: Literal["pat", "key"]
    reach: Literal["personal", "org", "account", "orgs"]
    name: str
    description: str
    user_id: str | None
    user: str | None
    org_id: str | None
    org: str | None
    role: str | None
    scopes: list[str] | None
    status: Status
    created_at: Time
    updated_at: Time
    rotated_at: Time | None
    expires_at: Time | None
    revoked_at: Time | None
    last_used_at: Time | None
    use_count: int


class CreatedToken(Token):
    """A token with its value, which no other answer has."""

    token: str
    warnings: list[str]


class Tokens(Listing):
    """Tokens, oldest first."""

    items: list[Token]


async def create(call: Call[NewToken, NoQuery]) -> View:
    body = call.body
    return await call.plane.tokens.create(
        call.actor,
        body.user,
        body.name,
        org=body.org,
        expires=body.expires,
        scopes=body.scopes,
        description=body.description,
    )


async def list_tokens(call: Call[NoBody, TokenQuery]) -> View:
    query = call.query
    status = None if query.status is None else TokenStatus(query.status)
    return listing(await call.plane.tokens.list(user=query.user, status=status, limit=query.limit, cursor=query.cursor))


async def show(call: Call[NoBody, NoQuery]) -> View:
    return await call.plane.tokens.show(call.path["token"])


async def rotate(call: Call[NoBody, NoQuery]) -> View:
    return await call.plane.tokens.rotate(call.actor, call.path["token"])


async def revoke(call: Call[NoBody, NoQuery]) -> View:
    return await call.plane.tokens.revoke(call.actor, call.path["token"])


async def delete(call: Call[NoBody, NoQuery]) -> View:
    return await call.plane.tokens.delete(call.actor, call.path["token"])


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
    Operation(
        name="tokens.create",
        method=Method.POST,
        path="/tokens",
        summary="Make a token",
        run=create,
        body=NewToken,
        answer=CreatedToken,
        status=201,
        conflicts=True,
        creates=True,
        secret=True,
    ),
    Operation(
        name="tokens.show", method=Method.GET, path="/tokens/{token}", summary="Show a token", run=show, answer=Token
    ),
    Operation(
        name="tokens.delete",
        method=Method.DELETE,
        path="/tokens/{token}",
        summary="End a token and forget it",
        run=delete,
        answer=Token,
    ),
    Operation(
        name="tokens.rotate",
        method=Method.POST,
        path="/tokens/{token}/rotate",
        summary="Give a token another value, in place",
        run=rotate,
        answer=CreatedToken,
        conflicts=True,
        secret=True,
    ),
    Operation(
        name="tokens.revoke",
        method=Method.POST,
        path="/tokens/{token}/revoke",
        summary="Refuse a token from now on",
        run=revoke,
        answer=Token,
    ),
)
