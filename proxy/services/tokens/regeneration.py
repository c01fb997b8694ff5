"""What a revoked or expired token will be when it gets a new value: its end, under the policy of now.

Without a duration it lives as long as it was made for, or as long as the policy lets it. What has no end, and may have
none, gets none.
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
    """The end that a token gets (unix seconds, None for never), and what to tell about it."""

    expires_at: float | None
    warnings: tuple[str, ...]


async def renewal(
    rows: Rows, asker: Caller, policies: PolicyService, found: Found, expires: float | None, now: float
) -> NewExpiry:
    """Raises Conflict (active, or somebody suspended or gone, or too many), Invalid and Forbidden."""
    row = found.row
    if found.status(now) is TokenStatus.ACTIVE:
        raise Conflict("the token is active: rotate it, or revoke it first")
    await loading.require_usable(rows, found)
    policy = await policies.of(rows, *loading.policed_by(found))
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
    await loading.require_within(rows, asker, found, expires_at=expires_at, scopes=row.scopes)
    if row.kind in OF_USERS and row.user_id is not None:
        await ownership.require_room(rows, policies, row.user_id, row.org_id, now)
    for one in found.attached:
        await require_seats(rows, policies, one.org_id, now)
    warnings = lives.warnings
    if row.reach is Reach.ACCOUNT and row.user_id is not None:
        warnings += await policies.kept_out(rows, row.user_id, lifetime=lives.seconds, scopes=row.scopes)
    return NewExpiry(expires_at=expires_at, warnings=warnings)


def _lifetime(policy: TokenPolicy, row: TokenRow, expires: float | None, fields: Fields) -> Lifetime:
    if expires is not None or row.lifetime is None:
        return lifetime(policy, expires, fields)
    longest = policy.max_lifetime
    seconds = row.lifetime if longest is None else min(row.lifetime, longest)
    given = "the lifetime it was made with" if seconds == row.lifetime else "the longest that the policy allows"
    return Lifetime(seconds=seconds, warnings=(f"no lifetime was named, so it gets {given}",))
