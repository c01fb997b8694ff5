"""Invitations: how people join an organisation.

Rules:

1. An invitation is addressed to an email. Whether a user has it is never looked at before the answer, so inviting tells
   an organisation nothing about who there is: the same answer, after the same statements.
2. The person answers it with a token of theirs that is bound to no organisation, or an administrator of the account
   answers for them.
3. Accepting is judged as if the token that invited were inviting at that moment: its owner, role and scopes must still
   give the role, and it must not have been revoked, replaced or deleted meanwhile. It may have expired. Everything
   else is refused.
4. The new member gets the role of the invitation with the permissions that it has then.
5. An organisation has one open invitation for each email, and at most ``per_org`` in all. A row is deleted with the
   answer, or, once it has expired, when the organisation next invites somebody.
6. Nothing of the person is on the organisation's log before they accept: a refusal is on the log of their own account,
   and that an invitation ended with the person is on that of who removed them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from proxy.core.dependency_keys import invitation_key
from proxy.core.errors import Conflict, Forbidden, Invalid, NotFound
from proxy.core.kinds import Reach
from proxy.core.model import Actor, RefusedGrant
from proxy.core.permissions import PermissionSet
from proxy.services import counting, grants, idempotency, identifiers, lookalikes, lookup
from proxy.services.accounts import members
from proxy.services.caller import AccountEntity, AccountOperation, Caller, standing
from proxy.services.grants import ORG_ACTIVE
from proxy.services.idempotency import Retry
from proxy.services.validation import Fields
from proxy.services.views import (
    LIMIT_DEFAULT,
    NOTHING_MORE,
    InvitationView,
    MemberView,
    Page,
    check_limit,
    cursor_behind,
    person_texts,
    read_cursor,
)
from proxy.store.change import Change, Rows
from proxy.store.records import Cursor, InvitationRow, UserRow
from proxy.store.store import Store

SHORTEST: Final = 60.0
LONGEST: Final = 366 * 86400.0
LIFETIME: Final = 14 * 86400.0
PER_ORG: Final = 100
_NO_INVITATION: Final = "there is no open invitation with this id"
_NOT_YOURS: Final = "an invitation is answered by the person invited, or by an administrator of the account"
_VOID: Final = "whoever invited may not give this role any more: ask for another invitation"
_LOOKS: Final = (AccountOperation.LIST, AccountOperation.READ)
_WITHDRAWN_AT_ONCE: Final = 500


class InvitationService:
    """The verbs of invitations; all raise StoreUnavailable and Unauthenticated.

    ``lifetime`` is how long one is open, in seconds, where nobody says; ``per_org`` how many of an organisation may be.
    """

    def __init__(
        self, store: Store, clock: Callable[[], float], *, lifetime: float = LIFETIME, per_org: int = PER_ORG
    ) -> None:
        self._store = store
        self._clock = clock
        self._lifetime = lifetime
        self._per_org = per_org

    async def invite(
        self,
        actor: Actor,
        org: str,
        email: str,
        role: str,
        *,
        expires: float | None = None,
        retry: Retry | None = None,
    ) -> InvitationView:
        """Invite an email to an organisation, with a role there. Raises Invalid, NotFound (org), Forbidden, and
        Conflict (a member or invited already, too many invitations, or made by an earlier request with the same key).
        """
        fields = Fields()
        address = fields.check(lambda: identifiers.email(email)) or ""
        lives = fields.check(lambda: _lifetime(expires)) or self._lifetime
        fields.done()
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            organisation = await lookup.visible_org(change, asker, org)
            asker.require(AccountEntity.MEMBERS, AccountOperation.CREATE, organisation.id)
            await idempotency.require_new(change, retry)
            await lookup.role(change, role)
            await members.require_within(change, asker, organisation, role)
            key = identifiers.email_key(address)
            if await change.members.by_email_key(organisation.id, key) is not None:
                raise Conflict("the user is a member of this organisation already")
            if await change.invitations.of(organisation.id, key, change.now) is not None:
                raise Conflict("there is an open invitation for this email already: withdraw it first")
            await change.invitations.delete_expired(organisation.id, change.now)
            if await change.invitations.count(organisation.id) >= self._per_org:
                raise Conflict(
                    f"the organisation has {self._per_org} open invitations, which is the most: withdraw some"
                )
            row = InvitationRow(
                id=identifiers.new_invitation_id(),
                org_id=organisation.id,
                email=address,
                email_key=key,
                role=role,
                token_id=None if actor.credential is None else actor.credential.token_id,
                created_at=change.now,
                expires_at=change.now + lives,
                org_name=organisation.name,
            )
            await change.invitations.add(row)
            await idempotency.remember(change, retry, row.id)
            record(change, "create", row, {"role": role, "expires_at": row.expires_at})
            return InvitationView.of(row)

    async def made_before(self, actor: Actor, retry: Retry) -> InvitationView | None:
        """The invitation that an earlier request with this key made. Raises Invalid where that was another request,
        Conflict where it is open no more, or none of the actor's business.
        """
        async with self._store.read() as rows:
            made = await idempotency.made_before(rows, actor, retry, self._clock())
        if made is None:
            return None
        try:
            return await self.show(actor, made)
        except NotFound:
            raise Conflict("what an earlier request with the same key made is there no more") from None

    async def list(
        self,
        actor: Actor,
        org: str | None = None,
        *,
        email: str | None = None,
        limit: int = LIMIT_DEFAULT,
        cursor: str | None = None,
        count: bool = False,
    ) -> Page[InvitationView]:
        """Open invitations, oldest first: to an organisation, or those that the actor may know of in all, which are
        one's own without a role in the account. Raises NotFound (org), Forbidden, Invalid (limit, cursor).
        """
        after = read_cursor(cursor)
        check_limit(limit)
        now = self._clock()
        async with self._store.read() as rows:
            asker = await standing(rows, actor, now)
            org_id, key = None, None if email is None else identifiers.email_key(email)
            if org is not None:
                org_id = (await lookup.visible_org(rows, asker, org)).id
                asker.require(AccountEntity.MEMBERS, AccountOperation.LIST, org_id)
            elif not asker.may(AccountEntity.MEMBERS, AccountOperation.LIST):
                own = await _own_key(rows, asker)
                if own is None:
                    asker.require(AccountEntity.MEMBERS, AccountOperation.LIST)
                asker.require_scope(AccountEntity.MEMBERS, AccountOperation.LIST)
                if key not in (None, own):
                    return Page(items=[], next_cursor=None, remaining=NOTHING_MORE if count else None)
                key = own
            found = await rows.invitations.page(after=after, limit=limit + 1, now=now, org_id=org_id, email_key=key)
            more = len(found) > limit
            last = Cursor(created_at=found[limit - 1].created_at, id=found[limit - 1].id) if more else None
            behind = partial(rows.invitations.count_behind, now=now, org_id=org_id, email_key=key)
            left = await counting.remaining(asker, last, behind) if count else None
        views = [InvitationView.of(row) for row in found[:limit]]
        return Page(items=views, next_cursor=cursor_behind(last), remaining=left)

    async def show(self, actor: Actor, invitation: str) -> InvitationView:
        """One open invitation: of one's own email, or to an organisation whose members one may see. Raises NotFound."""
        now = self._clock()
        async with self._store.read() as rows:
            return InvitationView.of(await _visible(rows, await standing(rows, actor, now), invitation, now))

    async def accept(self, actor: Actor, invitation: str, *, retry: Retry | None = None) -> MemberView:
        """Become a member. Raises NotFound, Forbidden, and Conflict (the invitation does not hold any more, the
        organisation is suspended, nobody has the email yet, or an earlier request with the same key did this).
        """
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            await idempotency.require_new(change, retry)
            row = await _visible(change, asker, invitation, change.now)
            own = await _answers(change, asker, row, AccountOperation.CREATE)
            user = await _invited(change, row)
            organisation = await lookup.org(change, row.org_id)
            if organisation.status != ORG_ACTIVE:
                raise Conflict("the organisation is suspended")
            role = await change.roles.get(row.role)
            if role is None or not await _holds(change, row, PermissionSet.of(role.permissions)):
                raise Conflict(_VOID)
            if not own:
                await members.require_within(change, asker, organisation, row.role)
            await members.enter(change, organisation, user, row.role)
            await idempotency.remember(change, retry, f"{row.org_id}/{user.id}")
            details = {"role": row.role, "org": organisation.name, "invitation": row.id, "invited_by": row.token_id}
            members.tell(change, "account.invitation.accept", user, organisation, details)
            found, member = await lookup.member(change, organisation, user.id)
            return MemberView.of(member, found)

    async def accepted_before(self, actor: Actor, retry: Retry) -> MemberView | None:
        """The membership that an earlier request with this key made, as it is now.

        Raises Invalid where that was another request, Conflict where the membership has ended, Forbidden where it is
        none of the actor's business any more.
        """
        now = self._clock()
        async with self._store.read() as rows:
            made = await idempotency.made_before(rows, actor, retry, now)
            if made is None:
                return None
            asker = await standing(rows, actor, now)
            org_id, _, user_id = made.partition("/")
            if user_id != asker.user_id and not members.adds_directly(asker):
                raise Forbidden(_NOT_YOURS)
            try:
                found, member = await lookup.member(rows, await lookup.org(rows, org_id), user_id)
            except NotFound:
                raise Conflict("what an earlier request with the same key made has ended") from None
            return MemberView.of(member, found)

    async def decline(self, actor: Actor, invitation: str) -> InvitationView:
        """Refuse an invitation, which is gone then. Raises NotFound, Forbidden."""
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            row = await _visible(change, asker, invitation, change.now)
            await _answers(change, asker, row, AccountOperation.DELETE)
            await change.invitations.delete(row.id)
            record(change, "decline", row, {"org": row.org_name, "role": row.role}, org_id="")
            return InvitationView.of(row)

    async def withdraw(self, actor: Actor, invitation: str) -> InvitationView:
        """Take an invitation back. Raises NotFound, Forbidden."""
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            row = await _visible(change, asker, invitation, change.now)
            asker.require(AccountEntity.MEMBERS, AccountOperation.CREATE, row.org_id)
            await change.invitations.delete(row.id)
            record(change, "withdraw", row, {"role": row.role})
            return InvitationView.of(row)


def record(
    change: Change, verb: str, row: InvitationRow, details: dict[str, object], *, org_id: str | None = None
) -> None:
    """The key and the event of what became of an invitation, on the organisation's log unless it is to be on none."""
    change.touched(invitation_key(row.id))
    mixed = lookalikes.mixed_fields(person_texts(row.email, ""))
    change.audit(
        f"account.invitation.{verb}",
        target_kind="invitation",
        target_id=row.id,
        target_name=row.email,
        org_id=row.org_id if org_id is None else org_id,
        details={**details, "mixed_scripts": mixed} if mixed else details,
    )


async def withdraw_all(change: Change, email_key: str) -> None:
    """Take back every open invitation of an email: a user who has it later is another one."""
    while True:
        found = await change.invitations.page(after=None, limit=_WITHDRAWN_AT_ONCE, now=change.now, email_key=email_key)
        for row in found:
            await change.invitations.delete(row.id)
            record(change, "withdraw", row, {"org": row.org_name, "role": row.role}, org_id="")
        if len(found) < _WITHDRAWN_AT_ONCE:
            return


async def _own_key(rows: Rows, asker: Caller) -> str | None:
    """The folded email of the person for whom the token presented answers invitations; None for every other token."""
    if asker.grant is None or asker.grant.reach not in (Reach.PERSONAL, Reach.ACCOUNT):
        return None
    return await lookup.own_email_key(rows, asker)


async def _visible(rows: Rows, asker: Caller, invitation: str, now: float) -> InvitationRow:
    row = await rows.invitations.get(invitation, now)
    if row is None:
        raise NotFound(_NO_INVITATION)
    own = row.email_key == await _own_key(rows, asker) and any(
        asker.scopes_allow(AccountEntity.MEMBERS, operation)
        for operation in (*_LOOKS, AccountOperation.CREATE, AccountOperation.DELETE)
    )
    if not own and not any(
        asker.may(AccountEntity.MEMBERS, operation, row.org_id) for operation in (*_LOOKS, AccountOperation.CREATE)
    ):
        raise NotFound(_NO_INVITATION)
    return row


async def _answers(rows: Rows, asker: Caller, row: InvitationRow, operation: AccountOperation) -> bool:
    """Whether the asker is the person invited; an administrator of the account is not. Raises Forbidden for others."""
    if row.email_key == await _own_key(rows, asker):
        asker.require_scope(AccountEntity.MEMBERS, operation)
        return True
    if not members.adds_directly(asker):
        raise Forbidden(_NOT_YOURS)
    return False


async def _invited(rows: Rows, row: InvitationRow) -> UserRow:
    user = await rows.users.by_email_key(row.email_key)
    if user is None:
        raise Conflict("nobody has this email yet: add them to the account first")
    return user


async def _holds(change: Change, row: InvitationRow, permissions: PermissionSet) -> bool:
    """Whether the invitation could be made now by the token that made it (rule 3)."""
    if row.token_id is None:
        return True
    entry = await change.tokens.get(row.token_id)
    if entry is None or (entry.token.rotated_at or 0.0) > row.created_at:
        return False
    stored = (await change.grant_rows([row.token_id])).tokens.get(row.token_id)
    # As of the invitation: its time may be over by now.
    found = grants.verdict(entry.token.prefix, row.token_id, stored, row.created_at)
    if isinstance(found, RefusedGrant):
        return False
    inviter = Caller(actor=change.actor, grant=found)
    return inviter.may(AccountEntity.MEMBERS, AccountOperation.CREATE, row.org_id) and inviter.may_give(
        permissions, row.org_id
    )


def _lifetime(expires: float | None) -> float | None:
    if expires is not None and not SHORTEST <= expires <= LONGEST:
        raise Invalid("expires", f"a number of seconds, from {SHORTEST:g} to {LONGEST:g}")
    return expires
