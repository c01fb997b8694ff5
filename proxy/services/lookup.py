"""Looks up users, organisations, members and roles by name or id, in the transaction that uses them.

No error repeats the reference.
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
"""The account role of a user who has roles in organisations only. It allows nothing."""
_NO_USER: Final = "there is no user with this email or id"
NO_MEMBER: Final = "there is no member with this email or id in this organisation"
_NO_ORG: Final = "there is no organisation with this name or id"


async def user(rows: Rows, reference: str) -> UserRow:
    """The user with this email or id. Raises NotFound, also for a removed user."""
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


async def visible_org(rows: Rows, caller: Caller, reference: str) -> OrgRow:
    """The organisation with this name or id, if the caller may see it: it acts in it, or may read organisations.

    Raises NotFound, with the same message for an unknown organisation and for one that the caller may not see.
    """
    found = await org(rows, reference)
    if not caller.reaches_org(found.id) and not caller.may(AccountEntity.ORGS, AccountOperation.READ, found.id):
        raise NotFound(_NO_ORG)
    return found


async def own_org(rows: Rows, caller: Caller, reference: str) -> OrgRow:
    """Return what ``visible_org`` does, and also an organisation of which the token's owner is a member.

    The latter only for a token that is not bound to one organisation.
    """
    grant = caller.grant
    if grant is not None and grant.reach in (Reach.PERSONAL, Reach.ACCOUNT):
        # Search the owner's memberships only: the statements do not depend on which other organisations exist.
        for one in await rows.members.of_user(grant.user_id):
            if reference in (one.org_id, one.org_name):
                return await org(rows, one.org_id)
    return await visible_org(rows, caller, reference)


async def own_email_key(rows: Rows, caller: Caller) -> str | None:
    """The ``email_key`` of the token's owner, as it is stored; None unless the caller has a personal access token.

    The stored key can differ from ``identifiers.email_key`` of the email: where two older users have emails that are
    compared as equal today, the newer user was given another key.
    """
    grant = caller.grant
    if grant is None or grant.kind not in OF_USERS:
        return None
    found = await rows.users.by_id(grant.user_id)
    return None if found is None else found.email_key


async def visible_user(rows: Rows, caller: Caller, reference: str) -> UserRow:
    """The user with this email or id, if the caller is that user or may read users. Raises NotFound otherwise."""
    found = await user(rows, reference)
    if found.id != caller.user_id and not caller.may(AccountEntity.USERS, AccountOperation.READ):
        raise NotFound(_NO_USER)
    return found


async def permissions(rows: Rows, role_name: str) -> PermissionSet:
    """The permissions that the role of this name has now; none if there is no such role."""
    found = await rows.roles.get(role_name)
    return PermissionSet.of(() if found is None else found.permissions)


async def role(rows: Rows, name: str) -> RoleRow:
    """The role of this name, given as the field ``role``. Raises Invalid, whose message lists the roles."""
    found = await rows.roles.get(name)
    if found is None:
        known = ", ".join(row.name for row in await rows.roles.all())
        raise Invalid("role", f"there is no such role; the roles are {known}" if known else "there are no roles yet")
    return found


async def member(rows: Rows, organisation: OrgRow, reference: str) -> tuple[UserRow, MemberRow]:
    """The member with this email or id.

    Raises NotFound, with the same message and after the same statements, for a user who is not a member and for an
    unknown one.
    """
    membership = await membership_of(rows, organisation.id, reference)
    found = None if membership is None else await rows.users.by_id(membership.user_id)
    if membership is None or found is None:
        raise NotFound(NO_MEMBER)
    return found, membership


async def membership_of(rows: Rows, org_id: str, reference: str) -> MemberRow | None:
    """The membership of the user with this email or id, read with one statement; None if there is none."""
    if identifiers.is_user_id(reference):
        return await rows.members.get(org_id, reference)
    return await rows.members.by_email_key(org_id, identifiers.email_key(reference))
