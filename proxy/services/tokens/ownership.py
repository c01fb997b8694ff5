"""Owner, organisation and reach of a new personal access token: checks them, the policy and the owner's token limit.

Rules:

1. A personal access token creates tokens only for its own owner. With a token of another user it could act as them.
2. A token that a token creates is contained in it (``authorization`` rule 7); an error names every field that is not.
3. ``plan`` reads everything in the given transaction, and is called again in the one that stores the token.
4. An account-wide token belongs to its owner: only the deployment's policy decides whether it may be created. It does
   not reach an organisation whose policy it violates, and the caller gets a warning.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.core.errors import Conflict, Forbidden, Invalid
from proxy.core.kinds import KINDS, Reach
from proxy.core.model import UserStatus
from proxy.services import identifiers, lookup
from proxy.services.caller import Caller
from proxy.services.grants import ORG_ACTIVE
from proxy.services.policy.service import PolicyService
from proxy.services.tokens import authorization
from proxy.services.tokens.issuance import Draft, TokenRequest, ineffective_scopes, lifetime
from proxy.services.tokens.loading import KEYS_MAKE_NOTHING
from proxy.services.validation import Fields
from proxy.store.change import Rows
from proxy.store.records import OrgRow, UserRow

_FOR_OTHERS = "a token makes tokens for its own owner only"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The properties of a new token, valid in one transaction."""

    user: UserRow
    org: OrgRow | None
    reach: Reach
    expires_at: float | None
    warnings: tuple[str, ...]


def reach_of(new: TokenRequest, fields: Fields) -> Reach:
    """The requested reach; errors, such as a reach that contradicts the organisation, go to ``fields``."""
    reach = new.reach or (Reach.PERSONAL if new.org is None else Reach.ORG)
    if reach is Reach.ORGS:
        fields.fault(
            "reach", "a personal access token is personal, of one organisation (org) or account-wide (account)"
        )
    elif reach is Reach.ORG and new.org is None:
        fields.fault("org", "name the organisation")
    elif reach is not Reach.ORG and new.org is not None:
        fields.fault("org", "only a token that reaches one organisation names one")
    return reach


async def plan(
    rows: Rows, caller: Caller, policies: PolicyService, new: TokenRequest, draft: Draft, reach: Reach, now: float
) -> Plan:
    """The plan of the requested token.

    Raises Invalid, NotFound, Conflict, and Forbidden if the token would not be contained in the one presented.
    """
    grant = caller.grant
    if grant is not None and not KINDS[grant.kind].may_manage:
        raise Forbidden(KEYS_MAKE_NOTHING)
    user = await _owner(rows, caller, new.user)
    if user.status is UserStatus.SUSPENDED:
        raise Conflict("the user is suspended and cannot be given a token")
    members = await rows.members.of_user(user.id)
    org = None if new.org is None else await _org(rows, caller, new.org, {member.org_id for member in members})
    org_ids = [org.id] if org is not None else [one.org_id for one in members] if reach is Reach.ACCOUNT else []
    policy = await policies.effective(rows, None if org is None else org.id)
    fields = Fields()
    lives = lifetime(policy, draft.expires, fields)
    for fault in policy.scope_faults(draft.scopes):
        fields.fault(*fault)
    fields.done()
    expires_at = lives.end(now)
    if grant is not None:
        org_id = None if org is None else org.id
        faults = authorization.containment_errors(
            grant, reach=reach, org_id=org_id, expires_at=expires_at, scopes=draft.scopes, ranges=draft.ip_ranges
        )
        if faults:
            raise Forbidden("a token cannot make one that may do more, or lives longer, than itself", *faults)
    await require_quota(rows, policies, user.id, None if org is None else org.id, now)
    roles = [] if org is not None else [user.role]
    roles += [one.role for one in members if one.org_id in org_ids]
    warnings = lives.warnings + ineffective_scopes(
        [await lookup.permissions(rows, role) for role in roles], draft.scopes
    )
    if reach is Reach.ACCOUNT:
        warnings += await policies.unreachable_orgs(rows, user.id, lifetime=lives.seconds, scopes=draft.scopes)
    return Plan(
        user=user,
        org=org,
        reach=reach,
        expires_at=expires_at,
        warnings=warnings,
    )


async def require_quota(rows: Rows, policies: PolicyService, user_id: str, org_id: str | None, now: float) -> None:
    """Raise Conflict if the user has as many active tokens as the policy allows, in all or in the organisation."""
    limits: list[tuple[int | None, str | None]] = [(policies.deployment.tokens_per_user, None)]
    if org_id is not None:
        limits.append(((await policies.effective(rows, org_id)).tokens_per_user, org_id))
    for limit, where in limits:
        if limit is not None and await rows.tokens.count_active(user_id, now, where) >= limit:
            raise Conflict(f"the user has as many active tokens as the policy allows ({limit}): revoke one first")


async def _owner(rows: Rows, caller: Caller, reference: str | None) -> UserRow:
    grant = caller.grant
    if grant is None:
        if reference is None:
            raise Invalid("user", "name the user")
        return await lookup.user(rows, reference)
    # Compared as text, without a lookup, so that the answer does not reveal which other users exist.
    mine = reference in (None, grant.user_id) or identifiers.email_key(reference or "") == identifiers.email_key(
        grant.email
    )
    if not mine:
        raise Forbidden(_FOR_OTHERS, ("user", _FOR_OTHERS))
    return await lookup.user(rows, grant.user_id)


async def _org(rows: Rows, caller: Caller, reference: str, member_of: set[str]) -> OrgRow:
    found = await lookup.visible_org(rows, caller, reference)
    if found.status != ORG_ACTIVE:
        raise Conflict("the organisation is suspended and cannot be given a token")
    if found.id not in member_of:
        raise Invalid("org", "the user is not a member of this organisation")
    return found
