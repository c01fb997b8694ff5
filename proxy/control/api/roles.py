"""Roles: named sets of permissions."""

from __future__ import annotations

from typing import Any, Final, Literal

from proxy.control.api.operation import Call, Method, NoBody, NoQuery, Operation, View, listing
from proxy.control.models import Listing, Permissions, RequestModel, ResponseModel, Time
from proxy.services.paging import Page


class RolePermissions(RequestModel):
    """What a role permits, and nothing else from now on."""

    permissions: Permissions


class Role(ResponseModel):
    """A role.  `source` is `config` where the configuration's definition holds, `store` where it was set by hand."""

    name: str
    permissions: list[str]
    source: Literal["config", "store"]
    created_at: Time
    updated_at: Time


class Roles(Listing):
    """Every role, by name, on one page."""

    items: list[Role]


async def list_roles(call: Call[NoBody, NoQuery]) -> View:
    found = await call.services.roles.list(call.actor, call.path.get("org"))
    return listing(Page(items=found, next_cursor=None))


async def show(call: Call[NoBody, NoQuery]) -> View:
    return await call.services.roles.show(call.actor, call.path["role"])


async def set_permissions(call: Call[RolePermissions, NoQuery]) -> View:
    return await call.services.roles.set(call.actor, call.path["role"], call.body.permissions)


OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    Operation(name="roles.list", method=Method.GET, path="/roles", summary="List roles", run=list_roles, answer=Roles),
    Operation(
        name="roles.list_in_org",
        method=Method.GET,
        path="/orgs/{org}/roles",
        summary="List roles, for whoever may in this organisation",
        run=list_roles,
        answer=Roles,
    ),
    Operation(name="roles.show", method=Method.GET, path="/roles/{role}", summary="Show a role", run=show, answer=Role),
    Operation(
        name="roles.set",
        method=Method.PUT,
        path="/roles/{role}",
        summary="Give a role these permissions and no others, making it where needed",
        run=set_permissions,
        body=RolePermissions,
        answer=Role,
    ),
)
