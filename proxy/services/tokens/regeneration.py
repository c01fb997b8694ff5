"""Regenerating a revoked or expired token: checks that it may get a new value, and computes its new expiry.

Without a requested lifetime the token gets the lifetime that it was created with, or the longest that the present
policy allows. A token that never expired gets no expiry if the policy permits that.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.core.errors import Conflict
from proxy.core.kinds import OF_USERS, Reach
from proxy.core.model import TokenStatus
from proxy.services.caller import Caller
from proxy.services.policy.model import TokenPolicy
from proxy.services.policy.seat_limit import require_seats
from proxy.services.policy.service import PolicyService
from proxy.services.tokens import loading, ownership
from proxy.services.tokens.issuance import Lifetime, lifetime
from proxy.services.tokens.loading import Found
from proxy.services.validation import Fields
from proxy.store.change import Rows
from proxy.store.records import TokenRow


@dataclass(frozen=True, kw_only=True, slots=True)
class NewExpiry:
    """The new expiry of a token (unix seconds, None for never), with warnings for the caller."""

    expires_at: float | None
    warnings: tuple[str, ...]


async def renewal(
    rows: Rows, caller: Caller, policies: PolicyService, found: Found, expires: float | None, now: float
) -> NewExpiry:
    """The new expiry of a token that may be regenerated.

    Raises Conflict (active, owner or organisation suspended or removed, too many tokens), Invalid and Forbidden.
    """
    row = found.row
    if found.status(now) is TokenStatus.ACTIVE:
        raise Conflict("the token is active: rotate it, or revoke it first")
    await loading.require_usable(rows, found)
    policy = await policies.effective(rows, *loading.policy_org_ids(found))
    fields = Fields()
    lives = _lifetime(policy, row, expires, fields)
    named = () if row.scopes is None and row.reach is Reach.ORGS else row.scopes
    for _, problem in policy.scope_faults(named):
        fields.fault("scopes", problem)
    for one in found.attached:
        for _, problem in policy.scope_faults(one.permissions):
            fields.fault(f"grants.{one.org_name}", problem)
    fields.done()
    expires_at = lives.end(now)
    await loading.require_within(rows, caller, found, expires_at=expires_at, scopes=row.scopes, ranges=row.ip_ranges)
    if row.kind in OF_USERS and row.user_id is not None:
        await ownership.require_quota(rows, policies, row.user_id, row.org_id, now)
    for one in found.attached:
        await require_seats(rows, policies, one.org_id, now)
    warnings = lives.warnings
    if row.reach is Reach.ACCOUNT and row.user_id is not None:
        warnings += await policies.unreachable_orgs(rows, row.user_id, lifetime=lives.seconds, scopes=row.scopes)
    return NewExpiry(expires_at=expires_at, warnings=warnings)


def _lifetime(policy: TokenPolicy, row: TokenRow, expires: float | None, fields: Fields) -> Lifetime:
    if expires is not None or row.lifetime is None:
        return lifetime(policy, expires, fields)
    longest = policy.max_lifetime
    seconds = row.lifetime if longest is None else min(row.lifetime, longest)
    given = "the lifetime it was made with" if seconds == row.lifetime else "the longest that the policy allows"
    return Lifetime(seconds=seconds, warnings=(f"no lifetime was named, so it gets {given}",))
