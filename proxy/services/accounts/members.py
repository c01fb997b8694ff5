"""Memberships: who is in an organisation, with which role there.

Rules:

1. Whoever gives, changes or ends a role in an organisation may do all that the role permits there, the former one as
   the new one: nobody raises somebody above himself, or puts down somebody who may more.
2. People join by an invitation that they accept (``invitations``). Only an administrator of the account adds somebody
   without asking (``adds_directly``), and only that administrator learns from it whether there is such a user.
3. Anyone leaves by themselves, whatever their role; the account's administrators remain where the last one of an
   organisation leaves.
4. An administrator of an organisation sees its members and nothing else of them: not their role in the account, not the
   other organisations that they are in. Somebody who is no member is answered like somebody that there is not.
5. Every change touches the membership and the list of the user's memberships, which account-wide tokens depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from proxy.core.dependency_keys import invitation_key, member_key, memberships_key, user_key
from proxy.core.errors import Conflict, Forbidden, NotFound
from proxy.core.model import Actor, UserStatus
from proxy.services import counting, identifiers, lookalikes, lookup
from proxy.services.caller import AccountEntity, AccountOperation, Caller, standing
from proxy.services.views import LIMIT_DEFAULT, MemberView, Page, check_limit, cursor_behind, person_texts, read_cursor
from proxy.store.change import Change, Rows
from proxy.store.records import Cursor, MemberRow, OrgRow, UserRow
from proxy.store.store import Store

_INVITE: Final = f"{lookup.NO_MEMBER}: invite people who are none"
_ROLE_TOO_WIDE: Final = "this role permits more in the organisation than you may do there"


class MemberService:
    """The verbs of memberships. ``org`` is a name or an id, ``user`` an email or an id; all raise StoreUnavailable,
    Unauthenticated, NotFound and Forbidden.
    """

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def list(
        self, actor: Actor, org: str, *, limit: int = LIMIT_DEFAULT, cursor: str | None = None, count: bool = False
    ) -> Page[MemberView]:
        """The members of an organisation in the order in which they joined; with ``count``, how many more there are.

        Raises Invalid (limit, cursor).
        """
        after = read_cursor(cursor)
        async with self._store.read() as rows:
            asker = await standing(rows, actor, self._clock())
            organisation = await lookup.visible_org(rows, asker, org)
            asker.require(AccountEntity.MEMBERS, AccountOperation.LIST, organisation.id)
            found = await rows.members.page(organisation.id, after=after, limit=check_limit(limit) + 1)
            views = [MemberView.of(member, user) for member, user in found[:limit]]
            more = len(found) > limit
            last = Cursor(created_at=views[-1].created_at, id=views[-1].user_id) if more else None
            behind = partial(rows.members.count_behind, organisation.id)
            left = await counting.remaining(asker, last, behind) if count else None
        return Page(items=views, next_cursor=cursor_behind(last), remaining=left)

    async def set(self, actor: Actor, org: str, user: str, role: str) -> MemberView:
        """Give a member, by email or id, another role there. Raises Invalid (role, email).

        An administrator of the account adds somebody who is no member; an email that nobody has yet becomes a user
        without a role in the account.
        """
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            organisation = await lookup.visible_org(change, asker, org)
            # Before anybody is looked for: whoever may do neither does not learn who is a member.
            direct = adds_directly(asker)
            if not direct:
                asker.require(AccountEntity.MEMBERS, AccountOperation.UPDATE, organisation.id)
            try:
                known, former = await lookup.member(change, organisation, user)
            except NotFound:
                if not direct:
                    raise NotFound(_INVITE) from None
                known = await join(change, asker, organisation, await _known(change, asker, user) or user, role)
            else:
                await change_role(change, asker, organisation, known, former, role)
            found, member = await lookup.member(change, organisation, known.id)
            return MemberView.of(member, found)

    async def remove(self, actor: Actor, org: str, user: str) -> MemberView:
        """End a membership: the user's tokens of that organisation are refused from now on.

        One's own needs no permission: whoever is a member may leave, with a token of that organisation or of none.
        """
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            own = await is_self(change, asker, user)
            organisation = await (lookup.own_org if own else lookup.visible_org)(change, asker, org)
            if own:
                asker.require_scope(AccountEntity.MEMBERS, AccountOperation.DELETE)
            else:
                asker.require(AccountEntity.MEMBERS, AccountOperation.DELETE, organisation.id)
            found, member = await lookup.member(change, organisation, user)
            if not own:
                await require_within(change, asker, organisation, member.role)
            view = MemberView.of(member, found)
            await change.members.delete(organisation.id, found.id)
            touch(change, organisation.id, found.id)
            action = "account.member.leave" if own else "account.member.remove"
            tell(change, action, found, organisation, {"before": member.role})
            return view


async def is_self(rows: Rows, asker: Caller, reference: str) -> bool:
    """Whether this email or id is that of the owner of the token presented. Nobody else is looked up."""
    key = await lookup.own_email_key(rows, asker)
    return key is not None and (reference == asker.user_id or identifiers.email_key(reference) == key)


def adds_directly(asker: Caller) -> bool:
    """Whether the asker adds people to organisations without asking them: the operator, and whoever may create both
    users and members by a role in the account.
    """
    return asker.may(AccountEntity.USERS, AccountOperation.CREATE) and asker.may(
        AccountEntity.MEMBERS, AccountOperation.CREATE
    )


def require_adding(asker: Caller) -> None:
    """Raises Forbidden unless ``adds_directly``."""
    if not adds_directly(asker):
        permission = f"{AccountEntity.USERS.value}:{AccountOperation.CREATE.value}"
        raise Forbidden("only an administrator of the account adds people: invite them", permission=permission)


async def join(change: Change, asker: Caller, organisation: OrgRow, user: UserRow | str, role: str) -> UserRow:
    """Make a user, or the user with a new email, a member, without asking. Raises Invalid, Conflict, Forbidden."""
    require_adding(asker)
    await lookup.role(change, role)
    await require_within(change, asker, organisation, role)
    found = await new_user(change, identifiers.email(user), "", lookup.NO_ROLE) if isinstance(user, str) else user
    await enter(change, organisation, found, role)
    tell(change, "account.user.add", found, organisation, {"role": role, "org": organisation.name})
    return found


async def enter(change: Change, organisation: OrgRow, user: UserRow, role: str) -> None:
    """Make the row of a membership; an open invitation is over with it. The event is the caller's. Raises Conflict."""
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
    change: Change, asker: Caller, organisation: OrgRow, user: UserRow, member: MemberRow, role: str
) -> None:
    """Give a member another role there. Raises Invalid (role), Forbidden."""
    asker.require(AccountEntity.MEMBERS, AccountOperation.UPDATE, organisation.id)
    await lookup.role(change, role)
    await require_within(change, asker, organisation, role)
    await require_within(change, asker, organisation, member.role)
    if member.role == role:
        return
    await change.members.set_role(organisation.id, user.id, role, change.now)
    touch(change, organisation.id, user.id)
    tell(change, "account.user.set_role", user, organisation, {"role": role, "before": member.role})


async def require_within(rows: Rows, asker: Caller, organisation: OrgRow | None, role: str) -> None:
    """Raises Forbidden where the role permits more (there, or in the account) than the asker may do."""
    if not asker.may_give(await lookup.permissions(rows, role), "" if organisation is None else organisation.id):
        message = "this role permits more than you may do" if organisation is None else _ROLE_TOO_WIDE
        raise Forbidden(message, ("role", message))


async def new_user(change: Change, address: str, name: str, role: str) -> UserRow:
    """Add the row of a user whose email nobody has; what it touches and the event are the caller's."""
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
    """Name what depends on this membership."""
    change.touched(member_key(org_id, user_id), memberships_key(user_id))


def tell(
    change: Change, action: str, user: UserRow, organisation: OrgRow | None, details: Mapping[str, object]
) -> None:
    """Leave the event of a change to a user: on the organisation's log where it is about a membership."""
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


async def _known(rows: Rows, asker: Caller, reference: str) -> UserRow | None:
    """The user, or None for an email that nobody has. Raises NotFound for an id that nobody has, or nobody whom the
    asker may see.
    """
    if identifiers.is_user_id(reference):
        return await lookup.visible_user(rows, asker, reference)
    try:
        return await lookup.user(rows, reference)
    except NotFound:
        return None
