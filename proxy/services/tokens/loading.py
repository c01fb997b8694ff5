"""A token in hand: found for whoever asks, held against what they may do, shown and recorded.

Everything here is of one transaction, the caller's; ``custody`` decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from proxy.core.dependency_keys import token_key
from proxy.core.errors import Conflict, FieldError, Forbidden, NotFound
from proxy.core.kinds import OF_USERS, Reach
from proxy.core.model import TokenStatus, UserStatus
from proxy.core.permissions import PermissionSet
from proxy.services import lookalikes, lookup
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
    """A token, and the organisations that it is attached to, if it is an organisation token."""

    entry: TokenEntry
    attached: tuple[AttachedRow, ...]
    made: bool
    """Whether the token presented made it, directly or through others; asked only where it matters."""

    @property
    def row(self) -> TokenRow:
        return self.entry.token

    @property
    def target(self) -> Target:
        own = () if self.row.org_id is None else (self.row.org_id,)
        return Target(row=self.row, org_ids=own or tuple(one.org_id for one in self.attached), made=self.made)

    def status(self, now: float) -> TokenStatus:
        return TokenView.of(self.entry, now).status


async def find(rows: Rows, asker: Caller, policies: PolicyService, reference: str, verb: Verb) -> Found:
    """The token with this id or prefix, which ``asker`` may do this with. Raises NotFound, Forbidden."""
    entry = await rows.tokens.get(reference.rpartition("_")[2])
    if entry is None or reference not in (entry.token.id, entry.token.prefix):
        raise NotFound(NO_TOKEN)
    found = await at_hand(rows, asker, entry)
    authorization.require(await judge(rows, asker, policies, found, verb))
    return found


async def at_hand(rows: Rows, asker: Caller, entry: TokenEntry) -> Found:
    row, grant = entry.token, asker.grant
    attached = tuple(await rows.token_orgs.of((row.id,))) if row.reach is Reach.ORGS else ()
    # Only of one's own, and only where scopes make a difference of it.
    asked = grant is not None and asker.scoped and authorization.owns(grant, row)
    made = grant is not None and asked and await rows.tokens.descends(row.id, grant.token_id)
    return Found(entry=entry, attached=attached, made=made)


async def judge(rows: Rows, asker: Caller, policies: PolicyService, found: Found, verb: Verb) -> Ruling:
    """What ``custody`` says; the policy is read only where it has a say."""
    rights: frozenset[AdminRight] = frozenset()
    if not asker.operator and verb in (Verb.REVOKE, Verb.DELETE):
        rights = (await policies.of(rows, found.row.org_id)).admin_rights
    return authorization.judge(asker, found.target, verb, rights)


async def require_within(
    rows: Rows, asker: Caller, found: Found, *, expires_at: float | None, scopes: Iterable[str] | None
) -> None:
    """Whether ``asker`` may give this token a value, or these scopes and this end. Raises Forbidden (custody 7)."""
    grant, row = asker.grant, found.row
    if grant is None:
        return
    if row.kind in OF_USERS:
        faults = authorization.uncontained(
            grant, reach=row.reach, org_id=row.org_id, expires_at=expires_at, scopes=scopes
        )
    else:
        faults = [
            *authorization.longer(grant, expires_at),
            *authorization.wider(grant, () if row.reach is Reach.ORGS else scopes),
        ]
        faults += await _role_faults(rows, asker, found)
    if faults:
        raise Forbidden(_MORE, *faults)


async def _role_faults(rows: Rows, asker: Caller, found: Found) -> list[FieldError]:
    row = found.row
    if row.reach is Reach.ORGS:
        return [
            (f"grants.{one.org_name}", _ROLE)
            for one in found.attached
            if not asker.may_give(PermissionSet.of(one.permissions), one.org_id)
        ]
    role = await lookup.permissions(rows, row.role or lookup.NO_ROLE)
    return [] if asker.may_give(role, row.org_id or "") else [("role", _ROLE)]


async def require_usable(rows: Rows, found: Found) -> None:
    """Whether a token could work if it had a value: nobody whom it depends on is gone or stopped. Raises Conflict."""
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


def policed_by(found: Found) -> tuple[str, ...]:
    """The organisations whose policies a token keeps to, beside the deployment's: those that it belongs to."""
    return found.target.org_ids


async def roles(rows: Rows, found: Found) -> list[PermissionSet]:
    """What the roles that count for a token permit now; nothing is put together."""
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


async def show(rows: Rows, asker: Caller, token_id: str, now: float) -> TokenView:
    """A token of this transaction, for somebody who was found to be allowed to see it."""
    entry = await rows.tokens.get(token_id)
    if entry is None:
        raise RuntimeError("a token vanished inside a transaction")
    return (await views(rows, asker, (entry,), now))[0]


async def views(rows: Rows, asker: Caller, entries: Sequence[TokenEntry], now: float) -> list[TokenView]:
    """Tokens as ``asker`` may see them: of an organisation token no organisation that is none of their business."""
    several = [entry.token.id for entry in entries if entry.token.reach is Reach.ORGS]
    attached: dict[str, list[AttachedRow]] = {}
    for row in await rows.token_orgs.of(several) if several else ():
        if any(
            asker.may(AccountEntity.KEYS, look, row.org_id) for look in (AccountOperation.READ, AccountOperation.LIST)
        ):
            attached.setdefault(row.token_id, []).append(row)
    return [TokenView.of(entry, now, attached.get(entry.token.id, ())) for entry in entries]


async def replayed(rows: Rows, asker: Caller, token_id: str, now: float) -> Created:
    """The answer to a retry of what made this token: without its value.

    Raises Conflict where it is gone, NotFound where whoever made it may not see it any more.
    """
    entry = await rows.tokens.get(token_id)
    if entry is None:
        raise Conflict("what an earlier request with the same key made has been deleted")
    authorization.require(authorization.judge(asker, (await at_hand(rows, asker, entry)).target, Verb.SHOW, ()))
    (view,) = await views(rows, asker, (entry,), now)
    return Created(view=view, token=None, warnings=(SHOWN_ONCE,), replayed=True)


def mixed(texts: Mapping[str, str]) -> dict[str, object]:
    """What the event says of texts that may be read as others."""
    found = lookalikes.mixed_fields(texts)
    return {"mixed_scripts": found} if found else {}


def record(
    change: Change, verb: str, row: TokenRow, details: Mapping[str, object], orgs: Iterable[str] | None = None
) -> None:
    """The key and the events of a change to a token: one event on the log of each organisation that it belongs to.

    ``orgs`` are those of an organisation token.
    """
    change.touched(token_key(row.id))
    for org_id in orgs or (row.org_id or "",):
        change.audit(
            f"account.{row.kind.value}.{verb}",
            target_kind="token",
            target_id=row.id,
            target_name=row.name,
            org_id=org_id,
            user_id=row.user_id or "",
            details={"prefix": row.prefix, **details},
        )


def record_found(change: Change, verb: str, found: Found, details: Mapping[str, object] | None = None) -> None:
    record(change, verb, found.row, details or {}, tuple(one.org_id for one in found.attached))
