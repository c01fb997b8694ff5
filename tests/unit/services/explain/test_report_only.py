"""Lists of the configured routes, and of what report-only routes would have refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.core.errors import Forbidden, Invalid
from proxy.core.model import Access
from proxy.core.routes import Route, RouteTable
from proxy.services.explain.report_only import TOKENS_SHOWN, ReportService
from proxy.store.audit.reports import Report
from tests.contract.kit import ADMIN, START, Kit, opened

ANN = "ann@example.org"
ROUTES = (
    Route(index=0, path="/ui/**", access=Access.PUBLIC),
    Route(index=1, path="/later/{entity}", enforce=False, upstream="app", methods=frozenset({"GET", "POST"})),
    Route(index=2, path="/later/{entity}", host="api.example"),
    Route(index=3, path="/v1/{entity}/{id}", upstream="app", operations={"POST": "publish"}),
)


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    async with opened(tmp_path) as kit:
        await kit.basics()
        yield kit


def reports(kit: Kit) -> ReportService:
    return ReportService(kit.store, kit.clock, RouteTable(ROUTES))


def report(token: str, count: int = 1, *, route: str = "/later/{entity}", at: float = 0.0, **more: str) -> Report:
    return Report(
        route=route,
        reason=more.get("reason", "role_denies"),
        permission=more.get("permission", "things:create"),
        token_id=token,
        count=count,
        first_at=START + at,
        last_at=START + at + 10,
        method=more.get("method", "POST"),
        decision_id=more.get("decision", "d" * 24),
    )


async def test_reports_are_added_up_by_route_and_reason_with_permissions_and_tokens(kit: Kit) -> None:
    key, other = (await kit.mint(ANN, "ci")).view, (await kit.mint(ANN, "laptop")).view
    await kit.store.add_reports(
        [
            report(key.id, 3),
            report(key.id, 2, permission="things:list", at=50, method="GET", decision="e" * 24),
            report(other.id, 4, at=20),
            report("", 1, reason="no_credential", permission="things:list"),
            report(key.id, 1, route="/gone/{id}", reason="scope_denies"),
        ]
    )
    found = [view.as_dict() for view in await reports(kit).list(ADMIN)]
    assert found[0] == {
        "route": "/later/{entity}",
        "reason": "role_denies",
        "status": 403,
        "enforce": False,
        "count": 9,
        "first_at": "2023-11-14T22:13:20.000Z",
        "last_at": "2023-11-14T22:14:20.000Z",
        "last_method": "GET",
        "last_decision": "e" * 24,
        "permissions": [{"permission": "things:create", "count": 7}, {"permission": "things:list", "count": 2}],
        "tokens": [
            {"id": key.id, "prefix": key.prefix, "name": "ci", "user": ANN, "count": 5},
            {"id": other.id, "prefix": other.prefix, "name": "laptop", "user": ANN, "count": 4},
        ],
        "tokens_total": 2,
    }
    assert [(view["route"], view["reason"], view["enforce"]) for view in found[1:]] == [
        ("/gone/{id}", "scope_denies", None),
        ("/later/{entity}", "no_credential", False),
    ]
    assert found[2]["tokens"] == [{"id": None, "prefix": None, "name": None, "user": None, "count": 1}]


async def test_many_tokens_are_counted_and_the_most_frequent_shown(kit: Kit) -> None:
    made = [(await kit.mint(ANN, f"t{number}")).view.id for number in range(TOKENS_SHOWN + 1)]
    await kit.store.add_reports([report(token, number + 1) for number, token in enumerate(made)])
    (only,) = await reports(kit).list(ADMIN)
    assert (only.tokens_total, len(only.tokens), only.tokens[0].id) == (TOKENS_SHOWN + 1, TOKENS_SHOWN, made[-1])


async def test_since_omits_reports_last_seen_before(kit: Kit) -> None:
    token = (await kit.mint(ANN, "ci")).view.id
    await kit.store.add_reports([report(token), report(token, permission="things:list", at=5000)])
    kit.clock.now = START + 5020
    for since, permissions in (("1h", ["things:list"]), ("2h", ["things:create", "things:list"]), ("1s", [])):
        found = await reports(kit).list(ADMIN, since)
        assert [permission for view in found for permission in view.permissions] == permissions, since
    for nonsense in ("yesterday", "", "-1h"):
        with pytest.raises(Invalid):
            await reports(kit).list(ADMIN, nonsense)


async def test_clearing_reports_deletes_them_and_is_audited_once(kit: Kit) -> None:
    token = (await kit.mint(ANN, "ci")).view.id
    await kit.store.add_reports([report(token), report(token, route="/other")])
    assert await reports(kit).clear(ADMIN, "/other") == 1
    assert [view.route for view in await reports(kit).list(ADMIN)] == ["/later/{entity}"]
    assert await reports(kit).clear(ADMIN, "/other") == 0
    assert await reports(kit).clear(ADMIN) == 1
    async with kit.store.read() as rows:
        newest = await rows.log.newest(limit=2)
    assert [(entry.action, entry.target_name, entry.details) for entry in newest] == [
        ("account.routes.clear", "*", {"reports": 1}),
        ("account.routes.clear", "/other", {"reports": 1}),
    ]


async def test_routes_are_listed_in_the_order_of_matching(kit: Kit) -> None:
    found = [view.as_dict() for view in await reports(kit).routes(ADMIN)]
    assert [(view["number"], view["path"], view["access"], view["enforce"]) for view in found] == [
        (1, "/ui/**", "public", True),
        (2, "/later/{entity}", "token", False),
        (3, "/later/{entity}", "token", True),
        (4, "/v1/{entity}/{id}", "token", True),
    ]
    assert (found[1]["methods"], found[2]["host"], found[3]["operations"]) == (
        ["GET", "POST"], "api.example", {"POST": "publish"},
    )  # fmt: skip


async def test_routes_and_reports_need_a_permission_of_their_own(kit: Kit) -> None:
    await kit.roles.set(ADMIN, "lister", ["patgate.routes:list"])
    await kit.users.add(ADMIN, "lister@example.org", "lister")
    lister = kit.acting(await kit.mint("lister@example.org", "l"))
    ann = kit.acting(await kit.mint(ANN, "a"))
    served = reports(kit)
    assert await served.list(lister) == []
    assert len(await served.routes(lister)) == len(ROUTES)
    for refused in (served.list(ann), served.routes(ann), served.clear(ann), served.clear(lister)):
        with pytest.raises(Forbidden, match=r"patgate\.routes:(list|delete)"):
            await refused
