"""``GET /me``: the caller's token, its owner, and what it may do."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from proxy.control.api.operation import Call, Method, NoBody, NoQuery, Operation, View
from proxy.control.api.users import User
from proxy.control.models import ActorKindWord, ResponseModel, Token


class Allowance(ResponseModel):
    """A role and its current permissions, in the account (`org` null) or in an organisation."""

    org_id: str | None
    org: str | None
    role: str | None
    permissions: list[str]


class Me(ResponseModel):
    """The caller's token, its owner, and what it may do.

    A permission counts if a role in `allowed` has it and, unless `scopes` is null, `scopes` covers it.
    """

    kind: ActorKindWord
    name: str
    user: Annotated[User | None, Field(description="The owner; null for keys and for the control socket.")]
    token: Token | None
    allowed: list[Allowance]
    scopes: Annotated[list[str] | None, Field(description="The token's scopes; null if it is not limited by scopes.")]


async def show(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``me.show``."""
    return await call.services.me.show(call.actor)


OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    Operation(name="me.show", method=Method.GET, path="/me", summary="Show the caller", run=show, answer=Me),
)
