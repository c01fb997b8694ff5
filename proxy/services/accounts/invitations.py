"""Invitations: inviting people to an organisation, and accepting, declining and withdrawing invitations.

Rules:

1. An invitation is addressed to an email. ``invite`` never looks up whether a user has that email: the result and the
   statements are the same either way, so inviting does not reveal which users exist.
2. The invited person answers with a token of their own that is bound to no organisation, or an administrator of the
   account answers for them.
3. Acceptance requires that the token that created the invitation could still create it: its owner, role and scopes must
   still permit the role, and it must not have been revoked, replaced or deleted. It may have expired.
4. The new member gets the invitation's role, with the permissions that the role has at that time.
5. An organisation has at most one open invitation for each email, and at most ``per_org`` in all. A row is deleted when
   the invitation is answered or, if it expired, when the organisation next invites someone.
6. The organisation's log has no data of the person before they accept. A refusal is on the log of the person's own
   account; an invitation that ended because the user was removed is on the log of the caller who removed the user.
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
from proxy.services import grants, idempotency, identifiers, lookalikes, lookup
from proxy.services.accounts import members
from proxy.services.caller import AccountEntity, AccountOperation, Caller, load_caller
from proxy.services.grants import ORG_ACTIVE
from proxy.services.idempotency import IdempotencyKey
from proxy.services.paging import FIRST_PAGE, NOTHING_MORE, Page, PageRequest, read_page
from proxy.services.validation import Fields
from proxy.services.views import InvitationView, MemberView, person_texts
from proxy.store.change import Change, Rows
from proxy.store.records import InvitationRow, UserRow
from proxy.store.store import Store

SHORTEST: Final = 60.0
LONGEST: Final = 366 * 86400.0
LIFETIME: Final = 14 * 86400.0
PER_ORG: Final = 100
_NO_INVITATION: Final = "there is no open invitation with this id"
_NOT_YOURS: Final = "an invitation is answered by the person invited, or by an administrator of the account"
_VOID: Final = "the inviter may no longer give this role: ask for another invitation"
_LOOKS: Final = (AccountOperation.LIST, AccountOperation.READ)
_WITHDRAWN_AT_ONCE: Final = 500


class InvitationService:
    """Creates, lists and answers invitations; all methods raise StoreUnavailable and Unauthenticated.

    ``lifetime`` is for how long an invitation is open by default, in seconds; ``per_org`` the most that one
    organisation may have open.
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
        idempotency_key: IdempotencyKey | None = None,
    ) -> InvitationView:
        """Invite an email to an organisation, with a role there.

        Raises Invalid, NotFound (org), Forbidden, Conflict (a member or invited already, too many invitations, or an
        earlier request with the same key made an invitation that is no longer open).
        """
        fields = Fields()
        address = fields.check(lambda: identifiers.email(email)) or ""
        lives = fields.check(lambda: _lifetime(expires)) or self._lifetime
        fields.done()
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            earlier = await idempotency.created_before(change, actor, idempotency_key, change.now)
            if earlier is not None:
                return await _replay(change, caller, earlier)
            organisation = await lookup.visible_org(change, caller, org)
            caller.require(AccountEntity.MEMBERS, AccountOperation.CREATE, organisation.id)
            await lookup.role(change, role)
            await members.require_within(change, caller, organisation, role)
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
            await idempotency.remember(change, idempotency_key, row.id)
            record(change, "create", row, {"role": role, "expires_at": row.expires_at})
            return InvitationView.of(row)

    async def list(
        self,
        actor: Actor,
        org: str | None = None,
        *,
        email: str | None = None,
        page: PageRequest = FIRST_PAGE,
    ) -> Page[InvitationView]:
        """Open invitations, oldest first: to an organisation, or all that the caller may see.

        Without a role in the account that may list members, a caller sees those for its own email. Raises NotFound
        (org), Forbidden, Invalid (limit, cursor).
        """
        page.check()
        now = self._clock()
        async with self._store.read() as rows:
            caller = await load_caller(rows, actor, now)
            org_id, key = None, None if email is None else identifiers.email_key(email)
            if org is not None:
                org_id = (await lookup.visible_org(rows, caller, org)).id
                caller.require(AccountEntity.MEMBERS, AccountOperation.LIST, org_id)
            elif not caller.may(AccountEntity.MEMBERS, AccountOperation.LIST):
                own = await _own_key(rows, caller)
                if own is None:
                    caller.require(AccountEntity.MEMBERS, AccountOperation.LIST)
                caller.require_scope(AccountEntity.MEMBERS, AccountOperation.LIST)
                if key not in (None, own):
                    return Page(items=[], next_cursor=None, remaining=NOTHING_MORE if page.count else None)
                key = own
            query = partial(rows.invitations.page, now=now, org_id=org_id, email_key=key)
            behind = partial(rows.invitations.count_behind, now=now, org_id=org_id, email_key=key)
            found = await read_page(page, caller, query, behind)
        return found.with_items([InvitationView.of(row) for row in found.items])

    async def show(self, actor: Actor, invitation: str) -> InvitationView:
        """One open invitation: for the caller's email, or to an organisation whose members it sees. Raises NotFound."""
        now = self._clock()
        async with self._store.read() as rows:
            return InvitationView.of(await _visible(rows, await load_caller(rows, actor, now), invitation, now))

    async def accept(
        self, actor: Actor, invitation: str, *, idempotency_key: IdempotencyKey | None = None
    ) -> MemberView:
        """Become a member.

        Raises NotFound, Forbidden, Conflict (the invitation is no longer valid, the organisation is suspended, no user
        has the email yet, or the membership that an earlier request with the same key made has ended).
        """
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            earlier = await idempotency.created_before(change, actor, idempotency_key, change.now)
            if earlier is not None:
                return await _replay_acceptance(change, caller, earlier)
            row = await _visible(change, caller, invitation, change.now)
            own = await _answers(change, caller, row, AccountOperation.CREATE)
            user = await _invited(change, row)
            organisation = await lookup.org(change, row.org_id)
            if organisation.status != ORG_ACTIVE:
                raise Conflict("the organisation is suspended")
            role = await change.roles.get(row.role)
            if role is None or not await _holds(change, row, PermissionSet.of(role.permissions)):
                raise Conflict(_VOID)
            if not own:
                await members.require_within(change, caller, organisation, row.role)
            await members.enter(change, organisation, user, row.role)
            await idempotency.remember(change, idempotency_key, f"{row.org_id}/{user.id}")
            details = {"role": row.role, "org": organisation.name, "invitation": row.id, "invited_by": row.token_id}
            members.record(change, "account.invitation.accept", user, organisation, details)
            found, member = await lookup.member(change, organisation, user.id)
            return MemberView.of(member, found)

    async def decline(self, actor: Actor, invitation: str) -> InvitationView:
        """Decline an invitation, which deletes it. Raises NotFound, Forbidden."""
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            row = await _visible(change, caller, invitation, change.now)
            await _answers(change, caller, row, AccountOperation.DELETE)
            await change.invitations.delete(row.id)
            record(change, "decline", row, {"org": row.org_name, "role": row.role}, org_id="")
            return InvitationView.of(row)

    async def withdraw(self, actor: Actor, invitation: str) -> InvitationView:
        """Withdraw an invitation. Raises NotFound, Forbidden."""
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            row = await _visible(change, caller, invitation, change.now)
            caller.require(AccountEntity.MEMBERS, AccountOperation.CREATE, row.org_id)
            await change.invitations.delete(row.id)
            record(change, "withdraw", row, {"role": row.role})
            return InvitationView.of(row)


def record(
    change: Change, verb: str, row: InvitationRow, details: dict[str, object], *, org_id: str | None = None
) -> None:
    """Touch an invitation's dependency key and record its audit event.

    The event is on the organisation's log; with an ``org_id`` of "", on no organisation's.
    """
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
    """Withdraw every open invitation for an email, since a later user with that email is a different one."""
    while True:
        found = await change.invitations.page(after=None, limit=_WITHDRAWN_AT_ONCE, now=change.now, email_key=email_key)
        for row in found:
            await change.invitations.delete(row.id)
            record(change, "withdraw", row, {"org": row.org_name, "role": row.role}, org_id="")
        if len(found) < _WITHDRAWN_AT_ONCE:
            return


async def _own_key(rows: Rows, caller: Caller) -> str | None:
    """The ``email_key`` for which the token presented may answer invitations; None if it may answer none."""
    if caller.grant is None or caller.grant.reach not in (Reach.PERSONAL, Reach.ACCOUNT):
        return None
    return await lookup.own_email_key(rows, caller)


async def _visible(rows: Rows, caller: Caller, invitation: str, now: float) -> InvitationRow:
    row = await rows.invitations.get(invitation, now)
    if row is None:
        raise NotFound(_NO_INVITATION)
    own = row.email_key == await _own_key(rows, caller) and any(
        caller.scopes_allow(AccountEntity.MEMBERS, operation)
        for operation in (*_LOOKS, AccountOperation.CREATE, AccountOperation.DELETE)
    )
    if not own and not any(
        caller.may(AccountEntity.MEMBERS, operation, row.org_id) for operation in (*_LOOKS, AccountOperation.CREATE)
    ):
        raise NotFound(_NO_INVITATION)
    return row


async def _answers(rows: Rows, caller: Caller, row: InvitationRow, operation: AccountOperation) -> bool:
    """True for the invited person, False for an administrator of the account. Raises Forbidden for others."""
    if row.email_key == await _own_key(rows, caller):
        caller.require_scope(AccountEntity.MEMBERS, operation)
        return True
    if not members.adds_directly(caller):
        raise Forbidden(_NOT_YOURS)
    return False


async def _invited(rows: Rows, row: InvitationRow) -> UserRow:
    user = await rows.users.by_email_key(row.email_key)
    if user is None:
        raise Conflict("no user has this email yet: add one to the account first")
    return user


async def _holds(change: Change, row: InvitationRow, permissions: PermissionSet) -> bool:
    """Whether the token that created the invitation could still create it (rule 3)."""
    if row.token_id is None:
        return True
    entry = await change.tokens.get(row.token_id)
    if entry is None or (entry.token.rotated_at or 0.0) > row.created_at:
        return False
    stored = (await change.grant_rows([row.token_id])).tokens.get(row.token_id)
    # As of the time of the invitation, because the token may have expired since.
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


async def _replay(change: Change, caller: Caller, invitation: str) -> InvitationView:
    """The invitation that an earlier request made. Raises Conflict if it is closed, or not visible to the caller."""
    try:
        return InvitationView.of(await _visible(change, caller, invitation, change.now)).as_replay()
    except NotFound:
        raise Conflict("what an earlier request with the same key made no longer exists") from None


async def _replay_acceptance(change: Change, caller: Caller, membership: str) -> MemberView:
    """The membership (``<org id>/<user id>``) that an earlier request made, as it is now.

    Raises Conflict if it has ended, Forbidden if the caller is neither the member nor may add members directly.
    """
    org_id, _, user_id = membership.partition("/")
    if user_id != caller.user_id and not members.adds_directly(caller):
        raise Forbidden(_NOT_YOURS)
    try:
        found, member = await lookup.member(change, await lookup.org(change, org_id), user_id)
    except NotFound:
        raise Conflict("what an earlier request with the same key made has ended") from None
    return MemberView.of(member, found).as_replay()
