"""``decide`` agrees with the formula: role ∧ scopes ∧ organisation ∧ route open to tokens."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.decision import decide, decision
from proxy.core.kinds import Reach
from proxy.core.model import Access, Grant, OrgGrant, by_org
from proxy.core.networks import AddressRanges, is_within
from proxy.core.permissions import Permission, PermissionSet
from proxy.core.reasons import Reason
from proxy.core.routes import Match, Route
from tests.unit.core.grants import grant

names = st.none() | st.sampled_from(["things", "channels", "*"])
ids = st.none() | st.sampled_from(["1", "2", "*"])
operations = st.none() | st.sampled_from(["read", "update", "*"])
sets = st.lists(st.builds(Permission, names, ids, operations), max_size=4).map(
    lambda many: PermissionSet.of(map(str, many))
)
matches = st.builds(
    Match,
    st.sampled_from([Route(index=0, path="/a"), Route(index=1, path="/b", access=Access.DENIED)]),
    names,
    ids,
    operations,
    st.none() | st.sampled_from(["acme", "o1", "beta", "o2", "other"]),
)
reached = st.lists(
    st.builds(
        OrgGrant,
        org_id=st.sampled_from(["o1", "o2"]),
        org_name=st.just(""),
        role=st.just("r"),
        permissions=sets,
    ),
    max_size=2,
    unique_by=lambda org: org.org_id,
).map(lambda orgs: by_org(replace(org, org_name={"o1": "acme", "o2": "beta"}[org.org_id]) for org in orgs))
grants = st.builds(
    grant,
    reach=st.sampled_from((Reach.PERSONAL, Reach.ORG)),
    org_id=st.sampled_from(["", "o1"]),
    org_name=st.sampled_from(["", "acme"]),
    permissions=sets,
    scopes=st.none() | sets,
    expires_at=st.none() | st.floats(-2, 2),
    ranges=st.none() | st.sampled_from([[], ["10.0.0.0/8"], ["192.0.2.7", "fd00::/8"]]).map(AddressRanges.of),
)
addresses = st.sampled_from(["", "10.0.0.1", "192.0.2.7", "fd00::1", "::ffff:10.0.0.1", "unix"])
of_several = st.builds(
    lambda held, reach, orgs: replace(
        held, reach=reach, orgs=orgs, permissions=PermissionSet.of(()) if reach is Reach.ORGS else held.permissions
    ),
    grants,
    st.sampled_from((Reach.ACCOUNT, Reach.ORGS)),
    reached,
)


def held_there(match: Match, held: Grant) -> PermissionSet | None:
    """The token's permissions in the request's organisation, by reach; None if the token does not reach it."""
    if match.org is None:
        return None if held.reach is Reach.ORGS else held.permissions
    if held.reach is Reach.ORG:
        return held.permissions if match.org in {held.org_name, held.org_id} else None
    if held.reach is Reach.PERSONAL or held.orgs is None:
        return None
    found = [org.permissions for org in held.orgs.values() if match.org in {org.org_id, org.org_name}]
    return found[0] if found else None


@given(matches, grants | of_several, st.floats(-2, 2), addresses)
@settings(max_examples=400)
def test_a_request_is_allowed_exactly_if_every_check_passes(
    match: Match, held: Grant, now: float, address: str
) -> None:
    alive = held.expires_at is None or now < held.expires_at
    there = held_there(match, held)
    at_home = there is not None
    named = match.entity is not None and match.operation is not None

    def permits(permissions: PermissionSet) -> bool:
        return named and any(
            entry.allows(match.entity or "", match.entity_id, match.operation or "") for entry in permissions.entries
        )

    role = there is not None and permits(there)
    scopes = held.scopes is None or permits(held.scopes)
    open_ = match.route.access is not Access.DENIED
    near = held.ranges is None or any(
        address not in ("", "unix") and is_within(ip_address(address), [ip_network(text)]) for text in held.ranges.texts
    )
    reason = decide(match, held, now, address)
    assert (reason is Reason.ALLOWED) == (open_ and alive and near and at_home and named and role and scopes)
    order = [
        (open_, Reason.ROUTE_DENIED),
        (alive, Reason.TOKEN_EXPIRED),
        (near, Reason.ADDRESS_REFUSED),
        (at_home, Reason.ORG_MISMATCH),
        (named, Reason.OPERATION_UNMAPPED),
        (role, Reason.ROLE_DENIES),
        (scopes, Reason.SCOPE_DENIES),
    ]
    assert reason is next((refusal for holds, refusal in order if not holds), Reason.ALLOWED)
    verdict = decision(match, held, now, address)
    assert verdict.reason is reason
    if reason is Reason.ALLOWED:
        assert verdict.role_entry is not None
        assert (verdict.scope_entry is None) == (held.scopes is None)
