"""B1, C1, C6: the rules of a policy; of two policies the stricter value of every field applies."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.services.policy.model import AdminRight, TokenPolicy

LIMITS = st.none() | st.integers(1, 50)
POLICIES = st.builds(
    TokenPolicy,
    max_lifetime=st.none() | st.floats(60, 1e6),
    require_expiry=st.booleans(),
    tokens_per_user=LIMITS,
    org_tokens_per_org=LIMITS,
    inactive_after=st.none() | st.floats(60, 1e6),
    require_scopes=st.booleans(),
    forbidden_scopes=st.lists(st.sampled_from(["*:*", "things:*", "things/1:read"]), max_size=3).map(tuple),
    admin_rights=st.frozensets(st.sampled_from(AdminRight)),
)
LIFETIMES = st.none() | st.floats(1, 2e6)
SCOPES = st.none() | st.lists(
    st.sampled_from(["*:*", "*:read", "things:*", "things:read", "things/1:read"]), max_size=3
)


@given(POLICIES, POLICIES, LIFETIMES, SCOPES, st.none() | st.floats(0, 2e6))
def test_the_combined_policy_allows_only_what_both_policies_allow(
    one: TokenPolicy, two: TokenPolicy, lifetime: float | None, scopes: list[str] | None, unused: float | None
) -> None:
    both = one.stricter(two)
    broken = set(both.broken(lifetime=lifetime, scopes=scopes, unused=unused))
    each = set(one.broken(lifetime=lifetime, scopes=scopes, unused=unused))
    each |= set(two.broken(lifetime=lifetime, scopes=scopes, unused=unused))
    assert broken == each
    assert (both.lifetime_fault(lifetime) is None) == (
        one.lifetime_fault(lifetime) is None and two.lifetime_fault(lifetime) is None
    )
    assert both.admin_rights == one.admin_rights & two.admin_rights
    for name in ("tokens_per_user", "org_tokens_per_org"):
        limits = [value for value in (getattr(one, name), getattr(two, name)) if value is not None]
        assert getattr(both, name) == min(limits, default=None)


def test_the_default_policy_limits_nothing() -> None:
    assert TokenPolicy().broken(lifetime=None, scopes=None, unused=1e9) == ()
    assert TokenPolicy().lifetime_fault(None) is None and TokenPolicy().scope_faults(None) == []


@pytest.mark.parametrize(
    ("scope", "forbidden"),
    [("*:*", True), ("*:read", False), ("things:*", False), ("things:read", False)],
)
def test_only_what_covers_a_forbidden_scope_is_forbidden(scope: str, forbidden: bool) -> None:
    faults = TokenPolicy(forbidden_scopes=("*:*",)).scope_faults(["things:read", scope])
    assert [place for place, _ in faults] == (["scopes[1]"] if forbidden else [])


def test_if_scopes_are_forbidden_a_token_must_name_its_scopes() -> None:
    assert [place for place, _ in TokenPolicy(forbidden_scopes=("*:*",)).scope_faults(None)] == ["scopes"]


def test_a_field_that_an_organisation_does_not_set_is_the_deployments() -> None:
    deployment = TokenPolicy(max_lifetime=100.0, tokens_per_user=3, admin_rights=frozenset({AdminRight.REVOKE}))
    assert deployment.stricter(TokenPolicy.of_org(None)) == deployment
    assert deployment.stricter(TokenPolicy.of_org({"max_lifetime": 60.0})).max_lifetime == 60.0
    assert deployment.stricter(TokenPolicy.of_org({"max_lifetime": 600.0})).max_lifetime == 100.0
    assert deployment.stricter(TokenPolicy.of_org({"admin_rights": []})).admin_rights == frozenset()


def test_every_field_is_in_the_document() -> None:
    assert set(TokenPolicy().as_dict()) == {field.name for field in fields(TokenPolicy)}
