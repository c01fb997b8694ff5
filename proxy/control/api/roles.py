"""Role operations: listing, showing and setting named sets of permissions."""

from __future__ import annotations

from typing import Any, Final, Literal

from proxy.control.api.operation import Call, Method, NoBody, NoQuery, Operation, View, listing
from proxy.control.models import Listing, Permissions, RequestModel, ResponseModel, Time
from proxy.services.paging import Page


class RolePermissions(RequestModel):
    """All permissions of a role."""

    permissions: Permissions


class Role(ResponseModel):
    """A role. `source` is `config` if the configuration defines it, `store` if it was set by hand."""

    name: str
    permissions: list[str]
    source: Literal["config", "store"]
    created_at: Time
    updated_at: Time


class AppliedRoles(ResponseModel):
    """The names of the roles that changed."""

    changed: list[str]


class Roles(Listing):
    """All roles, by name, on one page."""

    items: list[Role]


async def list_roles(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``roles.list`` and ``roles.list_in_org``."""
    views = await call.services.roles.list(call.actor, call.path.get("org"))
    return listing(Page(items=views, next_cursor=None))


async def show(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``roles.show``."""
    return await call.services.roles.show(call.actor, call.path["role"])


async def set_permissions(call: Call[RolePermissions, NoQuery]) -> View:
    """Handle ``roles.set``."""
    return await call.services.roles.set(call.actor, call.path["role"], call.body.permissions)


async def apply(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``roles.apply``."""
    return await call.services.roles.apply(call.actor)


OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    Operation(name="roles.list", method=Method.GET, path="/roles", summary="List roles", run=list_roles, answer=Roles),
    Operation(
        name="roles.list_in_org",
        method=Method.GET,
        path="/orgs/{org}/roles",
        summary="List roles, with a permission in this organisation",
        run=list_roles,
        answer=Roles,
    ),
    Operation(name="roles.show", method=Method.GET, path="/roles/{role}", summary="Show a role", run=show, answer=Role),
    Operation(
        name="roles.set",
        method=Method.PUT,
        path="/roles/{role}",
        summary="Set the permissions of a role; creates the role if needed",
        run=set_permissions,
        body=RolePermissions,
        answer=Role,
    ),
    Operation(
        name="roles.apply",
        method=Method.POST,
        path="/roles/apply",
        summary="Apply the roles of the configuration, also superseded ones",
        run=apply,
        answer=AppliedRoles,
    ),
)
