"""Users: who may own tokens, with which role, and whether they work now.

Rules:

1. Every token of a user depends on ``user:<id>`` and a team token also on ``member:<org>/<user>``: suspending, removing
   and lowering reach all of them with one key.
2. Removal is one transaction: the status, every membership. The row stays for the audit log; its tokens are refused for
   good, since the same email added again is another user with another id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proxy.core.depends import member_key, user_key
from proxy.core.errors import Conflict
from proxy.core.model import Actor, UserStatus
from proxy.services import lookup, names
from proxy.services.views import LIMIT_DEFAULT, Page, UserView, check_limit, read_cursor, write_cursor
from proxy.store.change import Change, Rows
from proxy.store.records import MemberRow, OrgRow, UserRow
from proxy.store.store import Store


class Users:
    """The verbs of users. ``user`` arguments are an email or an id; all raise StoreUnavailable."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def add(self, actor: Actor, email: str, role: str, org: str | None = None, name: str = "") -> UserView:
        """Add a user with a role in the account; with ``org``, a member with a role there, made a user where needed.

        A user made through ``org`` has no role in the account. Raises Invalid, NotFound (org), Conflict (exists).
        """
        address = names.email(email)
        name = names.title(name, "name", required=False)
        async with self._store.change(actor, self._clock()) as change:
            await lookup.role(change, role)
            known = await change.users.by_email_key(names.email_key(address))
            if org is None:
                if known is not None:
                    raise Conflict("there is a user with this email already")
                user = await self._insert(change, address, name, role)
                details = {"role": role}
                organisation = None
            else:
                organisation = await lookup.org(change, org)
                user = known or await self._insert(change, address, name, lookup.NO_ROLE)
                if await change.members.get(organisation.id, user.id) is not None:
                    raise Conflict("the user is a member of this organisation already")
                await self._join(change, organisation, user, role)
                details = {"role": role, "org": organisation.name}
            change.touched(user_key(user.id))
            _audit(change, "account.user.add", user, organisation, details)
            return await _view(change, user.id)

    async def list(self, *, limit: int = LIMIT_DEFAULT, cursor: str | None = None) -> Page[UserView]:
        """Users that are not removed, oldest first. Raises Invalid (limit, cursor)."""
        after = read_cursor(cursor)
        async with self._store.read() as rows:
            found = await rows.users.page(after=after, limit=check_limit(limit) + 1)
            members = await rows.members.of_users([user.id for user in found])
        by_user: dict[str, list[MemberRow]] = {}
        for member in members:
            by_user.setdefault(member.user_id, []).append(member)
        views = [UserView.of(user, by_user.get(user.id, ())) for user in found[:limit]]
        more = len(found) > limit
        return Page(items=views, next_cursor=write_cursor(views[-1].created_at, views[-1].id) if more else None)

    async def show(self, user: str) -> UserView:
        """One user. Raises NotFound."""
        async with self._store.read() as rows:
            return await _view(rows, (await lookup.user(rows, user)).id)

    async def set_role(self, actor: Actor, user: str, role: str, org: str | None = None) -> UserView:
        """Give another role, in the account or in ``org``. Raises NotFound, Invalid (role)."""
        async with self._store.change(actor, self._clock()) as change:
            found = await lookup.user(change, user)
            await lookup.role(change, role)
            if org is None:
                before, organisation = found.role, None
                if before != role:
                    await change.users.set_role(found.id, role, change.now)
                    change.touched(user_key(found.id))
            else:
                organisation = await lookup.org(change, org)
                before = (await lookup.member(change, organisation, found)).role
                if before != role:
                    await change.members.set_role(organisation.id, found.id, role, change.now)
                    change.touched(member_key(organisation.id, found.id))
            if before != role:
                details = {"role": role, "before": before}
                _audit(change, "account.user.set_role", found, organisation, details)
            return await _view(change, found.id)

    async def suspend(self, actor: Actor, user: str) -> UserView:
        """Stop every token of a user until ``resume``. Suspending twice is suspending once. Raises NotFound."""
        return await self._set_status(actor, user, UserStatus.SUSPENDED, "account.user.suspend")

    async def resume(self, actor: Actor, user: str) -> UserView:
        """Undo ``suspend``. Raises NotFound, also for a removed user."""
        return await self._set_status(actor, user, UserStatus.ACTIVE, "account.user.resume")

    async def remove(self, actor: Actor, user: str) -> UserView:
        """Offboard a user for good: every membership ends and every token is refused. Raises NotFound."""
        async with self._store.change(actor, self._clock()) as change:
            found = await lookup.user(change, user)
            memberships = await change.members.of_user(found.id)
            await change.members.delete_of_user(found.id)
            await change.users.set_status(found.id, UserStatus.REMOVED, change.now)
            change.touched(user_key(found.id), *(member_key(row.org_id, found.id) for row in memberships))
            details = {"orgs": [row.org_name for row in memberships]}
            _audit(change, "account.user.remove", found, None, details)
            return await _view(change, found.id)

    async def remove_member(self, actor: Actor, user: str, org: str) -> UserView:
        """End a membership: the user's tokens of that organisation are refused from now on. Raises NotFound."""
        async with self._store.change(actor, self._clock()) as change:
            found = await lookup.user(change, user)
            organisation = await lookup.org(change, org)
            before = await lookup.member(change, organisation, found)
            await change.members.delete(organisation.id, found.id)
            change.touched(member_key(organisation.id, found.id))
            _audit(change, "account.member.remove", found, organisation, {"before": before.role})
            return await _view(change, found.id)

    async def _set_status(self, actor: Actor, user: str, status: UserStatus, action: str) -> UserView:
        async with self._store.change(actor, self._clock()) as change:
            found = await lookup.user(change, user)
            if found.status is not status:
                await change.users.set_status(found.id, status, change.now)
                change.touched(user_key(found.id))
                _audit(change, action, found, None, {})
            return await _view(change, found.id)

    async def _insert(self, change: Change, address: str, name: str, role: str) -> UserRow:
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

    async def _join(self, change: Change, organisation: OrgRow, user: UserRow, role: str) -> None:
        await change.members.add(
            MemberRow(org_id=organisation.id, user_id=user.id, role=role, created_at=change.now, updated_at=change.now)
        )
        change.touched(member_key(organisation.id, user.id))


def _audit(
    change: Change, action: str, user: UserRow, organisation: OrgRow | None, details: Mapping[str, object]
) -> None:
    change.audit(
        action,
        target_kind="user",
        target_id=user.id,
        target_name=user.email,
        org_id="" if organisation is None else organisation.id,
        details=details,
    )


async def _view(rows: Rows, user_id: str) -> UserView:
    row = await rows.users.by_id(user_id)
    if row is None:
        raise RuntimeError("a user vanished inside a transaction")
    return UserView.of(row, await rows.members.of_user(user_id))
