"""Why a token is refused: the reasons stand in an order, and the first that holds is the one that is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from proxy.core.kinds import Kind, Reach
from proxy.core.model import TokenStatus, UserStatus
from proxy.core.reasons import Reason
from proxy.services.grants import ORG_ACTIVE, refusal
from proxy.store.records import TokenGrantRow

NOW = 1000.0
GOOD = TokenGrantRow(
    id="abcDEF123456",
    prefix="acme_pat_abcDEF123456",
    kind=Kind.PAT,
    reach=Reach.ORG,
    name="t",
    user_id="u1",
    org_id="o1",
    scopes=None,
    status=TokenStatus.ACTIVE,
    digest=None,
    expires_at=None,
    email="ann@example.org",
    user_status=UserStatus.ACTIVE,
    org_name="team",
    org_status=ORG_ACTIVE,
    member_role="viewer",
    role="viewer",
    permissions=("things:read",),
)
#: Each fault alone, in the order in which they are told where there are several.
FAULTS: list[tuple[Reason, dict[str, Any]]] = [
    (Reason.TOKEN_REVOKED, {"status": TokenStatus.REVOKED}),
    (Reason.TOKEN_EXPIRED, {"expires_at": NOW}),
    (Reason.MEMBER_REMOVED, {"member_role": None}),
    (Reason.OWNER_SUSPENDED, {"user_status": UserStatus.SUSPENDED}),
    (Reason.ORG_SUSPENDED, {"org_status": "suspended"}),
]


def test_a_valid_token_is_not_refused() -> None:
    assert refusal(GOOD, NOW) is None
    assert refusal(replace(GOOD, expires_at=NOW + 0.001), NOW) is None


@pytest.mark.parametrize("first", range(len(FAULTS)))
def test_of_several_reasons_the_first_in_order_is_reported(first: int) -> None:
    """Token, membership, owner, organisation.

    The membership comes before the owner, because an organisation must not see the status of a former member.
    """
    reason, fault = FAULTS[first]
    assert refusal(replace(GOOD, **fault), NOW) is reason
    for _, other in FAULTS[first + 1 :]:
        assert refusal(replace(GOOD, **fault, **other), NOW) is reason
    assert refusal(replace(GOOD, **{name: value for _, one in FAULTS[first:] for name, value in one.items()}), NOW) is (
        reason
    )


@pytest.mark.parametrize("status", [UserStatus.REMOVED, None])
def test_a_removed_owner_is_not_reported_as_suspended(status: UserStatus | None) -> None:
    gone = replace(GOOD, user_status=status, org_status="suspended", member_role=None)
    assert refusal(gone, NOW) is Reason.OWNER_REMOVED


def test_a_token_of_an_impossible_shape_is_unknown() -> None:
    for odd in ({"org_id": None}, {"user_id": None}, {"reach": Reach.ORGS}, {"kind": Kind.KEY}):
        changes: dict[str, Any] = odd
        assert refusal(replace(GOOD, **changes), NOW) is Reason.TOKEN_UNKNOWN
        assert refusal(replace(GOOD, **changes, status=TokenStatus.REVOKED), NOW) is Reason.TOKEN_UNKNOWN
