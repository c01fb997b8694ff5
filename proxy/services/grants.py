"""Builds the grant of a token, which gateways decide with, from store rows; or the reason for which it is refused.

Rules:

1. A token is found by its whole prefix: brand, kind and id must be exactly those of the row.
2. The reasons for a refusal are checked in one order and the first match wins: unknown, revoked, expired, owner
   removed, member removed, owner suspended, organisation suspended. Membership comes before the owner's suspension
   because an organisation's log shows the reasons of its tokens, and must not show whether a former member is
   suspended. (A removed user is a member of no organisation.)
3. Permissions are those that the role has now: the owner's role in the account for a personal token, the role of the
   membership for a team token, the role fixed at creation for a key. A deleted role permits nothing.
4. ``depends`` names every row that this verdict was read from, missing rows included, so that any change that could
   alter the verdict names one of these keys.
5. A token whose kind, reach, owner and organisation do not fit together is refused like an unknown token, and so is a
   token with a reach that this version does not know.
6. A token that reaches several organisations has separate permissions in each: those of the membership's role, or those
   that it was attached with. It does not reach a suspended organisation; its reach to the others is not affected.
7. A token attached to organisations has permissions only there, and none in the account.
8. An account-wide token does not reach an organisation whose own policy it violates. This is checked here and not when
   the token is issued: an organisation restricts what acts in it, not what its members issue for themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from proxy.core.dependency_keys import member_key, memberships_key, org_key, role_key, token_key, user_key
from proxy.core.kinds import KINDS, OF_USERS, Owner, Reach
from proxy.core.model import Grant, OrgGrant, RefusedGrant, TokenStatus, UserStatus, by_org
from proxy.core.networks import AddressRanges
from proxy.core.permissions import PermissionSet
from proxy.core.reasons import Reason
from proxy.services.policy import model
from proxy.store.records import OrgGrantRow, TokenGrantRow
from proxy.store.store import Store

ORG_ACTIVE: Final = "active"
# Kind, reach, whether the token has an owner, and whether it belongs to one organisation.
_KNOWN: Final = frozenset(
    (kind, reach, row.owner is Owner.USER, reach is Reach.ORG) for kind, row in KINDS.items() for reach in row.reaches
)

_SEVERAL: Final = frozenset({Reach.ACCOUNT, Reach.ORGS})


async def resolve(store: Store, prefixes: Sequence[str], now: float) -> tuple[int, list[Grant | RefusedGrant]]:
    """The epoch of one snapshot, and the verdicts on the tokens with these public prefixes as of it, in their order.

    ``prefixes`` has one element at least; ``now`` is in unix seconds. Raises StoreUnavailable.
    """
    ids = [prefix.rpartition("_")[2] for prefix in prefixes]
    found = await store.resolve(ids)
    rows = found.tokens
    return found.as_of, [verdict(prefix, id_, rows.get(id_), now) for prefix, id_ in zip(prefixes, ids, strict=True)]


def verdict(prefix: str, token_id: str, row: TokenGrantRow | None, now: float) -> Grant | RefusedGrant:
    """The verdict on the token with this id and row, presented under ``prefix``, at ``now`` (unix seconds)."""
    if row is None or row.prefix != prefix:
        return RefusedGrant(prefix=prefix, reason=Reason.TOKEN_UNKNOWN, depends=(token_key(token_id),))
    depends = dependencies(row)
    reason = refusal(row, now)
    if reason is not None:
        return RefusedGrant(prefix=prefix, reason=reason, depends=depends)
    return _grant(row, depends)


def dependencies(row: TokenGrantRow) -> tuple[str, ...]:
    """The dependency keys of every row that the verdict on this token was read from (rule 4)."""
    keys = [token_key(row.id)]
    if row.user_id is not None:
        keys.append(user_key(row.user_id))
    if row.org_id is not None:
        keys.append(org_key(row.org_id))
        if row.user_id is not None:
            keys.append(member_key(row.org_id, row.user_id))
    if row.role:
        keys.append(role_key(row.role))
    keys.extend(_of_several(row))
    # A role that applies in several places is one key. The order of the rows is kept.
    return tuple(dict.fromkeys(keys))


def _of_several(row: TokenGrantRow) -> Iterator[str]:
    """The dependency keys of the organisations of a token that can reach several, even if it reaches none now.

    An organisation token's own key covers a change to the organisations that it is attached to.
    """
    if row.reach is Reach.ACCOUNT and row.user_id is not None:
        yield memberships_key(row.user_id)
    for org in sorted(row.orgs, key=_org_id):
        yield org_key(org.org_id)
        if row.user_id is not None:
            yield member_key(org.org_id, row.user_id)
        if org.role:
            yield role_key(org.role)


def refusal(row: TokenGrantRow, now: float) -> Reason | None:
    """The reason for which every request of this token is refused (rule 2); ``None`` if it is not refused."""
    shape = (row.kind, row.reach, row.user_id is not None, row.org_id is not None)
    owned = row.kind in OF_USERS
    checks = (
        (shape not in _KNOWN, Reason.TOKEN_UNKNOWN),
        (row.status is not TokenStatus.ACTIVE, Reason.TOKEN_REVOKED),
        (row.expires_at is not None and row.expires_at <= now, Reason.TOKEN_EXPIRED),
        (owned and row.user_status in (None, UserStatus.REMOVED), Reason.OWNER_REMOVED),
        (owned and row.reach is Reach.ORG and row.member_role is None, Reason.MEMBER_REMOVED),
        (owned and row.user_status is not UserStatus.ACTIVE, Reason.OWNER_SUSPENDED),
        (row.reach is Reach.ORG and row.org_status != ORG_ACTIVE, Reason.ORG_SUSPENDED),
    )
    return next((reason for refused, reason in checks if refused), None)


def _grant(row: TokenGrantRow, depends: tuple[str, ...]) -> Grant:
    return Grant(
        prefix=row.prefix,
        token_id=row.id,
        kind=row.kind,
        token_name=row.name,
        digest=row.digest,
        user_id=row.user_id or "",
        email=row.email or "",
        org_id=row.org_id or "",
        org_name=row.org_name or "",
        reach=row.reach,
        role=row.role or "",
        permissions=PermissionSet.of(row.permissions or () if row.reach is not Reach.ORGS else ()),
        scopes=None if row.scopes is None else PermissionSet.of(row.scopes),
        expires_at=row.expires_at,
        depends=depends,
        orgs=_orgs(row) if row.reach in _SEVERAL else None,
        ranges=None if row.ip_ranges is None else AddressRanges.of(row.ip_ranges),
    )


def broken_policy(row: TokenGrantRow, org: OrgGrantRow) -> tuple[str, ...]:
    """The rules of an organisation's own policy that an account-wide token violates, and so does not reach it.

    Inactivity is not among them, because it changes with every request.
    """
    if row.reach is not Reach.ACCOUNT or not org.policy:
        return ()
    lifetime = model.lifetime(created_at=row.created_at, rotated_at=row.rotated_at, expires_at=row.expires_at)
    return model.TokenPolicy.of_org(org.policy).broken(lifetime=lifetime, scopes=row.scopes)


def _orgs(row: TokenGrantRow) -> dict[str, OrgGrant]:
    reached = (org for org in row.orgs if org.status == ORG_ACTIVE and not broken_policy(row, org))
    active = sorted(reached, key=_org_id)
    return by_org(
        OrgGrant(
            org_id=org.org_id,
            org_name=org.org_name,
            role=org.role or "",
            permissions=PermissionSet.of(org.permissions or ()),
        )
        for org in active
    )


def _org_id(org: OrgGrantRow) -> str:
    return org.org_id
