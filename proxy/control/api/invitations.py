"""Invitation operations: inviting people to an organisation, and accepting or declining."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from proxy.control.api.operation import Call, Method, NoBody, NoQuery, Operation, View, listing
from proxy.control.api.orgs import Member
from proxy.control.models import Email, Listing, PageQuery, Reference, RequestModel, ResponseModel, Time
from proxy.services.accounts.invitations import LONGEST, SHORTEST

Lifetime = Annotated[
    float,
    Field(ge=SHORTEST, le=LONGEST, allow_inf_nan=False, description="How long the invitation is open, in seconds."),
]


class NewInvitation(RequestModel):
    """An email, and the role that its owner gets by accepting."""

    email: Email
    role: Reference
    expires: Lifetime | None = None


class InvitationQuery(PageQuery):
    """Filters for invitations."""

    org: Annotated[Reference | None, Field(description="Only those to this organisation (id or name).")] = None
    email: Annotated[Reference | None, Field(description="Only those of this email.")] = None


class Invitation(ResponseModel):
    """An open invitation: what the inviter entered, and nothing about the person with that email."""

    id: str
    org_id: str
    org: str
    email: str
    role: str
    created_at: Time
    expires_at: Time
    warnings: list[str]


class Invitations(Listing):
    """Open invitations, oldest first."""

    items: list[Invitation]


async def create(call: Call[NewInvitation, NoQuery]) -> View:
    """Handle ``invitations.create``."""
    body, key = call.body, call.idempotency_key
    return await call.services.invitations.invite(
        call.actor, call.path["org"], body.email, body.role, expires=body.expires, idempotency_key=key
    )


async def list_invitations(call: Call[NoBody, InvitationQuery]) -> View:
    """Handle ``invitations.list``."""
    query = call.query
    page = await call.services.invitations.list(call.actor, query.org, email=query.email, page=query.page)
    return listing(page)


async def list_of_org(call: Call[NoBody, PageQuery]) -> View:
    """Handle ``invitations.list_of_org``."""
    query = call.query
    page = await call.services.invitations.list(call.actor, call.path["org"], page=query.page)
    return listing(page)


async def show(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``invitations.show``."""
    return await call.services.invitations.show(call.actor, call.path["invitation"])


async def accept(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``invitations.accept``."""
    key = call.idempotency_key
    return await call.services.invitations.accept(call.actor, call.path["invitation"], idempotency_key=key)


async def decline(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``invitations.decline``."""
    return await call.services.invitations.decline(call.actor, call.path["invitation"])


async def withdraw(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``invitations.withdraw``."""
    return await call.services.invitations.withdraw(call.actor, call.path["invitation"])


OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    Operation(
        name="invitations.list",
        method=Method.GET,
        path="/invitations",
        summary="List open invitations: your own, or all of the account",
        run=list_invitations,
        query=InvitationQuery,
        answer=Invitations,
    ),
    Operation(
        name="invitations.list_of_org",
        method=Method.GET,
        path="/orgs/{org}/invitations",
        summary="List the open invitations to an organisation",
        run=list_of_org,
        query=PageQuery,
        answer=Invitations,
    ),
    Operation(
        name="invitations.create",
        method=Method.POST,
        path="/orgs/{org}/invitations",
        summary="Invite an email to an organisation",
        run=create,
        body=NewInvitation,
        answer=Invitation,
        status=201,
        conflicts=True,
        creates=True,
    ),
    Operation(
        name="invitations.show",
        method=Method.GET,
        path="/invitations/{invitation}",
        summary="Show an open invitation",
        run=show,
        answer=Invitation,
    ),
    Operation(
        name="invitations.withdraw",
        method=Method.DELETE,
        path="/invitations/{invitation}",
        summary="Withdraw an invitation",
        run=withdraw,
        answer=Invitation,
    ),
    Operation(
        name="invitations.accept",
        method=Method.POST,
        path="/invitations/{invitation}/accept",
        summary="Accept an invitation and become a member",
        run=accept,
        answer=Member,
        status=201,
        conflicts=True,
        creates=True,
    ),
    Operation(
        name="invitations.decline",
        method=Method.POST,
        path="/invitations/{invitation}/decline",
        summary="Decline an invitation",
        run=decline,
        answer=Invitation,
    ),
)
