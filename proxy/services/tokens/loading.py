"""Loads a token for a caller: finds it, checks authorization on it, builds its view and records changes to it.

Every function works in one transaction, the given one. ``authorization`` makes the decisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from proxy.core.errors import Conflict, FieldError, Forbidden, NotFound
from proxy.core.kinds import OF_USERS, Reach
from proxy.core.model import TokenStatus, UserStatus
from proxy.core.permissions import PermissionSet
from proxy.services import lookalikes, lookup, token_events
from proxy.services.caller import AccountEntity, AccountOperation, Caller
from proxy.services.grants import ORG_ACTIVE
from proxy.services.idempotency import SHOWN_ONCE
from proxy.services.policy.model import AdminRight
from proxy.services.policy.service import PolicyService
from proxy.services.tokens import authorization
from proxy.services.tokens.authorization import NO_TOKEN, Ruling, Target, Verb
from proxy.services.views import Created, TokenView
from proxy.store.change import Change, Rows
from proxy.store.records import AttachedRow, TokenEntry, TokenRow

KEYS_MAKE_NOTHING = "an API key or an organisation token makes no tokens and no keys"
_MORE = "this token may do more, or lives longer, than the one presented"
_ROLE = "this permits more in the organisation than you may do there"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A loaded token, with the organisations that it is attached to if it is an organisation token."""

    entry: TokenEntry
    attached: tuple[AttachedRow, ...]
    made: bool
    """Whether the token presented created it, directly or through others; looked up only where it matters."""

    @property
    def row(self) -> TokenRow:
        """The token's row."""
        return self.entry.token

    @property
    def target(self) -> Target:
        """The token as ``authorization`` judges it."""
        own = () if self.row.org_id is None else (self.row.org_id,)
        return Target(row=self.row, org_ids=own or tuple(one.org_id for one in self.attached), made=self.made)

    def status(self, now: float) -> TokenStatus:
        """The status at ``now`` (unix seconds), which may be expired."""
        return TokenView.of(self.entry, now).status


async def find(rows: Rows, caller: Caller, policies: PolicyService, reference: str, verb: Verb) -> Found:
    """The token with this id or prefix, if the caller may do this with it. Raises NotFound, Forbidden."""
    entry = await rows.tokens.get(reference.rpartition("_")[2])
    if entry is None or reference not in (entry.token.id, entry.token.prefix):
        raise NotFound(NO_TOKEN)
    found = await load(rows, caller, entry)
    authorization.require(await judge(rows, caller, policies, found, verb))
    return found


async def load(rows: Rows, caller: Caller, entry: TokenEntry) -> Found:
    """The token of this entry with what ``authorization`` needs to know of it."""
    row, grant = entry.token, caller.grant
    attached = tuple(await rows.token_orgs.of((row.id,))) if row.reach is Reach.ORGS else ()
    # Looked up only for the owner's tokens, and only for a caller with scopes, which makes a difference there.
    matters = grant is not None and caller.scoped and authorization.owns(grant, row)
    made = grant is not None and matters and await rows.tokens.descends(row.id, grant.token_id)
    return Found(entry=entry, attached=attached, made=made)


async def judge(rows: Rows, caller: Caller, policies: PolicyService, found: Found, verb: Verb) -> Ruling:
    """The decision of ``authorization``; the policy is read only for operations that depend on it."""
    rights: frozenset[AdminRight] = frozenset()
    if not caller.operator and verb in (Verb.REVOKE, Verb.DELETE):
        rights = (await policies.effective(rows, found.row.org_id)).admin_rights
    return authorization.judge(caller, found.target, verb, rights)


async def require_within(
    rows: Rows,
    caller: Caller,
    found: Found,
    *,
    expires_at: float | None,
    scopes: Iterable[str] | None,
    ranges: Sequence[str] | None,
) -> None:
    """Raise Forbidden unless the token, with these scopes, IP ranges and expiry, is within what the caller may do.

    That is ``authorization`` rule 7 for a personal access token, and the role or permissions of a key.
    """
    grant, row = caller.grant, found.row
    if grant is None:
        return
    if row.kind in OF_USERS:
        faults = authorization.containment_errors(
            grant, reach=row.reach, org_id=row.org_id, expires_at=expires_at, scopes=scopes, ranges=ranges
        )
    else:
        faults = [
            *authorization.expiry_errors(grant, expires_at),
            *authorization.scope_errors(grant, () if row.reach is Reach.ORGS else scopes),
            *authorization.range_errors(grant, ranges),
        ]
        faults += await _role_faults(rows, caller, found)
    if faults:
        raise Forbidden(_MORE, *faults)


async def _role_faults(rows: Rows, caller: Caller, found: Found) -> list[FieldError]:
    row = found.row
    if row.reach is Reach.ORGS:
        return [
            (f"grants.{one.org_name}", _ROLE)
            for one in found.attached
            if not caller.may_give(PermissionSet.of(one.permissions), one.org_id)
        ]
    role = await lookup.permissions(rows, row.role or lookup.NO_ROLE)
    return [] if caller.may_give(role, row.org_id or "") else [("role", _ROLE)]


async def require_usable(rows: Rows, found: Found) -> None:
    """Raise Conflict if the token's owner, membership or organisation is suspended or removed."""
    entry, row = found.entry, found.row
    if row.kind in OF_USERS and entry.user_status is not UserStatus.ACTIVE:
        raise Conflict("the owner of the token is suspended or removed")
    if row.org_id is None:
        return
    organisation = await rows.orgs.by_id(row.org_id)
    if organisation is None or organisation.status != ORG_ACTIVE:
        raise Conflict("the organisation of the token is suspended")
    if row.user_id is not None and await rows.members.get(row.org_id, row.user_id) is None:
        raise Conflict("the owner of the token is not a member of its organisation any more")


def policy_org_ids(found: Found) -> tuple[str, ...]:
    """The ids of the organisations whose policies apply to a token: those that it belongs to."""
    return found.target.org_ids


async def roles(rows: Rows, found: Found) -> list[PermissionSet]:
    """The present permissions of each role that applies to a token, one set for each role."""
    row = found.row
    if row.user_id is None:
        held = [PermissionSet.of(one.permissions) for one in found.attached]
        return [await lookup.permissions(rows, row.role), *held] if row.role is not None else held
    members = await rows.members.of_user(row.user_id)
    names = [one.role for one in members if row.reach is Reach.ACCOUNT or one.org_id == row.org_id]
    if row.reach is not Reach.ORG:
        owner = await rows.users.by_id(row.user_id)
        names += [] if owner is None else [owner.role]
    return [await lookup.permissions(rows, name) for name in names]


async def show(rows: Rows, caller: Caller, token_id: str, now: float) -> TokenView:
    """The view of a token that the caller was already authorized to see."""
    entry = await rows.tokens.get(token_id)
    if entry is None:
        raise RuntimeError("a token vanished inside a transaction")
    return (await views(rows, caller, (entry,), now))[0]


async def views(rows: Rows, caller: Caller, entries: Sequence[TokenEntry], now: float) -> list[TokenView]:
    """The views of tokens, without organisations of organisation tokens that the caller may not see."""
    several = [entry.token.id for entry in entries if entry.token.reach is Reach.ORGS]
    attached: dict[str, list[AttachedRow]] = {}
    for row in await rows.token_orgs.of(several) if several else ():
        if any(
            caller.may(AccountEntity.KEYS, look, row.org_id) for look in (AccountOperation.READ, AccountOperation.LIST)
        ):
            attached.setdefault(row.token_id, []).append(row)
    return [TokenView.of(entry, now, attached.get(entry.token.id, ())) for entry in entries]


async def replayed(rows: Rows, caller: Caller, token_id: str, now: float) -> Created:
    """The result of a replayed creation of this token, without its value.

    Raises Conflict if the token was deleted, NotFound if the caller may no longer see it.
    """
    entry = await rows.tokens.get(token_id)
    if entry is None:
        raise Conflict("what an earlier request with the same key made has been deleted")
    authorization.require(authorization.judge(caller, (await load(rows, caller, entry)).target, Verb.SHOW, ()))
    (view,) = await views(rows, caller, (entry,), now)
    return Created(view=view, token=None, warnings=(SHOWN_ONCE,), replayed=True)


def lookalike_details(texts: Mapping[str, str]) -> dict[str, object]:
    """The detail of an audit event that names texts with look-alike letters."""
    found = lookalikes.mixed_fields(texts)
    return {"mixed_scripts": found} if found else {}


def record(
    change: Change, verb: str, row: TokenRow, details: Mapping[str, object], orgs: Iterable[str] | None = None
) -> None:
    """Touch a token's dependency key and record the events of a change to it.

    There is one event on the log of each organisation that it belongs to; ``orgs`` are those of an organisation token.
    """
    token_events.record(change, verb, row, orgs or (row.org_id or "",), details)


def record_found(change: Change, verb: str, found: Found, details: Mapping[str, object] | None = None) -> None:
    """Record a change to a loaded token as ``record`` does."""
    record(change, verb, found.row, details or {}, tuple(one.org_id for one in found.attached))
