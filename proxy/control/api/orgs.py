"""Organisation operations, and those of their members."""

from __future__ import annotations

from typing import Any, Final, Literal

from proxy.control.api.operation import Call, Method, NoBody, NoQuery, Operation, View, listing
from proxy.control.models import (
    Listing,
    OptionalTitle,
    OrgName,
    PageQuery,
    Reference,
    RequestModel,
    ResponseModel,
    Time,
)


class NewOrg(RequestModel):
    """An organisation; `name` is for paths and commands, `display_name` for people."""

    name: OrgName
    display_name: OptionalTitle = ""


class MemberRole(RequestModel):
    """The role of a member."""

    role: Reference


class Org(ResponseModel):
    """An organisation."""

    id: str
    name: str
    display_name: str
    status: Literal["active", "suspended"]
    created_at: Time
    updated_at: Time
    warnings: list[str]
    members: int | None = None


class Orgs(Listing):
    """The organisations that the caller may see, oldest first."""

    items: list[Org]


class Member(ResponseModel):
    """A member of an organisation, with the role there."""

    user_id: str
    email: str
    name: str
    role: str
    status: Literal["active", "suspended", "removed"]
    created_at: Time
    updated_at: Time
    warnings: list[str]


class Members(Listing):
    """The members of an organisation, in the order of joining."""

    items: list[Member]


async def add(call: Call[NewOrg, NoQuery]) -> View:
    """Handle ``orgs.add``."""
    body, key = call.body, call.idempotency_key
    return await call.services.orgs.add(call.actor, body.name, display_name=body.display_name, idempotency_key=key)


async def list_orgs(call: Call[NoBody, PageQuery]) -> View:
    """Handle ``orgs.list``."""
    query = call.query
    page = await call.services.orgs.list(call.actor, page=query.page)
    return listing(page)


async def show(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``orgs.show``."""
    return await call.services.orgs.show(call.actor, call.path["org"])


async def suspend(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``orgs.suspend``."""
    return await call.services.orgs.suspend(call.actor, call.path["org"])


async def resume(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``orgs.resume``."""
    return await call.services.orgs.resume(call.actor, call.path["org"])


async def list_members(call: Call[NoBody, PageQuery]) -> View:
    """Handle ``members.list``."""
    query = call.query
    page = await call.services.members.list(call.actor, call.path["org"], page=query.page)
    return listing(page)


async def set_member(call: Call[MemberRole, NoQuery]) -> View:
    """Handle ``members.set``."""
    return await call.services.members.set(call.actor, call.path["org"], call.path["user"], call.body.role)


async def remove_member(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``members.remove``."""
    return await call.services.members.remove(call.actor, call.path["org"], call.path["user"])


OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    Operation(
        name="orgs.list",
        method=Method.GET,
        path="/orgs",
        summary="List organisations",
        run=list_orgs,
        query=PageQuery,
        answer=Orgs,
    ),
    Operation(
        name="orgs.add",
        method=Method.POST,
        path="/orgs",
        summary="Add an organisation",
        run=add,
        body=NewOrg,
        answer=Org,
        status=201,
        conflicts=True,
        creates=True,
    ),
    Operation(
        name="orgs.show", method=Method.GET, path="/orgs/{org}", summary="Show an organisation", run=show, answer=Org
    ),
    Operation(
        name="orgs.suspend",
        method=Method.POST,
        path="/orgs/{org}/suspend",
        summary="Refuse every token of an organisation until it is resumed",
        run=suspend,
        answer=Org,
    ),
    Operation(
        name="orgs.resume",
        method=Method.POST,
        path="/orgs/{org}/resume",
        summary="Resume a suspended organisation",
        run=resume,
        answer=Org,
    ),
    Operation(
        name="members.list",
        method=Method.GET,
        path="/orgs/{org}/members",
        summary="List the members of an organisation",
        run=list_members,
        query=PageQuery,
        answer=Members,
    ),
    Operation(
        name="members.set",
        method=Method.PUT,
        path="/orgs/{org}/members/{user}",
        summary="Change a member's role; administrators of the account can also add members",
        run=set_member,
        body=MemberRole,
        answer=Member,
        conflicts=True,
    ),
    Operation(
        name="members.remove",
        method=Method.DELETE,
        path="/orgs/{org}/members/{user}",
        summary="Remove a member, or leave an organisation",
        run=remove_member,
        answer=Member,
    ),
)
