"""Which tokens a list shows: what somebody asks for, within what is in their sight.

A filter never widens: a user, an organisation or a token that one may not know of is not found, in the words for one
that there is not.
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
    """Which of the tokens in sight a list shows; None asks for nothing.

    ``user`` and ``org`` are names or ids. ``expiring_within`` asks, in seconds, for active tokens that end soon, the
    first to end first. ``unused_for``, in seconds, is the time since a token was made or last used. ``parent`` is a
    token: those that it made, directly or through others.
    """

    user: str | None = None
    org: str | None = None
    status: TokenStatus | None = None
    kind: Kind | None = None
    expiring_within: float | None = None
    unused_for: float | None = None
    parent: str | None = None

    def check(self) -> None:
        """Raises Invalid with all that is wrong."""
        fields = Fields()
        for name in ("expiring_within", "unused_for"):
            value = getattr(self, name)
            if value is not None and (not math.isfinite(value) or not 0 <= value <= LONGEST):
                fields.fault(name, f"a number of seconds, at most {LONGEST:g}")
        fields.done()


async def query(rows: Rows, asker: Caller, policies: PolicyService, wanted: TokenFilter, now: float) -> TokenListQuery:
    """The tokens in sight that are wanted. Raises NotFound (user, org, parent)."""
    user_id = None if wanted.user is None else (await user_in_sight(rows, asker, wanted.user)).id
    org_id = None if wanted.org is None else (await lookup.visible_org(rows, asker, wanted.org)).id
    sights = authorization.sight(asker)
    lineage = None
    if wanted.parent is not None:
        parent = await loading.find(rows, asker, policies, wanted.parent, Verb.SHOW)
        lineage = parent.row.id
        if not (parent.made or (asker.grant is not None and asker.grant.token_id == lineage)):
            sights = tuple(one for one in sights if one.lineage is None)
    return TokenListQuery(
        within=authorization.narrowed(sights, Within(user_id=user_id, org_id=org_id, lineage=lineage)),
        kind=wanted.kind,
        status=wanted.status,
        expires_by=None if wanted.expiring_within is None else now + wanted.expiring_within,
        unused_since=None if wanted.unused_for is None else now - wanted.unused_for,
        but=lineage,
    )


async def user_in_sight(rows: Rows, asker: Caller, reference: str) -> UserRow:
    """The user with this email or id, if ``asker`` may know of some of their tokens.

    Raises NotFound, after the same statements for somebody who is none of the asker's business and for nobody.
    """
    if asker.may(AccountEntity.TOKENS, AccountOperation.LIST):
        return await lookup.user(rows, reference)
    for org_id in sorted(asker.org_ids):
        if asker.may(AccountEntity.TOKENS, AccountOperation.LIST, org_id):
            member = await lookup.membership_of(rows, org_id, reference)
            if member is not None:
                return await lookup.user(rows, member.user_id)
    return await lookup.visible_user(rows, asker, reference)
