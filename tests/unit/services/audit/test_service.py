"""Events are found by any filter, in pages that stand still, by who may see them; retention tells what it removes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.core.errors import Forbidden, Invalid, NotFound, Unauthenticated
from proxy.core.kinds import Reach
from proxy.core.model import Actor, ActorKind
from proxy.services.audit.filters import AuditFilter
from proxy.services.audit.service import AuditService, AuditView
from proxy.services.audit.vocabulary import NOW, read_moment
from proxy.services.paging import PageRequest
from proxy.services.tokens.issuance import KeyRequest
from proxy.services.views import Created
from proxy.store.audit.chain import Event
from proxy.store.audit.queries import LogEntry, SortOrder
from proxy.store.audit.request_events import RequestEvent
from tests.contract.kit import ADMIN, START, Kit, opened

ANN, BOB, EVE = "ann@example.org", "bob@example.org", "eve@example.org"
SYSTEM = Actor(kind=ActorKind.SYSTEM, id="housekeeping", name="housekeeping")


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    """Ann edits in the account and looks in the team; Bob audits the account, Eve the team."""
    async with opened(tmp_path) as kit:
        await kit.basics()
        await kit.roles.sync_config(ADMIN, {"auditor": ["patgate.audit:list"], "editor": ["things:*"], "none": []})
        await kit.orgs.add(ADMIN, "other")
        await kit.users.add(ADMIN, BOB, "auditor")
        await kit.users.add(ADMIN, EVE, "none")
        await kit.users.add(ADMIN, EVE, "auditor", org="team")
        yield kit


@pytest.fixture
def log(kit: Kit) -> AuditService:
    return AuditService(kit.store, kit.clock)


async def _requests(kit: Kit, made: Created, count: int, *, org: str = "", **more: Any) -> None:
    """Events of requests with this token, a second apart."""
    events = []
    for number in range(count):
        kit.clock.now += 1
        event = Event(
            action="request.update",
            target_kind="route",
            target_id=f"things/{number}",
            target_name="things",
            org_id=org,
            outcome="allowed",
            address="192.0.2.1",
            request_id=f"{made.view.id}{number}",
            decision_id=f"{made.view.id}{number}",
            details={"method": "PUT", "path": "/things", "status": 200},
        )
        events.append(RequestEvent(event=replace(event, **more), prefix=made.view.prefix, proven=True, at=kit.clock()))
    await kit.store.append_requests(events)


async def test_counts_of_the_log_leave_the_readers_of_the_store_to_others_in_between(
    kit: Kit, log: AuditService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.store.audit.queries.LOOKED_AT", 2)
    await _requests(kit, await kit.mint(ANN, "t"), 20)
    ended: list[str] = []

    async def counted() -> None:
        page = await log.list(ADMIN, AuditFilter(address="192.0.2.1"), page=PageRequest(limit=1, count=True))
        assert page.remaining is not None and page.remaining.count > 10
        ended.append("count")

    async def other() -> None:
        async with kit.store.read() as rows:
            await rows.log.head()
        ended.append("other")

    await asyncio.gather(*(counted() for _ in range(8)), other())
    assert ended.index("other") < 4


async def _all(
    log: AuditService, wanted: AuditFilter, actor: Actor = ADMIN, *, order: SortOrder = SortOrder.NEWEST, limit: int = 3
) -> list[LogEntry]:
    found: list[AuditView] = []
    cursor = None
    for _ in range(1000):
        page = await log.list(actor, wanted, order=order, page=PageRequest(limit=limit, cursor=cursor))
        assert len(page.items) <= limit
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            return [view.entry for view in found]
    raise AssertionError("the pages do not end")


_FILTERS: dict[str, tuple[AuditFilter, Callable[[LogEntry], bool]]] = {
    "nothing": (AuditFilter(), lambda _: True),
    "kind": (AuditFilter(actor_kind="pat"), lambda e: e.actor_kind == "pat"),
    "token name": (AuditFilter(actor_name="ci"), lambda e: e.actor_name == "ci"),
    "actor": (AuditFilter(actor=ADMIN.id), lambda e: e.actor_id == ADMIN.id),
    "no actor": (AuditFilter(actor=""), lambda e: not e.actor_id),
    "user": (AuditFilter(user=ANN), lambda e: e.email == ANN),
    "org": (AuditFilter(org="team"), lambda e: e.org_name == "team"),
    "level": (AuditFilter(level="organisation"), lambda e: bool(e.org_id)),
    "action": (AuditFilter(action="account.pat.mint"), lambda e: e.action == "account.pat.mint"),
    "action's beginning": (AuditFilter(action="account.user."), lambda e: e.action.startswith("account.user.")),
    "target": (AuditFilter(target="things/1"), lambda e: e.target_id == "things/1"),
    "target kind": (AuditFilter(target_kind="token"), lambda e: e.target_kind == "token"),
    "outcome": (AuditFilter(outcome="allowed"), lambda e: e.outcome == "allowed"),
    "unusual outcome": (AuditFilter(outcome="failed"), lambda e: e.outcome == "failed"),
    "denied": (AuditFilter(denied=True), lambda e: e.outcome in ("refused", "reported")),
    "denied and reported": (AuditFilter(denied=True, outcome="reported"), lambda e: e.outcome == "reported"),
    "denied and done": (AuditFilter(denied=True, outcome="done"), lambda _: False),
    "reason": (AuditFilter(reason="scope_denies"), lambda e: e.reason == "scope_denies"),
    "address": (AuditFilter(address="2001:DB8:0::1"), lambda e: e.address == "2001:db8::1"),
    "since": (AuditFilter(since="5s"), lambda e: e.at >= START + 20 - 5),
    "until": (AuditFilter(until="2023-11-14T22:13:25Z"), lambda e: e.at < START + 5),
    "two of a few": (AuditFilter(actor_name="ci", org="team"), lambda e: e.actor_name == "ci" and e.org_name == "team"),
    "one and many": (
        AuditFilter(user=ANN, outcome="refused", since="1h"),
        lambda e: e.email == ANN and e.outcome == "refused",
    ),
}


async def _busy(kit: Kit) -> Created:
    """All kinds of events, up to 20 seconds after the start."""
    ci = await kit.mint(ANN, "ci")
    team = (await kit.orgs.show(ADMIN, "team")).id
    await _requests(kit, ci, 6)
    await _requests(kit, ci, 4, org=team, outcome="refused", reason="role_denies")
    await _requests(kit, await kit.mint(BOB, "ci"), 4, outcome="reported", reason="scope_denies", address="2001:db8::1")
    await _requests(kit, await kit.mint(EVE, "eve", org="team"), 4, outcome="failed")
    stranger = Event(action="request", target_kind="route", target_id="", outcome="refused", reason="no_credential")
    await kit.store.append_requests([RequestEvent(event=stranger, prefix="", proven=False, at=START + 9)])
    kit.clock.now = START + 20
    return ci


async def test_every_filter_finds_what_it_says_in_every_order(kit: Kit, log: AuditService) -> None:
    await _busy(kit)
    everything = await _all(log, AuditFilter(), limit=1000)
    in_order = sorted(everything, key=lambda entry: (entry.at, entry.n), reverse=True)
    assert [entry.n for entry in in_order] == [entry.n for entry in everything]
    for name, (wanted, holds) in _FILTERS.items():
        right = [entry.n for entry in everything if holds(entry)]
        assert (right == []) == (name == "denied and done"), name
        # However few events a page looks at, none is left out.
        for looked_at in (50_000, 7):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("proxy.store.audit.queries.LOOKED_AT", looked_at)
                patch.setattr("proxy.store.audit.queries.LOOKED_UP", looked_at)
                assert [entry.n for entry in await _all(log, wanted)] == right, name
                oldest = await _all(log, wanted, order=SortOrder.OLDEST)
                assert [entry.n for entry in oldest] == right[::-1], name
                assert await _recorded(log, wanted, len(everything)) == sorted(right), name


async def _recorded(log: AuditService, wanted: AuditFilter, most: int) -> list[int]:
    recorded: list[int] = []
    cursor = None
    for _ in range(most):
        page = await log.list(ADMIN, wanted, after="0", page=PageRequest(cursor=cursor, limit=3))
        recorded += [view.entry.n for view in page.items]
        cursor = page.next_cursor
    return recorded


async def test_a_token_is_found_by_its_public_prefix_and_a_request_by_its_id(kit: Kit, log: AuditService) -> None:
    ci = await _busy(kit)
    by_id = await _all(log, AuditFilter(actor=ci.view.id))
    assert len(by_id) == 10
    assert await _all(log, AuditFilter(actor=ci.view.prefix)) == by_id
    (mint,) = await _all(log, AuditFilter(target=ci.view.prefix))
    assert mint.action == "account.pat.mint"
    assert [e.request_id for e in await _all(log, AuditFilter(request=f"{ci.view.id}3"))] == [f"{ci.view.id}3"] * 2
    asked = replace(ADMIN, request_id="asked-0001", address="192.0.2.9")
    await kit.orgs.add(asked, "new")
    (event,) = await _all(log, AuditFilter(request="asked-0001"))
    assert (event.action, event.address, event.decision_id) == ("account.org.add", "192.0.2.9", "")


async def test_pages_stand_still_while_events_are_added(kit: Kit, log: AuditService) -> None:
    ci = await _busy(kit)
    before = [entry.n for entry in await _all(log, AuditFilter())]
    first = await log.list(ADMIN, page=PageRequest(limit=5))
    oldest = await log.list(ADMIN, order=SortOrder.OLDEST, page=PageRequest(limit=5))
    await _requests(kit, ci, 7)
    seen, cursor = [view.entry.n for view in first.items], first.next_cursor
    while cursor is not None:
        page = await log.list(ADMIN, page=PageRequest(limit=5, cursor=cursor))
        seen, cursor = seen + [view.entry.n for view in page.items], page.next_cursor
    assert seen == before
    seen, cursor = [view.entry.n for view in oldest.items], oldest.next_cursor
    while cursor is not None:
        page = await log.list(ADMIN, order=SortOrder.OLDEST, page=PageRequest(limit=5, cursor=cursor))
        seen, cursor = seen + [view.entry.n for view in page.items], page.next_cursor
    assert seen == before[::-1], "an export ends with what was recorded when it began"


async def test_whoever_follows_the_log_gets_what_is_recorded_once_however_late(kit: Kit, log: AuditService) -> None:
    ci = await _busy(kit)
    page = await log.list(ADMIN, after=NOW)
    assert (list(page.items), page.next_cursor is None) == ([], False)
    kit.clock.now -= 10
    await _requests(kit, ci, 3)
    mine = AuditFilter(actor_name="ci")
    page = await log.list(ADMIN, mine, after=NOW, page=PageRequest(cursor=page.next_cursor, limit=2))
    assert [view.entry.target_id for view in page.items] == ["things/0", "things/1"]
    page = await log.list(ADMIN, mine, after=NOW, page=PageRequest(cursor=page.next_cursor, limit=2))
    assert [view.entry.target_id for view in page.items] == ["things/2"]
    page = await log.list(ADMIN, mine, after=NOW, page=PageRequest(cursor=page.next_cursor))
    assert list(page.items) == []
    after = await log.list(ADMIN, after=str(page.next_cursor and (await _all(log, AuditFilter()))[0].n))
    assert all(view.entry.n > 0 for view in after.items)


async def test_a_view_has_everything_and_null_for_what_there_is_not(kit: Kit, log: AuditService) -> None:
    ci = await _busy(kit)
    (view,) = (await log.list(ADMIN, AuditFilter(request=f"{ci.view.id}1", outcome="refused"))).items
    team = await kit.orgs.show(ADMIN, "team")
    document = view.as_dict()
    assert document.pop("number") == view.entry.n
    assert document == {
        "time": "2023-11-14T22:13:28.000Z",
        "level": "organisation",
        "org_id": team.id,
        "org": "team",
        "user_id": ci.view.user_id,
        "user": ANN,
        "actor_kind": "pat",
        "actor_id": ci.view.id,
        "actor_name": "ci",
        "action": "request.update",
        "target_kind": "route",
        "target_id": "things/1",
        "target_name": "things",
        "outcome": "refused",
        "reason": "role_denies",
        "address": "192.0.2.1",
        "request_id": f"{ci.view.id}1",
        "decision_id": f"{ci.view.id}1",
        "details": {"method": "PUT", "path": "/things", "status": 200},
    }
    (view,) = (await log.list(ADMIN, AuditFilter(action="account.org.add"), page=PageRequest(limit=1))).items
    document = view.as_dict()
    assert [document[name] for name in ("org", "user", "reason", "address", "request_id", "decision_id")] == [None] * 6


async def test_details_that_somebody_spoilt_do_not_hide_the_rest(kit: Kit, log: AuditService) -> None:
    async with kit.store._database.write() as connection:
        await connection.exec_driver_sql("UPDATE audit_events SET details = '[' WHERE n = 2")
        await connection.commit()
    entries = {entry.n: entry for entry in await _all(log, AuditFilter())}
    assert entries[2].details == {"unreadable": True}
    assert (await log.verify(ADMIN)).problem == "event 2 was altered"


async def test_each_sees_what_they_may(kit: Kit, log: AuditService) -> None:
    await _busy(kit)
    everything = await _all(log, AuditFilter(), limit=1000)

    async def sees(made: Created, wanted: AuditFilter = AuditFilter()) -> set[int]:  # noqa: B008
        return {entry.n for entry in await _all(log, wanted, kit.acting(made), limit=1000)}

    def those(holds: Callable[[LogEntry], bool]) -> set[int]:
        return {entry.n for entry in everything if holds(entry)}

    personal = await kit.mint(ANN, "personal")
    team = await kit.mint(ANN, "team", org="team")
    whole = await kit.mint(ANN, "whole", reach=Reach.ACCOUNT)
    scoped = await kit.mint(ANN, "scoped", scopes=["patgate.audit:list"])
    blind = await kit.mint(ANN, "blind", scopes=["things:*"])
    bobs = await kit.mint(BOB, "bobs")
    bobs_blind = await kit.mint(BOB, "blind", scopes=["*:read"])
    eves = await kit.mint(EVE, "eves", org="team")
    eves_whole = await kit.mint(EVE, "eves whole", reach=Reach.ACCOUNT)
    everything = await _all(log, AuditFilter(), limit=1000)
    assert await sees(personal) == await sees(scoped) == those(lambda e: e.email == ANN and not e.org_id)
    assert await sees(team) == those(lambda e: e.email == ANN and e.org_name == "team")
    assert await sees(whole) == those(lambda e: e.email == ANN)
    assert await sees(whole, AuditFilter(user=ANN)) == await sees(whole)
    assert await sees(bobs) == those(lambda _: True)
    assert await sees(bobs, AuditFilter(org="team", user=ANN)) == await sees(team)
    assert await sees(eves) == await sees(eves_whole, AuditFilter(org="team")) == those(lambda e: e.org_name == "team")
    assert await sees(eves_whole) == those(lambda e: e.email == EVE)
    assert await sees(eves, AuditFilter(user=ANN)) == await sees(team)
    for made in (blind, bobs_blind):
        with pytest.raises(Forbidden, match=r"patgate\.audit:list"):
            await sees(made)
    with pytest.raises(Forbidden, match=r"patgate\.audit:list"):
        await sees(team, AuditFilter(org="team"))


async def test_a_key_sees_the_log_of_an_organisation_whose_role_lets_it(kit: Kit, log: AuditService) -> None:
    team = (await kit.orgs.show(ADMIN, "team")).id
    auditor = await kit.keys.create(ADMIN, KeyRequest(name="siem", org="team", role="auditor"))
    other = await kit.keys.create(ADMIN, KeyRequest(name="ci", org="team", role="editor"))
    found = await _all(log, AuditFilter(), kit.acting(auditor))
    assert (
        found
        == await _all(log, AuditFilter(org="team"), kit.acting(auditor))
        == await _all(log, AuditFilter(org="team"))
    )
    assert {entry.org_id for entry in found} == {team}
    for wanted in (AuditFilter(), AuditFilter(org="team")):
        with pytest.raises(Forbidden):
            await log.list(kit.acting(other), wanted)


async def test_what_is_not_there_and_what_is_not_to_be_seen_are_refused_alike(kit: Kit, log: AuditService) -> None:
    ann = kit.acting(await kit.mint(ANN, "a", org="team"))
    eve = kit.acting(await kit.mint(EVE, "e", org="team"))

    async def refused(actor: Actor, wanted: AuditFilter) -> str:
        with pytest.raises(NotFound) as refusal:
            await log.list(actor, wanted)
        return str(refusal.value)

    other = (await kit.orgs.show(ADMIN, "other")).id
    bob = (await kit.users.show(ADMIN, BOB)).id
    orgs = {await refused(ann, AuditFilter(org=org)) for org in ("other", other, "nowhere", "org_000000000000", "")}
    assert orgs == {"there is no organisation with this name or id"}
    users = {await refused(ann, AuditFilter(user=user)) for user in (BOB, bob, "no@example.org", "usr_000000000000")}
    assert (
        users == {"there is no user with this email or id"} == {await refused(ADMIN, AuditFilter(user="x@y.example"))}
    )
    for user in (BOB, bob, "no@example.org", "usr_000000000000"):
        assert list((await log.list(eve, AuditFilter(user=user))).items) == []


async def test_somebody_who_was_removed_is_found_by_id(kit: Kit, log: AuditService) -> None:
    ann = (await kit.users.show(ADMIN, ANN)).id
    await kit.mint(ANN, "t")
    before = await _all(log, AuditFilter(user=ANN))
    await kit.users.remove(ADMIN, ANN)
    after = await _all(log, AuditFilter(user=ann))
    assert {entry.n for entry in before} <= {entry.n for entry in after}
    assert {entry.email for entry in after} == {ANN}


async def test_a_credential_that_has_ended_sees_nothing(kit: Kit, log: AuditService) -> None:
    made = await kit.mint(BOB, "b")
    await log.list(kit.acting(made))
    await kit.tokens.revoke(ADMIN, made.view.id)
    for read in (log.list, log.verify):
        with pytest.raises(Unauthenticated):
            await read(kit.acting(made))


async def test_all_that_is_wrong_with_a_question_is_said_at_once(log: AuditService) -> None:
    wrong = AuditFilter(
        actor_kind="robot", level="x", outcome="maybe", address="here", since="yesterday", until="2023-13-01T00:00:00Z"
    )
    with pytest.raises(Invalid) as refusal:
        await log.list(ADMIN, wrong, after="never", page=PageRequest(limit=0, cursor="x"))
    fields = {field for field, _ in refusal.value.errors}
    assert fields == {"actor_kind", "level", "outcome", "address", "since", "until", "limit", "after", "cursor"}
    assert "robot" not in str(refusal.value)


async def test_a_cursor_of_another_list_is_refused(kit: Kit, log: AuditService) -> None:
    cursor = (await log.list(ADMIN, page=PageRequest(limit=1))).next_cursor
    for other in (None, SortOrder.OLDEST):
        with pytest.raises(Invalid, match="cursor"):
            wanted = PageRequest(cursor=cursor)
            await log.list(ADMIN, order=other or SortOrder.NEWEST, after=None if other else "0", page=wanted)
    for text in ("", "e30", "WyJuZXdlc3QiLDFlOTk5LDFd", "WyJuZXdlc3QiLDEsMV0", "ä"):
        with pytest.raises(Invalid, match="cursor"):
            await log.list(ADMIN, page=PageRequest(cursor=text))


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("24h", START - 86_400),
        ("1h30m", START - 5_400),
        ("0s", START),
        ("2023-11-14T22:13:20Z", START),
        ("2023-11-14t22:13:20.000z", START),
        ("2023-11-14T23:13:20.5+01:00", START + 0.5),
        ("2023-11-14", None),
        ("2023-11-14T22:13:20", None),
        ("2023-02-30T00:00:00Z", None),
        ("-1h", None),
        ("", None),
        ("²h", None),
    ],
)
def test_times_are_durations_before_now_or_rfc_3339(text: str, moment: float | None) -> None:
    if moment is None:
        with pytest.raises(Invalid):
            read_moment(text, START, "since")
    else:
        assert read_moment(text, START, "since") == moment


async def test_a_verification_is_for_who_sees_everything_and_goes_in_steps(kit: Kit, log: AuditService) -> None:
    await _busy(kit)
    for made in (await kit.mint(ANN, "a"), await kit.mint(EVE, "e", org="team")):
        with pytest.raises(Forbidden):
            await log.verify(kit.acting(made))
    bob = kit.acting(await kit.mint(BOB, "b"))
    whole = await log.verify(bob)
    assert (whole.problem, whole.next) == (None, None)
    assert whole.as_dict() == {"events": whole.head.n, "problem": None, "next": None, "head": str(whole.head)}
    assert (await log.verify(bob, head=str(whole.head))).problem is None
    assert "hash was given" in str((await log.verify(bob, head=f"3:{'0' * 64}")).problem)
    step = await log.verify(bob, limit=1)
    assert (await log.verify(bob, after=str(step.next or whole.head))).problem is None
    with pytest.raises(Invalid) as refusal:
        await log.verify(bob, after="1", head=f"1:{'Z' * 64}")
    assert [field for field, _ in refusal.value.errors] == ["after", "head"]


async def test_retention_removes_what_is_old_and_says_so(
    kit: Kit, log: AuditService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.services.audit.service.RETAIN_AT_ONCE", 4)
    await _busy(kit)
    before = await _all(log, AuditFilter(), limit=1000)
    old = [entry for entry in before if entry.at < START + 8]
    kit.clock.now = START + 100
    done = await log.retain(SYSTEM, START + 8)
    left = await _all(log, AuditFilter(), limit=1000)
    assert (done.events, done.until) == (len(old), START + 8)
    assert [entry.n for entry in left[1:]] == [entry.n for entry in before if entry not in old]
    event = left[0]
    assert (event.action, event.actor_name, event.at) == ("account.audit.retain", "housekeeping", START + 100)
    change = max(entry.epoch for entry in old)
    assert event.details == {
        "events": len(old),
        "through": len(old),
        "change": change,
        "until": "2023-11-14T22:13:28.000Z",
    }
    whole = await log.verify(ADMIN)
    assert (whole.events, whole.problem) == (len(left), None)
    assert (await log.retain(SYSTEM, START + 8)).events == 0
    assert (await log.verify(ADMIN)).head == whole.head, "what removes nothing leaves nothing"
    again = await log.retain(SYSTEM, START + 1000)
    assert again.events == len(left)
    (event,) = await _all(log, AuditFilter())
    assert ((await log.verify(ADMIN)).events, (await log.verify(ADMIN)).problem) == (1, None)


async def test_nobody_shortens_the_log_with_a_token(kit: Kit, log: AuditService) -> None:
    await kit.roles.set(ADMIN, "auditor", ["*:*"])
    with pytest.raises(Forbidden, match="only the operator"):
        await log.retain(kit.acting(await kit.mint(BOB, "b")), START + 1000)
