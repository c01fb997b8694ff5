"""Users: who may own tokens, with which role, and whether they work now.

Rules:

1. Every token of a user depends on ``user:<id>`` and a team token also on ``member:<org>/<user>``: suspending, removing
   and lowering reach all of them with one key.
2. Removal is one transaction: the status, every membership, every open invitation. The row stays for the audit log;
   its tokens are refused for good, since the same email added again is another user with another id.
3. Whoever gives or takes a role in the account may do all that the role permits; whoever stops somebody, all that this
   person may do anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from proxy.core.dependency_keys import member_key, memberships_key, user_key
from proxy.core.errors import Conflict, Forbidden
from proxy.core.kinds import Reach
from proxy.core.model import Actor, UserStatus
from proxy.services import counting, idempotency, identifiers, lookup
from proxy.services.accounts import invitations, members
from proxy.services.accounts.members import require_within, tell
from proxy.services.caller import AccountEntity, AccountOperation, Caller, standing
from proxy.services.idempotency import Retry
from proxy.services.validation import Fields
from proxy.services.views import LIMIT_DEFAULT, Page, UserView, check_limit, cursor_behind, read_cursor
from proxy.store.change import Rows
from proxy.store.records import Cursor, MemberRow
from proxy.store.store import Store


class UserService:
    """The verbs of users. ``user`` arguments are an email or an id; all raise StoreUnavailable, Unauthenticated and
    Forbidden.
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
        retry: Retry | None = None,
    ) -> UserView:
        """Add a user with a role in the account; with ``org``, a member with a role there, made a user where needed.

        A user made through ``org`` has no role in the account. Raises Invalid, NotFound (org), Conflict (exists, or
        made by an earlier request with the same key).
        """
        fields = Fields()
        address = fields.check(lambda: identifiers.email(email)) or ""
        title = fields.check(lambda: identifiers.title(name, "name", required=False)) or ""
        fields.done()
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            await idempotency.require_new(change, retry)
            if org is not None:
                organisation = await lookup.visible_org(change, asker, org)
                members.require_adding(asker)
                known = await change.users.by_email_key(identifiers.email_key(address))
                if known is None:
                    known = await members.new_user(change, address, title, lookup.NO_ROLE)
                await members.join(change, asker, organisation, known, role)
                await idempotency.remember(change, retry, known.id)
                return await _view(change, asker, known.id)
            asker.require(AccountEntity.USERS, AccountOperation.CREATE)
            known = await change.users.by_email_key(identifiers.email_key(address))
            await lookup.role(change, role)
            await require_within(change, asker, None, role)
            if known is not None:
                raise Conflict("there is a user with this email already")
            user = await members.new_user(change, address, title, role)
            await idempotency.remember(change, retry, user.id)
            change.touched(user_key(user.id))
            tell(change, "account.user.add", user, None, {"role": role})
            return await _view(change, asker, user.id)

    async def made_before(self, actor: Actor, retry: Retry) -> UserView | None:
        """The user that an earlier request with this key added. Raises Invalid where that was another request."""
        async with self._store.read() as rows:
            made = await idempotency.made_before(rows, actor, retry, self._clock())
        return None if made is None else await self.show(actor, made)

    async def list(
        self, actor: Actor, *, limit: int = LIMIT_DEFAULT, cursor: str | None = None, count: bool = False
    ) -> Page[UserView]:
        """Users that are not removed, oldest first; with ``count``, how many more. Raises Invalid (limit, cursor)."""
        after = read_cursor(cursor)
        async with self._store.read() as rows:
            asker = await standing(rows, actor, self._clock())
            asker.require(AccountEntity.USERS, AccountOperation.LIST)
            found = await rows.users.page(after=after, limit=check_limit(limit) + 1)
            memberships = await rows.members.of_users([user.id for user in found])
            more = len(found) > limit
            last = Cursor(created_at=found[limit - 1].created_at, id=found[limit - 1].id) if more else None
            left = await counting.remaining(asker, last, rows.users.count_behind) if count else None
        by_user: dict[str, list[MemberRow]] = {}
        for member in memberships:
            by_user.setdefault(member.user_id, []).append(member)
        views = [UserView.of(user, by_user.get(user.id, ())) for user in found[:limit]]
        return Page(items=views, next_cursor=cursor_behind(last), remaining=left)

    async def show(self, actor: Actor, user: str) -> UserView:
        """One user: oneself, or anybody for whoever may read users. Raises NotFound."""
        async with self._store.read() as rows:
            asker = await standing(rows, actor, self._clock())
            return await _view(rows, asker, (await lookup.visible_user(rows, asker, user)).id)

    async def set_role(self, actor: Actor, user: str, role: str, org: str | None = None) -> UserView:
        """Give another role, in the account or in ``org``. Raises NotFound, Invalid (role)."""
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            if org is not None:
                organisation = await lookup.visible_org(change, asker, org)
                asker.require(AccountEntity.MEMBERS, AccountOperation.UPDATE, organisation.id)
                found, member = await lookup.member(change, organisation, user)
                await members.change_role(change, asker, organisation, found, member, role)
                return await _view(change, asker, found.id)
            found = await lookup.visible_user(change, asker, user)
            asker.require(AccountEntity.USERS, AccountOperation.UPDATE)
            await lookup.role(change, role)
            await require_within(change, asker, None, role)
            await require_within(change, asker, None, found.role)
            if found.role != role:
                await change.users.set_role(found.id, role, change.now)
                change.touched(user_key(found.id))
                tell(change, "account.user.set_role", found, None, {"role": role, "before": found.role})
            return await _view(change, asker, found.id)

    async def suspend(self, actor: Actor, user: str) -> UserView:
        """Stop every token of a user until ``resume``. Suspending twice is suspending once. Raises NotFound."""
        return await self._set_status(actor, user, UserStatus.SUSPENDED, "account.user.suspend")

    async def resume(self, actor: Actor, user: str) -> UserView:
        """Undo ``suspend``. Raises NotFound, also for a removed user."""
        return await self._set_status(actor, user, UserStatus.ACTIVE, "account.user.resume")

    async def remove(self, actor: Actor, user: str) -> UserView:
        """Offboard a user for good: every membership ends and every token is refused. Raises NotFound."""
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            found = await lookup.visible_user(change, asker, user)
            asker.require(AccountEntity.USERS, AccountOperation.DELETE)
            await require_within(change, asker, None, found.role)
            memberships = await change.members.of_user(found.id)
            await _require_within_all(change, asker, memberships)
            await change.members.delete_of_user(found.id)
            await invitations.withdraw_all(change, found.email_key)
            await change.users.set_status(found.id, UserStatus.REMOVED, change.now)
            change.touched(user_key(found.id), memberships_key(found.id))
            change.touched(*(member_key(row.org_id, found.id) for row in memberships))
            tell(change, "account.user.remove", found, None, {"orgs": [row.org_name for row in memberships]})
            return await _view(change, asker, found.id)

    async def remove_member(self, actor: Actor, user: str, org: str) -> UserView:
        """End a membership, as ``Members.remove``; the user as they are then. Raises NotFound."""
        await members.MemberService(self._store, self._clock).remove(actor, org, user)
        async with self._store.read() as rows:
            asker = await standing(rows, actor, self._clock())
            return await _view(rows, asker, (await lookup.user(rows, user)).id)

    async def _set_status(self, actor: Actor, user: str, status: UserStatus, action: str) -> UserView:
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            found = await lookup.visible_user(change, asker, user)
            asker.require(AccountEntity.USERS, AccountOperation.UPDATE)
            await require_within(change, asker, None, found.role)
            await _require_within_all(change, asker, await change.members.of_user(found.id))
            if found.status is not status:
                await change.users.set_status(found.id, status, change.now)
                change.touched(user_key(found.id))
                tell(change, action, found, None, {})
            return await _view(change, asker, found.id)


async def _require_within_all(rows: Rows, asker: Caller, memberships: list[MemberRow]) -> None:
    """Raises Forbidden where somebody may do more in one of these organisations than the asker."""
    for one in memberships:
        if not asker.may_give(await lookup.permissions(rows, one.role), one.org_id):
            raise Forbidden("this user may do more in an organisation than you may")


async def _view(rows: Rows, asker: Caller, user_id: str) -> UserView:
    """A user as the asker may see them: all of it, or the memberships only where the asker may list members.

    To a token of one organisation its own owner is no more than a member of it.
    """
    row = await rows.users.by_id(user_id)
    if row is None:
        raise RuntimeError("a user vanished inside a transaction")
    memberships = await rows.members.of_user(user_id)
    own = user_id == asker.user_id
    team = asker.grant is not None and asker.grant.reach is Reach.ORG
    if (team or not own) and not asker.may(AccountEntity.USERS, AccountOperation.READ):
        memberships = [
            one
            for one in memberships
            if asker.may(AccountEntity.MEMBERS, AccountOperation.LIST, one.org_id)
            or (own and asker.reaches_org(one.org_id))
        ]
        view = UserView.of(row, memberships, with_role=False)
        if not own and memberships:
            # When they were added to the account, and changed there, is no business of an organisation.
            begun = min(one.created_at for one in memberships)
            view = replace(view, created_at=begun, updated_at=max(one.updated_at for one in memberships))
        return view
    return UserView.of(row, memberships)
