"""User operations: adding, suspending and removing people, and their roles in the account."""

from __future__ import annotations

from typing import Any, Final, Literal

from proxy.control.api.operation import Call, Method, NoBody, NoQuery, Operation, View, listing
from proxy.control.models import Email, Listing, OptionalTitle, PageQuery, Reference, RequestModel, ResponseModel, Time


class NewUser(RequestModel):
    """A user with a role in the account; with `org`, a member with a role there, created as a user if needed."""

    email: Email
    role: Reference
    org: Reference | None = None
    name: OptionalTitle = ""


class NewRole(RequestModel):
    """A new role for a user, in the account or in `org`."""

    role: Reference
    org: Reference | None = None


class Membership(ResponseModel):
    """A user's membership of an organisation, and the role there."""

    org_id: str
    org: str
    role: str


class User(ResponseModel):
    """A user, as far as the caller may see."""

    id: str
    email: str
    name: str
    role: str | None
    status: Literal["active", "suspended", "removed"]
    memberships: list[Membership]
    created_at: Time
    updated_at: Time
    warnings: list[str]


class Users(Listing):
    """Users that were not removed, oldest first."""

    items: list[User]


async def add(call: Call[NewUser, NoQuery]) -> View:
    """Handle ``users.add``."""
    body, users = call.body, call.services.users
    return await users.add(
        call.actor, body.email, body.role, org=body.org, name=body.name, idempotency_key=call.idempotency_key
    )


async def list_users(call: Call[NoBody, PageQuery]) -> View:
    """Handle ``users.list``."""
    query = call.query
    page = await call.services.users.list(call.actor, page=query.page)
    return listing(page)


async def show(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``users.show``."""
    return await call.services.users.show(call.actor, call.path["user"])


async def set_role(call: Call[NewRole, NoQuery]) -> View:
    """Handle ``users.set_role``."""
    return await call.services.users.set_role(call.actor, call.path["user"], call.body.role, org=call.body.org)


async def suspend(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``users.suspend``."""
    return await call.services.users.suspend(call.actor, call.path["user"])


async def resume(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``users.resume``."""
    return await call.services.users.resume(call.actor, call.path["user"])


async def remove(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``users.remove``."""
    return await call.services.users.remove(call.actor, call.path["user"])


OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    Operation(
        name="users.list",
        method=Method.GET,
        path="/users",
        summary="List users",
        run=list_users,
        query=PageQuery,
        answer=Users,
    ),
    Operation(
        name="users.add",
        method=Method.POST,
        path="/users",
        summary="Add a user, or a member of an organisation",
        run=add,
        body=NewUser,
        answer=User,
        status=201,
        conflicts=True,
        creates=True,
    ),
    Operation(name="users.show", method=Method.GET, path="/users/{user}", summary="Show a user", run=show, answer=User),
    Operation(
        name="users.remove",
        method=Method.DELETE,
        path="/users/{user}",
        summary="Remove a user permanently and end all their tokens",
        run=remove,
        answer=User,
    ),
    Operation(
        name="users.set_role",
        method=Method.POST,
        path="/users/{user}/role",
        summary="Change a user's role in the account or in an organisation",
        run=set_role,
        body=NewRole,
        answer=User,
    ),
    Operation(
        name="users.suspend",
        method=Method.POST,
        path="/users/{user}/suspend",
        summary="Refuse every token of a user until they are resumed",
        run=suspend,
        answer=User,
    ),
    Operation(
        name="users.resume",
        method=Method.POST,
        path="/users/{user}/resume",
        summary="Resume a suspended user",
        run=resume,
        answer=User,
    ),
)
