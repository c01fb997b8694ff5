"""The bodies of requests.  Shape is checked here, meaning by the services.

Unknown fields are refused: a misspelt `scope` must not make a token that may do everything.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(max_length=320)]
Long = Annotated[str, Field(max_length=4096)]
Permissions = Annotated[tuple[Annotated[str, Field(max_length=1024)], ...], Field(max_length=1000)]


class Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, strict=True)


class NoBody(Body):
    """An action without parameters: an empty body or an empty object."""


class NewUser(Body):
    email: Text
    role: Text
    org: Text | None = None
    name: Text = ""


class NewRole(Body):
    """Another role for a user, in the account or in `org`."""

    role: Text
    org: Text | None = None


class NewOrg(Body):
    name: Text
    display_name: Text = ""


class RolePermissions(Body):
    permissions: Permissions


class NewToken(Body):
    user: Text
    name: Text
    org: Text | None = None
    expires: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Lifetime in seconds; null for what the policy gives."""
    scopes: Permissions = ()
    description: Long = ""
