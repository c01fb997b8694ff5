"""The decision, refusal by refusal, in the order in which they count."""

from __future__ import annotations

import pytest

from proxy.core.model import Access, Grant, Reach
from proxy.core.permissions import Permission, PermissionSet
from proxy.core.policy import decide, decision, needed_permission
from proxy.core.reasons import Reason
from proxy.core.routes import Match, Route
from tests.unit.core.grants import grant

NOW = 1_700_000_000.0
ROUTE = Route(index=0, path="/v1/{entity}/{id}", upstream="app")
READ = Match(ROUTE, "things", "42", "read", None)
ORG = {"reach": Reach.ORG, "org_id": "o1", "org_name": "acme"}
NOTHING = PermissionSet.of([])
VIEW = PermissionSet.of(["things:read"])


@pytest.mark.parametrize(
    ("match", "held", "reason"),
    [
        (READ, grant(), Reason.ALLOWED),
        (READ, grant(scopes=VIEW), Reason.ALLOWED),
        (READ, grant(expires_at=NOW + 0.001), Reason.ALLOWED),
        (READ, grant(expires_at=NOW), Reason.TOKEN_EXPIRED),
        (READ._replace(operation=None), grant(expires_at=NOW - 1, permissions=NOTHING), Reason.TOKEN_EXPIRED),
        (READ._replace(org="acme"), grant(**ORG), Reason.ALLOWED),
        (READ._replace(org="o1"), grant(**ORG), Reason.ALLOWED),
        (READ._replace(org="Acme"), grant(**ORG), Reason.ORG_MISMATCH),
        (READ._replace(org="other", operation=None), grant(**ORG), Reason.ORG_MISMATCH),
        (READ._replace(org="acme"), grant(), Reason.ORG_MISMATCH),
        (READ._replace(org=""), grant(), Reason.ORG_MISMATCH),
        (READ._replace(org="acme"), grant(**(ORG | {"reach": Reach.PERSONAL})), Reason.ORG_MISMATCH),
        (READ._replace(org="acme"), grant(**(ORG | {"reach": Reach.ACCOUNT})), Reason.ORG_MISMATCH),
        (READ._replace(operation=None), grant(permissions=NOTHING), Reason.OPERATION_UNMAPPED),
        (READ._replace(entity=None), grant(), Reason.OPERATION_UNMAPPED),
        (READ, grant(permissions=NOTHING, scopes=NOTHING), Reason.ROLE_DENIES),
        (READ._replace(operation="update"), grant(permissions=VIEW, scopes=VIEW), Reason.ROLE_DENIES),
        (READ, grant(scopes=NOTHING), Reason.SCOPE_DENIES),
        (READ._replace(operation="update"), grant(scopes=VIEW), Reason.SCOPE_DENIES),
        (READ._replace(route=Route(index=1, path="/b/**", access=Access.DENIED)), grant(), Reason.ROUTE_DENIED),
    ],
)
def test_the_first_refusal_is_the_answer(match: Match, held: Grant, reason: Reason) -> None:
    assert decide(match, held, NOW) is reason
    assert decision(match, held, NOW).reason is reason


def test_a_verdict_names_its_grounds() -> None:
    verdict = decision(READ, grant(scopes=PermissionSet.of(["*:read"])), NOW)
    assert verdict.needed == "things/42:read"
    assert verdict.role_entry == Permission("things", None, None)
    assert verdict.scope_entry == Permission(None, None, "read")


def test_the_permission_needed_is_a_scope_token_whatever_the_path_holds() -> None:
    assert needed_permission(READ._replace(entity_id=None, operation="list")) == "things:list"
    assert needed_permission(READ._replace(entity='t"\\ :é', entity_id="*")) == "t%22%5C%20%3A%C3%A9/%2A:read"
    assert needed_permission(READ._replace(operation=None)) == ""
