"""Memberships: who is in an organisation, with which role there.

Rules:

1. Whoever gives, changes or ends a role in an organisation may do all that the role permits there, the former one as
   the new one: nobody raises somebody above himself, or puts down somebody who may more.
2. An administrator of an organisation sees its members and nothing else of them: not their role in the account, not the
   other organisations that they are in. Somebody who is no member is named by email: an id that is none of the asker's
   business is answered like one that there is not.
3. Every change touches the membership and the list of the user's memberships, which account-wide tokens depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from proxy.core.depends import member_key, memberships_key, user_key
from proxy.core.errors import Conflict, Forbidden, NotFound
from proxy.core.model import Actor, UserStatus
from proxy.services import lookalikes, lookup, names
from proxy.services.access import Entity, Operation, Standing, standing
from proxy.services.views import LIMIT_DEFAULT, MemberView, Page, check_limit, person_texts, read_cursor, write_cursor
from proxy.store.change import Change, Rows
from proxy.store.records import MemberRow, OrgRow, UserRow
from proxy.store.store import Store

_ROLE_TOO_WIDE: Final = "this role permits more in the organisation than you may do there"


class Members:
    """The verbs of memberships. ``org`` is a name or an id, ``user`` an email or an id; all raise StoreUnavailable,
    Unauthenticated, NotFound and Forbidden.
    """

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def list(
        self, actor: Actor, org: str, *, limit: int = LIMIT_DEFAULT, cursor: str | None = None
    ) -> Page[MemberView]:
        """The members of an organisation in the order in which they joined. Raises Invalid (limit, cursor)."""
        after = read_cursor(cursor)
        async with self._store.read() as rows:
            asker = await standing(rows, actor, self._clock())
            organisation = await lookup.visible_org(rows, asker, org)
            asker.require(Entity.MEMBERS, Operation.LIST, organisation.id)
            found = await rows.members.page(organisation.id, after=after, limit=check_limit(limit) + 1)
        views = [MemberView.of(member, user) for member, user in found[:limit]]
        more = len(found) > limit
        return Page(items=views, next_cursor=write_cursor(views[-1].created_at, views[-1].user_id) if more else None)

    async def set(self, actor: Actor, org: str, user: str, role: str) -> MemberView:
        """Give a user, by email or id, this role in an organisation: a member from now on. Raises Invalid (role,
        email).

        An email that nobody has yet becomes a user without a role in the account.
        """
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            organisation = await lookup.visible_org(change, asker, org)
            # Before anybody is looked for: whoever may do neither does not learn who is a member.
            if not asker.may(Entity.MEMBERS, Operation.CREATE, organisation.id):
                asker.require(Entity.MEMBERS, Operation.UPDATE, organisation.id)
            known = await _known(change, asker, organisation, user)
            former = None if known is None else await change.members.get(organisation.id, known.id)
            if known is None or former is None:
                known = await join(change, asker, organisation, known or user, role)
            else:
                await change_role(change, asker, organisation, known, former, role)
            found, member = await lookup.member(change, organisation, known.id)
            return MemberView.of(member, found)

    async def remove(self, actor: Actor, org: str, user: str) -> MemberView:
        """End a membership: the user's tokens of that organisation are refused from now on."""
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            organisation = await lookup.visible_org(change, asker, org)
            asker.require(Entity.MEMBERS, Operation.DELETE, organisation.id)
            found, member = await lookup.member(change, organisation, user)
            await require_within(change, asker, organisation, member.role)
            view = MemberView.of(member, found)
            await change.members.delete(organisation.id, found.id)
            touch(change, organisation.id, found.id)
            tell(change, "account.member.remove", found, organisation, {"before": member.role})
            return view


async def join(change: Change, asker: Standing, organisation: OrgRow, user: UserRow | str, role: str) -> UserRow:
    """Make a user, or the user with a new email, a member. Raises Invalid, Conflict, Forbidden."""
    asker.require(Entity.MEMBERS, Operation.CREATE, organisation.id)
    await lookup.role(change, role)
    await require_within(change, asker, organisation, role)
    found = await new_user(change, names.email(user), "", lookup.NO_ROLE) if isinstance(user, str) else user
    if await change.members.get(organisation.id, found.id) is not None:
        raise Conflict("the user is a member of this organisation already")
    await change.members.add(
        MemberRow(org_id=organisation.id, user_id=found.id, role=role, created_at=change.now, updated_at=change.now)
    )
    change.touched(user_key(found.id))
    touch(change, organisation.id, found.id)
    tell(change, "account.user.add", found, organisation, {"role": role, "org": organisation.name})
    return found


async def change_role(
    change: Change, asker: Standing, organisation: OrgRow, user: UserRow, member: MemberRow, role: str
) -> None:
    """Give a member another role there. Raises Invalid (role), Forbidden."""
    asker.require(Entity.MEMBERS, Operation.UPDATE, organisation.id)
    await lookup.role(change, role)
    await require_within(change, asker, organisation, role)
    await require_within(change, asker, organisation, member.role)
    if member.role == role:
        return
    await change.members.set_role(organisation.id, user.id, role, change.now)
    touch(change, organisation.id, user.id)
    tell(change, "account.user.set_role", user, organisation, {"role": role, "before": member.role})


async def require_within(rows: Rows, asker: Standing, organisation: OrgRow | None, role: str) -> None:
    """Raises Forbidden where the role permits more (there, or in the account) than the asker may do."""
    if not asker.may_give(await lookup.permissions(rows, role), "" if organisation is None else organisation.id):
        message = "this role permits more than you may do" if organisation is None else _ROLE_TOO_WIDE
        raise Forbidden(message, ("role", message))


async def new_user(change: Change, address: str, name: str, role: str) -> UserRow:
    """Add the row of a user whose email nobody has; what it touches and the event are the caller's."""
    row = UserRow(
        id=names.new_user_id(),
        email=address,
        email_key=names.email_key(address),
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


async def _known(rows: Rows, asker: Standing, organisation: OrgRow, reference: str) -> UserRow | None:
    """The user, or None for an email that nobody has. Raises NotFound for an id that nobody has, or nobody who is a
    member or whom the asker may see.
    """
    if not names.is_user_id(reference):
        try:
            return await lookup.user(rows, reference)
        except NotFound:
            return None
    if await rows.members.get(organisation.id, reference) is not None:
        return await lookup.user(rows, reference)
    return await lookup.visible_user(rows, asker, reference)
