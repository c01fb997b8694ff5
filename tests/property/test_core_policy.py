"""decide against the one-line formula of interfaces.md."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.model import Access, Grant, Reach
from proxy.core.permissions import Permission, PermissionSet
from proxy.core.policy import decide, decision
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
    st.none() | st.sampled_from(["acme", "o1", "other"]),
)
grants = st.builds(
    grant,
    reach=st.sampled_from(Reach),
    org_id=st.sampled_from(["", "o1"]),
    org_name=st.sampled_from(["", "acme"]),
    permissions=sets,
    scopes=st.none() | sets,
    expires_at=st.none() | st.floats(-2, 2),
)


@given(matches, grants, st.floats(-2, 2))
@settings(max_examples=200)
def test_a_request_is_allowed_exactly_if_everything_agrees(match: Match, held: Grant, now: float) -> None:
    alive = held.expires_at is None or now < held.expires_at
    at_home = match.org is None or (held.reach is Reach.ORG and match.org in {held.org_name, held.org_id})
    named = match.entity is not None and match.operation is not None

    def permits(permissions: PermissionSet) -> bool:
        return named and any(
            entry.allows(match.entity or "", match.entity_id, match.operation or "") for entry in permissions.entries
        )

    role = permits(held.permissions)
    scopes = held.scopes is None or permits(held.scopes)
    open_ = match.route.access is not Access.DENIED
    reason = decide(match, held, now)
    assert (reason is Reason.ALLOWED) == (open_ and alive and at_home and named and role and scopes)
    order = [
        (open_, Reason.ROUTE_DENIED),
        (alive, Reason.TOKEN_EXPIRED),
        (at_home, Reason.ORG_MISMATCH),
        (named, Reason.OPERATION_UNMAPPED),
        (role, Reason.ROLE_DENIES),
        (scopes, Reason.SCOPE_DENIES),
    ]
    assert reason is next((refusal for holds, refusal in order if not holds), Reason.ALLOWED)
    verdict = decision(match, held, now)
    assert verdict.reason is reason
    if reason is Reason.ALLOWED:
        assert verdict.role_entry is not None
        assert (verdict.scope_entry is None) == (held.scopes is None)
