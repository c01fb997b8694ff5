"""The seat limit: how many active organisation tokens an organisation may have."""

from __future__ import annotations

from proxy.core.errors import Conflict
from proxy.services.policy.service import PolicyService
from proxy.store.change import Rows


async def require_seats(rows: Rows, policies: PolicyService, org_id: str, now: float) -> None:
    """Raise Conflict if the organisation has as many active organisation tokens as the policy allows."""
    seats = (await policies.effective(rows, org_id)).org_tokens_per_org
    if seats is not None and await rows.token_orgs.seats(org_id, now) >= seats:
        raise Conflict(
            f"the organisation has as many organisation tokens as the policy allows ({seats}): end or detach one first"
        )
