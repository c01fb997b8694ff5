"""Filters for lists of tokens: combines the requested filter with the tokens that the caller may see.

A filter never reveals more: a user, organisation or token that the caller may not see gives the same error as an
unknown one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from proxy.core.kinds import Kind
from proxy.core.model import TokenStatus
from proxy.services import lookup
from proxy.services.caller import AccountEntity, AccountOperation, Caller
from proxy.services.policy.service import PolicyService
from proxy.services.tokens import authorization, loading
from proxy.services.tokens.authorization import Verb
from proxy.services.tokens.issuance import LONGEST
from proxy.services.validation import Fields
from proxy.store.change import Rows
from proxy.store.records import UserRow
from proxy.store.tokens.queries import TokenListQuery, Within


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenFilter:
    """The requested filter for a list of tokens; None does not filter.

    ``user`` is an email or an id, ``org`` a name or an id. ``expiring_within`` selects active tokens that expire within
    so many seconds, those that expire first in front. ``unused_for``, in seconds, is the time since a token was created
    or last used. ``parent`` selects the tokens that this token created, directly or through others.
    """

    user: str | None = None
    org: str | None = None
    status: TokenStatus | None = None
    kind: Kind | None = None
    expiring_within: float | None = None
    unused_for: float | None = None
    parent: str | None = None

    def check(self) -> None:
        """Raise Invalid with every error."""
        fields = Fields()
        for name in ("expiring_within", "unused_for"):
            value = getattr(self, name)
            if value is not None and (not math.isfinite(value) or not 0 <= value <= LONGEST):
                fields.fault(name, f"a number of seconds, at most {LONGEST:g}")
        fields.done()


async def query(rows: Rows, caller: Caller, policies: PolicyService, wanted: TokenFilter, now: float) -> TokenListQuery:
    """The store query for the visible tokens that match the filter. Raises NotFound (user, org, parent)."""
    user_id = None if wanted.user is None else (await visible_owner(rows, caller, wanted.user)).id
    org_id = None if wanted.org is None else (await lookup.visible_org(rows, caller, wanted.org)).id
    visible = authorization.visible_tokens(caller)
    lineage = None
    if wanted.parent is not None:
        parent = await loading.find(rows, caller, policies, wanted.parent, Verb.SHOW)
        lineage = parent.row.id
        if not (parent.made or (caller.grant is not None and caller.grant.token_id == lineage)):
            visible = tuple(one for one in visible if one.lineage is None)
    return TokenListQuery(
        within=authorization.intersection(visible, Within(user_id=user_id, org_id=org_id, lineage=lineage)),
        kind=wanted.kind,
        status=wanted.status,
        expires_by=None if wanted.expiring_within is None else now + wanted.expiring_within,
        unused_since=None if wanted.unused_for is None else now - wanted.unused_for,
        but=lineage,
    )


async def visible_owner(rows: Rows, caller: Caller, reference: str) -> UserRow:
    """The user with this email or id, if the caller may see some of the user's tokens.

    Raises NotFound, after the same statements for a user whom the caller may not see and for an unknown one.
    """
    if caller.may(AccountEntity.TOKENS, AccountOperation.LIST):
        return await lookup.user(rows, reference)
    for org_id in sorted(caller.org_ids):
        if caller.may(AccountEntity.TOKENS, AccountOperation.LIST, org_id):
            member = await lookup.membership_of(rows, org_id, reference)
            if member is not None:
                return await lookup.user(rows, member.user_id)
    return await lookup.visible_user(rows, caller, reference)
