"""Memberships: listing, adding, changing and removing the members of an organisation and their roles.

Rules:

1. A caller who gives, changes or ends a role in an organisation must have all permissions of the new and of the former
   role there: no caller can raise a member above itself, or lower a member who has more permissions.
2. People join by accepting an invitation (``invitations``). Only an administrator of the account can add a user
   without one (``adds_directly``), and only that administrator learns by it whether the user exists.
3. Every member can leave, regardless of the role. After an organisation's last administrator has left, the
   administrators of the account can still manage it.
4. An administrator of an organisation sees its members, but not their role in the account or their other
   organisations. A user who is not a member gives the same error as an unknown user.
5. Every change touches the membership and the list of the user's memberships, which account-wide tokens depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from proxy.core.dependency_keys import invitation_key, member_key, memberships_key, user_key
from proxy.core.errors import Conflict, Forbidden, NotFound
from proxy.core.model import Actor, UserStatus
from proxy.services import identifiers, lookalikes, lookup
from proxy.services.caller import AccountEntity, AccountOperation, Caller, load_caller
from proxy.services.paging import FIRST_PAGE, Page, PageRequest, read_page
from proxy.services.views import MemberView, person_texts
from proxy.store.change import Change, Rows
from proxy.store.records import Cursor, MemberRow, OrgRow, UserRow
from proxy.store.store import Store

_INVITE: Final = f"{lookup.NO_MEMBER}: invite people who are not members"
_ROLE_TOO_WIDE: Final = "this role permits more in the organisation than you may do there"


class MemberService:
    """Lists, adds, changes and removes memberships. ``org`` is a name or an id, ``user`` an email or an id.

    All methods raise StoreUnavailable, Unauthenticated, NotFound and Forbidden.
    """

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def list(self, actor: Actor, org: str, page: PageRequest = FIRST_PAGE) -> Page[MemberView]:
        """The members of an organisation in the order in which they joined.

        Raises Invalid (limit, cursor).
        """
        page.check()
        async with self._store.read() as rows:
            caller = await load_caller(rows, actor, self._clock())
            organisation = await lookup.visible_org(rows, caller, org)
            caller.require(AccountEntity.MEMBERS, AccountOperation.LIST, organisation.id)
            query = partial(rows.members.page, organisation.id)
            behind = partial(rows.members.count_behind, organisation.id)
            found = await read_page(page, caller, query, behind, _position)
        return found.with_items([MemberView.of(member, user) for member, user in found.items])

    async def set(self, actor: Actor, org: str, user: str, role: str) -> MemberView:
        """Give a member another role in the organisation. Raises Invalid (role, email).

        Called by an administrator of the account, it adds a user who is not a member; for an email without a user it
        creates one without a role in the account.
        """
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            organisation = await lookup.visible_org(change, caller, org)
            # Before the lookup: a caller who may do neither must not learn who is a member.
            direct = adds_directly(caller)
            if not direct:
                caller.require(AccountEntity.MEMBERS, AccountOperation.UPDATE, organisation.id)
            try:
                known, former = await lookup.member(change, organisation, user)
            except NotFound:
                if not direct:
                    raise NotFound(_INVITE) from None
                known = await join(change, caller, organisation, await _known(change, caller, user) or user, role)
            else:
                await change_role(change, caller, organisation, known, former, role)
            found, member = await lookup.member(change, organisation, known.id)
            return MemberView.of(member, found)

    async def remove(self, actor: Actor, org: str, user: str) -> MemberView:
        """End a membership: the user's tokens of that organisation are refused at once.

        Members need no permission to end their own, with a token of that organisation or of no organisation.
        """
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            own = await is_self(change, caller, user)
            organisation = await (lookup.own_org if own else lookup.visible_org)(change, caller, org)
            if own:
                caller.require_scope(AccountEntity.MEMBERS, AccountOperation.DELETE)
            else:
                caller.require(AccountEntity.MEMBERS, AccountOperation.DELETE, organisation.id)
            found, member = await lookup.member(change, organisation, user)
            if not own:
                await require_within(change, caller, organisation, member.role)
            view = MemberView.of(member, found)
            await change.members.delete(organisation.id, found.id)
            touch(change, organisation.id, found.id)
            action = "account.member.leave" if own else "account.member.remove"
            record(change, action, found, organisation, {"before": member.role})
            return view


async def is_self(rows: Rows, caller: Caller, reference: str) -> bool:
    """Whether this email or id is that of the token's owner. No other user is looked up."""
    key = await lookup.own_email_key(rows, caller)
    return key is not None and (reference == caller.user_id or identifiers.email_key(reference) == key)


def adds_directly(caller: Caller) -> bool:
    """Whether the caller may add people to organisations without an invitation.

    That is the operator, and a caller whose role in the account may create both users and members.
    """
    return caller.may(AccountEntity.USERS, AccountOperation.CREATE) and caller.may(
        AccountEntity.MEMBERS, AccountOperation.CREATE
    )


def require_adding(caller: Caller) -> None:
    """Raise Forbidden unless ``adds_directly``."""
    if not adds_directly(caller):
        permission = f"{AccountEntity.USERS.value}:{AccountOperation.CREATE.value}"
        raise Forbidden("only an administrator of the account adds people: invite them", permission=permission)


async def join(change: Change, caller: Caller, organisation: OrgRow, user: UserRow | str, role: str) -> UserRow:
    """Add a user, or a new user with this email, to an organisation. Raises Invalid, Conflict, Forbidden."""
    require_adding(caller)
    await lookup.role(change, role)
    await require_within(change, caller, organisation, role)
    found = await new_user(change, identifiers.email(user), "", lookup.NO_ROLE) if isinstance(user, str) else user
    await enter(change, organisation, found, role)
    record(change, "account.user.add", found, organisation, {"role": role, "org": organisation.name})
    return found


async def enter(change: Change, organisation: OrgRow, user: UserRow, role: str) -> None:
    """Add the row of a membership and delete an open invitation of the user. Raises Conflict.

    The audit event is left to the calling function.
    """
    if await change.members.get(organisation.id, user.id) is not None:
        raise Conflict("the user is a member of this organisation already")
    await change.members.add(
        MemberRow(org_id=organisation.id, user_id=user.id, role=role, created_at=change.now, updated_at=change.now)
    )
    change.touched(user_key(user.id))
    touch(change, organisation.id, user.id)
    invited = await change.invitations.of(organisation.id, user.email_key, change.now)
    if invited is not None:
        await change.invitations.delete(invited.id)
        change.touched(invitation_key(invited.id))


async def change_role(
    change: Change, caller: Caller, organisation: OrgRow, user: UserRow, member: MemberRow, role: str
) -> None:
    """Give a member another role there. Raises Invalid (role), Forbidden."""
    caller.require(AccountEntity.MEMBERS, AccountOperation.UPDATE, organisation.id)
    await lookup.role(change, role)
    await require_within(change, caller, organisation, role)
    await require_within(change, caller, organisation, member.role)
    if member.role == role:
        return
    await change.members.set_role(organisation.id, user.id, role, change.now)
    touch(change, organisation.id, user.id)
    record(change, "account.user.set_role", user, organisation, {"role": role, "before": member.role})


async def require_within(rows: Rows, caller: Caller, organisation: OrgRow | None, role: str) -> None:
    """Raise Forbidden if the role has more permissions (in the organisation or the account) than the caller."""
    if not caller.may_give(await lookup.permissions(rows, role), "" if organisation is None else organisation.id):
        message = "this role permits more than you may do" if organisation is None else _ROLE_TOO_WIDE
        raise Forbidden(message, ("role", message))


async def new_user(change: Change, address: str, name: str, role: str) -> UserRow:
    """Add the row of a user with an unused email. Dependency key and audit event are left to the calling function."""
    row = UserRow(
        id=identifiers.new_user_id(),
        email=address,
        email_key=identifiers.email_key(address),
        name=name,
        role=role,
        status=UserStatus.ACTIVE,
        created_at=change.now,
        updated_at=change.now,
    )
    await change.users.add(row)
    return row


def touch(change: Change, org_id: str, user_id: str) -> None:
    """Touch the dependency keys of this membership."""
    change.touched(member_key(org_id, user_id), memberships_key(user_id))


def record(
    change: Change, action: str, user: UserRow, organisation: OrgRow | None, details: Mapping[str, object]
) -> None:
    """Record the audit event of a change to a user; of a change to a membership, on the organisation's log."""
    mixed = lookalikes.mixed_fields(person_texts(user.email, user.name))
    change.audit(
        action,
        target_kind="user",
        target_id=user.id,
        target_name=user.email,
        org_id="" if organisation is None else organisation.id,
        user_id=user.id,
        details={**details, "mixed_scripts": mixed} if mixed else details,
    )


async def _known(rows: Rows, caller: Caller, reference: str) -> UserRow | None:
    """The user with this email or id; None for an email without a user.

    Raises NotFound for an id that is unknown, or of a user whom the caller may not see.
    """
    if identifiers.is_user_id(reference):
        return await lookup.visible_user(rows, caller, reference)
    try:
        return await lookup.user(rows, reference)
    except NotFound:
        return None


def _position(row: tuple[MemberRow, UserRow]) -> Cursor:
    member, user = row
    return Cursor(created_at=member.created_at, id=user.id)
