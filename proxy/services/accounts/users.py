"""Users: adding, listing, changing, suspending and removing the owners of tokens.

Rules:

1. Every token of a user depends on ``user:<id>``, and a team token also on ``member:<org>/<user>``: one key reaches all
   of them when a user is suspended, removed or given a lesser role.
2. Removal is one transaction: the status, every membership, every open invitation. The row is kept for the audit log.
   The user's tokens are refused permanently: the same email added later is another user with another id.
3. A caller who gives or takes a role in the account must have all permissions of that role. To suspend, resume or
   remove a user, the caller must have all permissions that the user has anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from proxy.core.dependency_keys import member_key, memberships_key, user_key
from proxy.core.errors import Conflict, Forbidden
from proxy.core.kinds import Reach
from proxy.core.model import Actor, UserStatus
from proxy.services import idempotency, identifiers, lookup
from proxy.services.accounts import invitations, members
from proxy.services.accounts.members import record, require_within
from proxy.services.caller import AccountEntity, AccountOperation, Caller, load_caller
from proxy.services.idempotency import IdempotencyKey
from proxy.services.paging import FIRST_PAGE, Page, PageRequest, read_page
from proxy.services.validation import Fields
from proxy.services.views import UserView
from proxy.store.change import Rows
from proxy.store.records import MemberRow
from proxy.store.store import Store


class UserService:
    """Adds, lists, changes, suspends and removes users. ``user`` arguments are an email or an id.

    All methods raise StoreUnavailable, Unauthenticated and Forbidden.
    """

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def add(
        self,
        actor: Actor,
        email: str,
        role: str,
        org: str | None = None,
        name: str = "",
        *,
        idempotency_key: IdempotencyKey | None = None,
    ) -> UserView:
        """Add a user with a role in the account; with ``org``, a member with a role there.

        With ``org`` the user is created if needed, without a role in the account. Raises Invalid, NotFound (org),
        Conflict (exists).
        """
        fields = Fields()
        address = fields.check(lambda: identifiers.email(email)) or ""
        title = fields.check(lambda: identifiers.title(name, "name", required=False)) or ""
        fields.done()
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            earlier = await idempotency.created_before(change, actor, idempotency_key, change.now)
            if earlier is not None:
                return (await _visible_view(change, caller, earlier)).as_replay()
            if org is not None:
                organisation = await lookup.visible_org(change, caller, org)
                members.require_adding(caller)
                known = await change.users.by_email_key(identifiers.email_key(address))
                if known is None:
                    known = await members.new_user(change, address, title, lookup.NO_ROLE)
                await members.join(change, caller, organisation, known, role)
                await idempotency.remember(change, idempotency_key, known.id)
                return await _view(change, caller, known.id)
            caller.require(AccountEntity.USERS, AccountOperation.CREATE)
            known = await change.users.by_email_key(identifiers.email_key(address))
            await lookup.role(change, role)
            await require_within(change, caller, None, role)
            if known is not None:
                raise Conflict("there is a user with this email already")
            user = await members.new_user(change, address, title, role)
            await idempotency.remember(change, idempotency_key, user.id)
            change.touched(user_key(user.id))
            record(change, "account.user.add", user, None, {"role": role})
            return await _view(change, caller, user.id)

    async def list(self, actor: Actor, page: PageRequest = FIRST_PAGE) -> Page[UserView]:
        """Users that are not removed, oldest first. Raises Invalid (limit, cursor)."""
        page.check()
        async with self._store.read() as rows:
            caller = await load_caller(rows, actor, self._clock())
            caller.require(AccountEntity.USERS, AccountOperation.LIST)
            found = await read_page(page, caller, rows.users.page, rows.users.count_behind)
            memberships = await rows.members.of_users([user.id for user in found.items])
        by_user: dict[str, list[MemberRow]] = {}
        for member in memberships:
            by_user.setdefault(member.user_id, []).append(member)
        return found.with_items([UserView.of(user, by_user.get(user.id, ())) for user in found.items])

    async def show(self, actor: Actor, user: str) -> UserView:
        """One user: the caller's own, or any for a caller who may read users. Raises NotFound."""
        async with self._store.read() as rows:
            caller = await load_caller(rows, actor, self._clock())
            return await _visible_view(rows, caller, user)

    async def set_role(self, actor: Actor, user: str, role: str, org: str | None = None) -> UserView:
        """Give a user another role, in the account or in ``org``. Raises NotFound, Invalid (role)."""
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            if org is not None:
                organisation = await lookup.visible_org(change, caller, org)
                caller.require(AccountEntity.MEMBERS, AccountOperation.UPDATE, organisation.id)
                found, member = await lookup.member(change, organisation, user)
                await members.change_role(change, caller, organisation, found, member, role)
                return await _view(change, caller, found.id)
            found = await lookup.visible_user(change, caller, user)
            caller.require(AccountEntity.USERS, AccountOperation.UPDATE)
            await lookup.role(change, role)
            await require_within(change, caller, None, role)
            await require_within(change, caller, None, found.role)
            if found.role != role:
                await change.users.set_role(found.id, role, change.now)
                change.touched(user_key(found.id))
                record(change, "account.user.set_role", found, None, {"role": role, "before": found.role})
            return await _view(change, caller, found.id)

    async def suspend(self, actor: Actor, user: str) -> UserView:
        """Refuse every token of a user until ``resume``. Idempotent. Raises NotFound."""
        return await self._set_status(actor, user, UserStatus.SUSPENDED, "account.user.suspend")

    async def resume(self, actor: Actor, user: str) -> UserView:
        """Undo ``suspend``. Raises NotFound, also for a removed user."""
        return await self._set_status(actor, user, UserStatus.ACTIVE, "account.user.resume")

    async def remove(self, actor: Actor, user: str) -> UserView:
        """Remove a user permanently: end every membership and refuse every token. Raises NotFound."""
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            found = await lookup.visible_user(change, caller, user)
            caller.require(AccountEntity.USERS, AccountOperation.DELETE)
            await require_within(change, caller, None, found.role)
            memberships = await change.members.of_user(found.id)
            await _require_within_all(change, caller, memberships)
            await change.members.delete_of_user(found.id)
            await invitations.withdraw_all(change, found.email_key)
            await change.users.set_status(found.id, UserStatus.REMOVED, change.now)
            change.touched(user_key(found.id), memberships_key(found.id))
            change.touched(*(member_key(row.org_id, found.id) for row in memberships))
            record(change, "account.user.remove", found, None, {"orgs": [row.org_name for row in memberships]})
            return await _view(change, caller, found.id)

    async def remove_member(self, actor: Actor, user: str, org: str) -> UserView:
        """End a membership as ``MemberService.remove`` does; returns the user after it. Raises NotFound."""
        await members.MemberService(self._store, self._clock).remove(actor, org, user)
        async with self._store.read() as rows:
            caller = await load_caller(rows, actor, self._clock())
            return await _view(rows, caller, (await lookup.user(rows, user)).id)

    async def _set_status(self, actor: Actor, user: str, status: UserStatus, action: str) -> UserView:
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            found = await lookup.visible_user(change, caller, user)
            caller.require(AccountEntity.USERS, AccountOperation.UPDATE)
            await require_within(change, caller, None, found.role)
            await _require_within_all(change, caller, await change.members.of_user(found.id))
            if found.status is not status:
                await change.users.set_status(found.id, status, change.now)
                change.touched(user_key(found.id))
                record(change, action, found, None, {})
            return await _view(change, caller, found.id)


async def _require_within_all(rows: Rows, caller: Caller, memberships: list[MemberRow]) -> None:
    """Raise Forbidden if one of these memberships permits more in its organisation than the caller has there."""
    for one in memberships:
        if not caller.may_give(await lookup.permissions(rows, one.role), one.org_id):
            raise Forbidden("this user may do more in an organisation than you may")


async def _visible_view(rows: Rows, caller: Caller, user: str) -> UserView:
    """``_view`` of the user with this email or id. Raises NotFound if the caller may not see them."""
    return await _view(rows, caller, (await lookup.visible_user(rows, caller, user)).id)


async def _view(rows: Rows, caller: Caller, user_id: str) -> UserView:
    """A user as the caller may see it: whole, or only the memberships in organisations whose members it may list.

    A token of one organisation sees even its own owner only as a member of that organisation.
    """
    row = await rows.users.by_id(user_id)
    if row is None:
        raise RuntimeError("a user vanished inside a transaction")
    memberships = await rows.members.of_user(user_id)
    own = user_id == caller.user_id
    team = caller.grant is not None and caller.grant.reach is Reach.ORG
    if (team or not own) and not caller.may(AccountEntity.USERS, AccountOperation.READ):
        memberships = [
            one
            for one in memberships
            if caller.may(AccountEntity.MEMBERS, AccountOperation.LIST, one.org_id)
            or (own and caller.reaches_org(one.org_id))
        ]
        view = UserView.of(row, memberships, with_role=False)
        if not own and memberships:
            # An organisation must not see when the user was added to the account, or changed there.
            begun = min(one.created_at for one in memberships)
            view = replace(view, created_at=begun, updated_at=max(one.updated_at for one in memberships))
        return view
    return UserView.of(row, memberships)
