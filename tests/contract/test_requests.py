"""Records of requests: uses and reports are added up and events appended, all of a batch or none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from proxy.core.errors import Invalid
from proxy.store import tables
from proxy.store.audit import reports
from proxy.store.audit.chain import Event
from proxy.store.audit.queries import LogEntry, LogQuery, SortOrder
from proxy.store.audit.reports import Report
from proxy.store.audit.request_events import RequestEvent
from proxy.store.tokens.usage import Use
from proxy.store.upkeep.batches import Batches
from tests.contract.kit import ADMIN, Kit, opened

ONE, TWO, GONE = "a" * 12, "b" * 12, "c" * 12
ORG = "org_" + "0" * 12


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    async with opened(tmp_path) as kit:
        async with kit.store.change(ADMIN) as change:
            connection = change.connection
            times: dict[str, object] = {"created_at": 1.0, "updated_at": 1.0}
            user: dict[str, object] = {"email": "ann@example.org", "email_key": "ann@example.org", "name": "Ann"}
            await connection.execute(
                tables.users.insert().values(id="usr_1", role="editor", status="active", **user, **times)
            )
            await connection.execute(
                tables.orgs.insert().values(id=ORG, name="team", display_name="", status="active", **times)
            )
            token: dict[str, object] = {"description": "", "status": "active", "hash": "h"}
            token |= {"created_by_kind": "person", "created_by": "x"}
            for id_, kind, reach, user_id, org_id in (
                (ONE, "pat", "personal", "usr_1", None),
                (TWO, "key", "org", None, ORG),
            ):
                await connection.execute(
                    tables.tokens.insert().values(
                        id=id_,
                        prefix=f"acme_{kind}_{id_}",
                        kind=kind,
                        reach=reach,
                        name=f"name of {id_[0]}",
                        user_id=user_id,
                        org_id=org_id,
                        **token,
                        **times,
                    )
                )
            change.touched("test")
            change.audit("test.change", target_kind="test", target_id="1")
        yield kit


async def usage(kit: Kit) -> dict[str, tuple[float, str, int]]:
    u = tables.token_usage
    async with kit.store.read() as rows:
        query = sa.select(u.c.token_id, u.c.last_used_at, u.c.last_used_ip, u.c.use_count)
        return {row[0]: (row[1], row[2], row[3]) for row in await rows.connection.execute(query)}


async def reported(kit: Kit) -> list[Report]:
    async with kit.store.read() as rows:
        return await rows.reports.all()


async def log(kit: Kit) -> list[LogEntry]:
    """The events of requests, oldest first."""
    async with kit.store.read() as rows:
        found = await rows.log.page(LogQuery(), SortOrder.RECORDED, None, 1000)
        return [entry for entry in found.entries if entry.epoch == 0]


def report(**changes: object) -> Report:
    plain = Report(
        route="/v1/{entity}",
        reason="role_denies",
        permission="things:list",
        token_id=ONE,
        count=1,
        first_at=10.0,
        last_at=10.0,
        method="GET",
        decision_id="d1",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def event(prefix: str, decision: str = "d1", *, proven: bool = True, org_id: str = "") -> RequestEvent:
    event = Event(
        action="request.create",
        target_kind="route",
        target_id="things/1",
        target_name="/v1/{entity}/{id}",
        org_id=org_id,
        outcome="refused",
        reason="role_denies",
        address="127.0.0.1",
        request_id=decision,
        decision_id=decision,
        details={"method": "POST", "path": "/v1/things/1", "status": 403},
    )
    return RequestEvent(event=event, prefix=prefix, proven=proven, at=20.0)


async def test_uses_are_added_up_and_the_latest_is_kept_in_any_order_of_reports(kit: Kit) -> None:
    await kit.store.add_uses([Use(token_id=ONE, count=3, at=20.0, ip="::1")])
    assert await usage(kit) == {ONE: (20.0, "::1", 3)}
    await kit.store.add_uses(
        [Use(token_id=ONE, count=2, at=10.0, ip="127.0.0.9"), Use(token_id=TWO, count=1, at=5.0, ip="127.0.0.1")]
    )
    assert await usage(kit) == {ONE: (20.0, "::1", 5), TWO: (5.0, "127.0.0.1", 1)}
    await kit.store.add_uses([Use(token_id=ONE, count=1, at=30.0, ip="127.0.0.3")])
    assert (await usage(kit))[ONE] == (30.0, "127.0.0.3", 6)


async def test_uses_of_an_unknown_token_are_left_out_and_the_others_kept(kit: Kit) -> None:
    await kit.store.add_uses(
        [Use(token_id=GONE, count=1, at=1.0, ip="::1"), Use(token_id=ONE, count=1, at=1.0, ip="::1")]
    )
    assert set(await usage(kit)) == {ONE}


async def test_uses_reports_and_events_of_requests_are_not_changes(kit: Kit) -> None:
    before, announced = await kit.store.epoch(), list(kit.announced)
    await kit.store.add_uses([Use(token_id=ONE, count=1, at=1.0, ip="::1")])
    await kit.store.add_reports([report()])
    await kit.store.append_requests([event(f"acme_pat_{ONE}")])
    assert await kit.store.epoch() == before
    assert kit.announced == announced


async def test_reports_are_added_up_by_route_reason_permission_and_token(kit: Kit) -> None:
    await kit.store.add_reports([report(), report(permission="things:read"), report(count=2, last_at=12.0)])
    await kit.store.add_reports([report(count=4, first_at=5.0, last_at=11.0, method="HEAD", decision_id="d9")])
    most, other = await reported(kit)
    assert (most.count, most.first_at, most.last_at, most.method) == (7, 5.0, 12.0, "GET")
    assert (other.permission, other.count) == ("things:read", 1)


async def test_a_report_of_an_unknown_token_has_no_token(kit: Kit) -> None:
    await kit.store.add_reports([report(token_id=GONE), report(token_id="")])
    (only,) = await reported(kit)
    assert (only.token_id, only.count) == ("", 2)


async def test_beyond_the_limit_reports_are_added_up_by_route_and_reason(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "LIMIT", 3)
    await kit.store.add_reports([report(permission=f"t{number}:read") for number in range(2)])
    await kit.store.add_reports([report(permission=f"t{number}:read") for number in range(6)])
    found = {one.permission: one.count for one in await reported(kit)}
    assert found == {"t0:read": 2, "t1:read": 2, "t2:read": 1, "": 3}
    await kit.store.add_reports([report(permission=f"t{number}:read") for number in range(6)])
    found = {one.permission: one.count for one in await reported(kit)}
    assert found == {"t0:read": 3, "t1:read": 3, "t2:read": 2, "": 6}


async def test_reports_can_be_forgotten(kit: Kit) -> None:
    await kit.store.add_reports([report(), report(permission="things:read")])
    async with kit.store.change(ADMIN) as change:
        assert await change.reports.clear() == 2
        change.touched("test")
        change.audit("test.clear", target_kind="test", target_id="1")
    assert await reported(kit) == []


async def test_an_event_has_the_stored_names_of_its_token(kit: Kit) -> None:
    await kit.store.append_requests([event(f"acme_pat_{ONE}"), event(f"acme_key_{TWO}", "d2", org_id="org_x")])
    pat, key = await log(kit)
    assert (pat.actor_kind, pat.actor_id, pat.actor_name, pat.user_id) == ("pat", ONE, "name of a", "usr_1")
    assert (pat.level, pat.org_id, pat.at, pat.epoch) == ("account", "", 20.0, 0)
    assert (pat.target_kind, pat.target_id, pat.target_name) == ("route", "things/1", "/v1/{entity}/{id}")
    assert (pat.outcome, pat.reason, pat.address) == ("refused", "role_denies", "127.0.0.1")
    assert pat.request_id == pat.decision_id == "d1"
    assert pat.details == {"method": "POST", "path": "/v1/things/1", "status": 403}
    assert (key.actor_kind, key.actor_id, key.user_id) == ("key", TWO, "")
    assert (key.level, key.org_id) == ("organisation", "org_x"), "the organisation that was touched"
    assert (await kit.store.verify_audit()).problem is None


async def test_the_actor_of_an_unknown_token_is_the_system_and_its_claim_is_a_detail(kit: Kit) -> None:
    unknown, nobody, deleted, other_kind, wrong = (
        event(f"acme_pat_{GONE}", "d1", proven=False),
        event("", "d2", proven=False),
        event(f"acme_pat_{GONE}", "d3", proven=True),
        event(f"acme_key_{ONE}", "d4", proven=False),
        event(f"acme_key_{TWO}", "d5", proven=False),
    )
    await kit.store.append_requests([unknown, nobody, deleted, other_kind, wrong])
    actors = [(row.actor_kind, row.actor_id, row.details.get("token")) for row in await log(kit)]
    assert actors == [
        ("system", "", f"acme_pat_{GONE}"),
        ("system", "", None),
        ("pat", GONE, None),
        ("system", "", f"acme_key_{ONE}"),
        ("key", TWO, None),
    ]
    assert (await log(kit))[4].org_id == ORG, "where none is touched, the token's own"


async def test_many_events_make_one_chain_with_those_of_changes(kit: Kit) -> None:
    await kit.store.append_requests([event("", f"d{number}", proven=False) for number in range(500)])
    async with kit.store.change(ADMIN) as change:
        change.touched("test")
        change.audit("test.change", target_kind="test", target_id="2")
    await kit.store.append_requests([event("", "last", proven=False)])
    checked = await kit.store.verify_audit()
    assert (checked.problem, checked.events) == (None, 503)


async def test_a_batch_whose_commit_was_in_doubt_is_not_stored_twice(kit: Kit) -> None:
    events, uses, reports = Batches(), Batches(), Batches()
    for _ in range(2):
        await kit.store.append_requests([event("", "d1", proven=False), event("", "d2", proven=False)], events.current)
        await kit.store.add_uses([Use(token_id=ONE, count=3, at=20.0, ip="::1")], uses.current)
        await kit.store.add_reports([report(count=4)], reports.current)
    assert len(await log(kit)) == 2
    assert (await usage(kit))[ONE][2] == 3
    assert [one.count for one in await reported(kit)] == [4]


async def test_the_next_batch_is_stored_and_the_one_before_it_is_not_any_more(kit: Kit) -> None:
    batches = Batches()
    first = batches.current
    await kit.store.add_uses([Use(token_id=ONE, count=3, at=20.0, ip="::1")], first)
    batches.done()
    await kit.store.add_uses([Use(token_id=ONE, count=3, at=20.0, ip="::1")], batches.current)
    await kit.store.add_uses([Use(token_id=ONE, count=3, at=20.0, ip="::1")], first)
    assert (await usage(kit))[ONE][2] == 6
    await kit.store.add_uses([Use(token_id=ONE, count=3, at=20.0, ip="::1")], Batches().current)
    assert (await usage(kit))[ONE][2] == 9, "another writer has numbers of its own"


async def test_a_batch_that_failed_is_stored_when_it_is_repeated(kit: Kit) -> None:
    batch = Batches().current
    with pytest.raises((OverflowError, Invalid)):
        await kit.store.add_uses([Use(token_id=ONE, count=2**80, at=20.0, ip="::1")], batch)
    await kit.store.add_uses([Use(token_id=ONE, count=3, at=20.0, ip="::1")], batch)
    assert (await usage(kit))[ONE][2] == 3
