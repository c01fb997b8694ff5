"""From rows to a verdict about a token: the grant that gateways decide with, or why there is none.

Rules:

1. A token is found by its whole prefix: brand, kind and id must be exactly those of the row.
2. The refusals are asked in one order, the first one counts: unknown, revoked, expired, owner removed, owner suspended,
   organisation suspended, member removed.
3. The role that counts is the one of now: the owner's in the account for a personal token, the membership's in the
   token's organisation for a team token, the one fixed at creation for a key. A role that is gone allows nothing.
4. ``depends`` names every row that this verdict was read from, the missing ones too, so that any change that could
   make another verdict names one of these keys.
5. A reach that this version does not know how to bound is refused like an unknown token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from proxy.core.depends import member_key, org_key, role_key, token_key, user_key
from proxy.core.model import Grant, Kind, Reach, RefusedGrant, TokenStatus, UserStatus
from proxy.core.permissions import PermissionSet
from proxy.core.reasons import Reason
from proxy.store.records import TokenGrantRow
from proxy.store.store import Store

ORG_ACTIVE: Final = "active"
_KNOWN: Final = frozenset({(Kind.PAT, Reach.PERSONAL), (Kind.PAT, Reach.ORG), (Kind.KEY, Reach.ORG)})


async def resolve(store: Store, prefixes: Sequence[str], now: float) -> tuple[int, list[Grant | RefusedGrant]]:
    """The verdicts about the tokens with these public prefixes (one at least) at ``now`` (unix seconds), in their
    order, and the epoch that all of them are as of.

    Raises StoreUnavailable.
    """
    ids = [prefix.rpartition("_")[2] for prefix in prefixes]
    found = await store.resolve(ids)
    rows = found.tokens
    return found.as_of, [_verdict(prefix, id_, rows.get(id_), now) for prefix, id_ in zip(prefixes, ids, strict=True)]


def _verdict(prefix: str, token_id: str, row: TokenGrantRow | None, now: float) -> Grant | RefusedGrant:
    if row is None or row.prefix != prefix:
        return RefusedGrant(prefix=prefix, reason=Reason.TOKEN_UNKNOWN, depends=(token_key(token_id),))
    depends = dependencies(row)
    reason = refusal(row, now)
    if reason is not None:
        return RefusedGrant(prefix=prefix, reason=reason, depends=depends)
    return _grant(row, depends)


def dependencies(row: TokenGrantRow) -> tuple[str, ...]:
    """The keys of every row that the verdict about this token was read from (rule 4)."""
    keys = [token_key(row.id)]
    if row.user_id is not None:
        keys.append(user_key(row.user_id))
    if row.org_id is not None:
        keys.append(org_key(row.org_id))
        if row.user_id is not None:
            keys.append(member_key(row.org_id, row.user_id))
    if row.role:
        keys.append(role_key(row.role))
    return tuple(keys)


def refusal(row: TokenGrantRow, now: float) -> Reason | None:
    """Why this token is refused whatever it asks for; ``None`` where it is not (rule 2)."""
    checks = (
        ((row.kind, row.reach) not in _KNOWN, Reason.TOKEN_UNKNOWN),
        (row.status is not TokenStatus.ACTIVE, Reason.TOKEN_REVOKED),
        (row.expires_at is not None and row.expires_at <= now, Reason.TOKEN_EXPIRED),
        (row.kind is Kind.PAT and row.user_status in (None, UserStatus.REMOVED), Reason.OWNER_REMOVED),
        (row.kind is Kind.PAT and row.user_status is not UserStatus.ACTIVE, Reason.OWNER_SUSPENDED),
        (row.reach is Reach.ORG and row.org_status != ORG_ACTIVE, Reason.ORG_SUSPENDED),
        (row.kind is Kind.PAT and row.reach is Reach.ORG and row.member_role is None, Reason.MEMBER_REMOVED),
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
        permissions=PermissionSet.of(row.permissions or ()),
        scopes=None if row.scopes is None else PermissionSet.of(row.scopes),
        expires_at=row.expires_at,
        depends=depends,
    )
