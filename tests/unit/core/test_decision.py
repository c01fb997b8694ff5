"""The decision: every reason of a refusal, in the order of the checks."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.core.decision import decide, decision, needed_permission, reached
from proxy.core.kinds import Reach
from proxy.core.model import Access, Grant, OrgGrant, by_org
from proxy.core.permissions import Permission, PermissionSet
from proxy.core.reasons import Reason
from proxy.core.routes import Match, Route
from tests.unit.core.grants import grant

NOW = 1_700_000_000.0
ROUTE = Route(index=0, path="/v1/{entity}/{id}", upstream="app")
READ = Match(ROUTE, "things", "42", "read", None)
ORG = {"reach": Reach.ORG, "org_id": "o1", "org_name": "acme"}
NOTHING = PermissionSet.of([])
VIEW = PermissionSet.of(["things:read"])
UPDATE = READ._replace(operation="update")
TWO = by_org(
    (
        OrgGrant(org_id="o1", org_name="acme", role="viewer", permissions=VIEW),
        OrgGrant(org_id="o2", org_name="beta", role="editor", permissions=PermissionSet.of(["things:*"])),
    )
)
ACCOUNT = {"reach": Reach.ACCOUNT, "orgs": TWO}
ORGS = {"reach": Reach.ORGS, "role": "", "permissions": NOTHING, "orgs": TWO}


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
        (READ, grant(**ACCOUNT), Reason.ALLOWED),
        (UPDATE, grant(**ACCOUNT), Reason.ALLOWED),
        (READ, grant(**ACCOUNT, scopes=NOTHING), Reason.SCOPE_DENIES),
        (READ, grant(**(ACCOUNT | {"permissions": NOTHING})), Reason.ROLE_DENIES),
        (READ._replace(operation=None), grant(**ACCOUNT), Reason.OPERATION_UNMAPPED),
        (READ, grant(**ORGS), Reason.ORG_MISMATCH),
        (READ, grant(**ORGS, expires_at=NOW), Reason.TOKEN_EXPIRED),
        (READ._replace(operation=None), grant(**ORGS), Reason.ORG_MISMATCH),
        (READ._replace(org="acme"), grant(**(ORGS | {"orgs": {}})), Reason.ORG_MISMATCH),
        (READ._replace(org="acme"), grant(**(ORGS | {"orgs": None})), Reason.ORG_MISMATCH),
        *[
            (match._replace(org=org), grant(**kind, scopes=scopes), reason)
            for kind in (ACCOUNT, ORGS)
            for org, match, scopes, reason in (
                ("acme", READ, None, Reason.ALLOWED),
                ("o1", READ, None, Reason.ALLOWED),
                ("acme", UPDATE, None, Reason.ROLE_DENIES),
                ("o1", UPDATE, None, Reason.ROLE_DENIES),
                ("beta", UPDATE, None, Reason.ALLOWED),
                ("o2", UPDATE, None, Reason.ALLOWED),
                ("o2", UPDATE, VIEW, Reason.SCOPE_DENIES),
                ("beta", READ, VIEW, Reason.ALLOWED),
                ("gamma", READ, None, Reason.ORG_MISMATCH),
                ("Acme", READ, None, Reason.ORG_MISMATCH),
                ("", READ, None, Reason.ORG_MISMATCH),
                ("gamma", READ._replace(operation=None), None, Reason.ORG_MISMATCH),
                ("acme", READ._replace(operation=None), None, Reason.OPERATION_UNMAPPED),
            )
        ],
        (READ._replace(operation=None), grant(permissions=NOTHING), Reason.OPERATION_UNMAPPED),
        (READ._replace(entity=None), grant(), Reason.OPERATION_UNMAPPED),
        (READ, grant(permissions=NOTHING, scopes=NOTHING), Reason.ROLE_DENIES),
        (READ._replace(operation="update"), grant(permissions=VIEW, scopes=VIEW), Reason.ROLE_DENIES),
        (READ, grant(scopes=NOTHING), Reason.SCOPE_DENIES),
        (READ._replace(operation="update"), grant(scopes=VIEW), Reason.SCOPE_DENIES),
        (READ._replace(route=Route(index=1, path="/b/**", access=Access.DENIED)), grant(), Reason.ROUTE_DENIED),
    ],
)
def test_the_first_failed_check_gives_the_reason(match: Match, held: Grant, reason: Reason) -> None:
    assert decide(match, held, NOW) is reason
    assert decision(match, held, NOW).reason is reason


def test_a_verdict_names_its_grounds() -> None:
    verdict = decision(READ, grant(scopes=PermissionSet.of(["*:read"])), NOW)
    assert verdict.needed == "things/42:read"
    assert verdict.role_entry == Permission("things", None, None)
    assert verdict.scope_entry == Permission(None, None, "read")


@pytest.mark.parametrize("kind", [ACCOUNT, ORGS])
def test_a_verdict_for_a_token_of_several_organisations_has_the_grounds_of_the_named_one(kind: dict[str, Any]) -> None:
    held = grant(**kind)
    assert decision(READ._replace(org="acme"), held, NOW).role_entry == Permission("things", None, "read")
    assert decision(READ._replace(org="o2"), held, NOW).role_entry == Permission("things", None, None)
    assert decision(UPDATE._replace(org="acme"), held, NOW).role_entry is None


def test_reached_is_none_except_for_tokens_of_several_organisations() -> None:
    assert reached("acme", grant(**ORGS)) is reached("o1", grant(**ACCOUNT)) is TWO["o1"]
    assert (
        reached("gamma", grant(**ACCOUNT)) is reached(None, grant(**ACCOUNT)) is reached("acme", grant(**ORG)) is None
    )


def test_the_needed_permission_is_a_scope_token_for_any_path() -> None:
    assert needed_permission(READ._replace(entity_id=None, operation="list")) == "things:list"
    assert needed_permission(READ._replace(entity='t"\\ :é', entity_id="*")) == "t%22%5C%20%3A%C3%A9/%2A:read"
    assert needed_permission(READ._replace(operation=None)) == ""
