"""Finding what a caller named, by name or id, inside the transaction that will use it.

A reference is never repeated in an error.
"""

from __future__ import annotations

from typing import Final

from proxy.core.errors import Invalid, NotFound
from proxy.core.model import UserStatus
from proxy.services import names
from proxy.store.change import Rows
from proxy.store.records import MemberRow, OrgRow, RoleRow, UserRow

NO_ROLE: Final = ""
"""The account role of a user who has roles in organisations only: it allows nothing."""


async def user(rows: Rows, reference: str) -> UserRow:
    """The user with this email or id. Raises NotFound, also for a removed one."""
    if names.is_user_id(reference):
        found = await rows.users.by_id(reference)
    else:
        found = await rows.users.by_email_key(names.email_key(reference))
    if found is None or found.status is UserStatus.REMOVED:
        raise NotFound("there is no user with this email or id")
    return found


async def org(rows: Rows, reference: str) -> OrgRow:
    """The organisation with this name or id. Raises NotFound."""
    by_id = names.is_org_id(reference)
    found = await (rows.orgs.by_id(reference) if by_id else rows.orgs.by_name(reference))
    if found is None:
        raise NotFound("there is no organisation with this name or id")
    return found


async def role(rows: Rows, name: str) -> RoleRow:
    """The role of this name, as the value of a field. Raises Invalid, and says which roles there are."""
    found = await rows.roles.get(name)
    if found is None:
        known = ", ".join(row.name for row in await rows.roles.all())
        raise Invalid("role", f"there is no such role; the roles are {known}" if known else "there are no roles yet")
    return found


async def member(rows: Rows, organisation: OrgRow, owner: UserRow) -> MemberRow:
    """The membership of this user in this organisation. Raises NotFound."""
    found = await rows.members.get(organisation.id, owner.id)
    if found is None:
        raise NotFound("the user is not a member of this organisation")
    return found
