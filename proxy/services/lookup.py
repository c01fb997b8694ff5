"""Finding what a caller named, by name or id, inside the transaction that will use it.

A reference is never repeated in an error.
"""

from __future__ import annotations

from typing import Final

from proxy.core.errors import Invalid, NotFound
from proxy.core.kinds import OF_USERS, Reach
from proxy.core.model import UserStatus
from proxy.core.permissions import PermissionSet
from proxy.services import identifiers
from proxy.services.caller import AccountEntity, AccountOperation, Caller
from proxy.store.change import Rows
from proxy.store.records import MemberRow, OrgRow, RoleRow, UserRow

NO_ROLE: Final = ""
"""The account role of a user who has roles in organisations only: it allows nothing."""
_NO_USER: Final = "there is no user with this email or id"
NO_MEMBER: Final = "there is no member with this email or id in this organisation"
_NO_ORG: Final = "there is no organisation with this name or id"


async def user(rows: Rows, reference: str) -> UserRow:
    """The user with this email or id. Raises NotFound, also for a removed one."""
    if identifiers.is_user_id(reference):
        found = await rows.users.by_id(reference)
    else:
        found = await rows.users.by_email_key(identifiers.email_key(reference))
    if found is None or found.status is UserStatus.REMOVED:
        raise NotFound(_NO_USER)
    return found


async def org(rows: Rows, reference: str) -> OrgRow:
    """The organisation with this name or id. Raises NotFound."""
    by_id = identifiers.is_org_id(reference)
    found = await (rows.orgs.by_id(reference) if by_id else rows.orgs.by_name(reference))
    if found is None:
        raise NotFound(_NO_ORG)
    return found


async def visible_org(rows: Rows, asker: Caller, reference: str) -> OrgRow:
    """The organisation with this name or id, if ``asker`` may know of it: it acts in it, or may read organisations.

    Raises NotFound in the same words for one that there is not and one that is not to be seen.
    """
    found = await org(rows, reference)
    if not asker.reaches_org(found.id) and not asker.may(AccountEntity.ORGS, AccountOperation.READ, found.id):
        raise NotFound(_NO_ORG)
    return found


async def own_org(rows: Rows, asker: Caller, reference: str) -> OrgRow:
    """As ``visible_org``; also one that the owner of the token presented is a member of, unless the token is bound to
    another organisation.
    """
    grant = asker.grant
    if grant is not None and grant.reach in (Reach.PERSONAL, Reach.ACCOUNT):
        # Among one's own: the same statements, whatever other organisations there are.
        for one in await rows.members.of_user(grant.user_id):
            if reference in (one.org_id, one.org_name):
                return await org(rows, one.org_id)
    return await visible_org(rows, asker, reference)


async def own_email_key(rows: Rows, asker: Caller) -> str | None:
    """The form in which the email of the token's owner is compared; None for what is no personal access token.

    As it is stored: of two users from before whose emails are one now, the newer one has another than is made now.
    """
    grant = asker.grant
    if grant is None or grant.kind not in OF_USERS:
        return None
    found = await rows.users.by_id(grant.user_id)
    return None if found is None else found.email_key


async def visible_user(rows: Rows, asker: Caller, reference: str) -> UserRow:
    """The user with this email or id, if ``asker`` is that user or may read users. Raises NotFound, likewise."""
    found = await user(rows, reference)
    if found.id != asker.user_id and not asker.may(AccountEntity.USERS, AccountOperation.READ):
        raise NotFound(_NO_USER)
    return found


async def permissions(rows: Rows, role_name: str) -> PermissionSet:
    """What a role of this name permits now; nothing where there is none."""
    found = await rows.roles.get(role_name)
    return PermissionSet.of(() if found is None else found.permissions)


async def role(rows: Rows, name: str) -> RoleRow:
    """The role of this name, as the value of a field. Raises Invalid, and says which roles there are."""
    found = await rows.roles.get(name)
    if found is None:
        known = ", ".join(row.name for row in await rows.roles.all())
        raise Invalid("role", f"there is no such role; the roles are {known}" if known else "there are no roles yet")
    return found


async def member(rows: Rows, organisation: OrgRow, reference: str) -> tuple[UserRow, MemberRow]:
    """The member with this email or id.

    Raises NotFound in the same words, and after the same statements, for another user and for nobody.
    """
    membership = await membership_of(rows, organisation.id, reference)
    found = None if membership is None else await rows.users.by_id(membership.user_id)
    if membership is None or found is None:
        raise NotFound(NO_MEMBER)
    return found, membership


async def membership_of(rows: Rows, org_id: str, reference: str) -> MemberRow | None:
    """The membership of the user with this email or id, by one statement."""
    if identifiers.is_user_id(reference):
        return await rows.members.get(org_id, reference)
    return await rows.members.by_email_key(org_id, identifiers.email_key(reference))
