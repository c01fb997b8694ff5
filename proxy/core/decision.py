"""The authorisation decision: compares the match of a request with the grant of its token.

1. Pure and synchronous: the same match, grant and time give the same result; nothing is read or awaited.
2. ``Reason.ALLOWED`` is returned in one place, at the end; every earlier return is a refusal.
3. The checks run in this order, and the first that fails gives the reason: route, expiry, address, organisation,
   operation, role, scopes.
4. The role is the owner's current role; scopes only narrow it.
5. A token with several organisations has, on a route that names one, only its permissions in that organisation. On a
   route that names none, an account-wide token has its role in the account, and a token attached to organisations has
   no permissions.
6. A token with IP ranges is refused where the client's address is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from proxy.core.kinds import Reach
from proxy.core.model import Access, Grant, OrgGrant
from proxy.core.permissions import Permission
from proxy.core.reasons import Reason
from proxy.core.routes import Match

_DENIED: Final = Access.DENIED
_ORG: Final = Reach.ORG
_ORGS: Final = Reach.ORGS
_ALLOWED: Final = Reason.ALLOWED


def decide(match: Match, grant: Grant, now: float, address: str = "") -> Reason:
    """``Reason.ALLOWED``, or the reason of the refusal.

    ``now`` is in unix seconds; a token expires at the instant ``expires_at``, not after it. ``address`` is the
    client's; it is needed for a grant with ``ranges`` only.
    """
    route, entity, entity_id, operation, org = match
    if route.access is _DENIED:
        return Reason.ROUTE_DENIED
    expires_at = grant.expires_at
    if expires_at is not None and expires_at <= now:
        return Reason.TOKEN_EXPIRED
    ranges = grant.ranges
    if ranges is not None and not ranges.contain(address):
        return Reason.ADDRESS_REFUSED
    permissions = grant.permissions
    if org is not None and (grant.reach is not _ORG or (org != grant.org_name and org != grant.org_id)):
        there = reached(org, grant)
        if there is None:
            return Reason.ORG_MISMATCH
        permissions = there.permissions
    if operation is None or entity is None:
        return _unless_nowhere(org, grant, Reason.OPERATION_UNMAPPED)
    if not permissions.allows(entity, entity_id, operation):
        return _unless_nowhere(org, grant, Reason.ROLE_DENIES)
    scopes = grant.scopes
    if scopes is not None and not scopes.allows(entity, entity_id, operation):
        return Reason.SCOPE_DENIES
    return _ALLOWED


def reached(org: str | None, grant: Grant) -> OrgGrant | None:
    """The permissions of a token with several organisations in the one that a request names, by id or name.

    None if the token does not reach that organisation, if the request names none, and for all other tokens.
    """
    orgs = grant.orgs
    return None if orgs is None or org is None else orgs.get(org)


def _unless_nowhere(org: str | None, grant: Grant, reason: Reason) -> Reason:
    """``ORG_MISMATCH`` for a token attached to organisations on a route that names none, else ``reason``.

    Such a token has no permissions there, so it is enough to check this after a refusal.
    """
    return Reason.ORG_MISMATCH if org is None and grant.reach is _ORGS else reason


def needed_permission(match: Match) -> str:
    """The permission that a request needs, as in a challenge's ``scope``; "" if the route names no operation."""
    if match.entity is None or match.operation is None:
        return ""
    return str(Permission(match.entity, match.entity_id, match.operation))


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A decision with its grounds: the needed permission, and the entries of role and scopes that give it, or None."""

    reason: Reason
    needed: str
    role_entry: Permission | None
    scope_entry: Permission | None


def decision(match: Match, grant: Grant, now: float, address: str = "") -> Verdict:
    """``decide`` with its grounds, for explanations; the reason is always that of ``decide``."""
    role_entry = scope_entry = None
    if match.entity is not None and match.operation is not None:
        there = reached(match.org, grant)
        permissions = grant.permissions if there is None else there.permissions
        role_entry = permissions.entry_for(match.entity, match.entity_id, match.operation)
        if grant.scopes is not None:
            scope_entry = grant.scopes.entry_for(match.entity, match.entity_id, match.operation)
    return Verdict(
        reason=decide(match, grant, now, address),
        needed=needed_permission(match),
        role_entry=role_entry,
        scope_entry=scope_entry,
    )
