"""Audit events of requests: which requests each level selects, the content of an event, and the limits."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any, Final

import pytest

from proxy.authority.workers import report_parsing
from proxy.core.event_quota import REFUSALS, STRANGERS, STRANGERS_BURST
from proxy.core.ipc.clock import boottime_ns
from proxy.core.kinds import Kind, Reach
from proxy.core.model import Access, OrgGrant, by_org
from proxy.core.permissions import PermissionSet
from proxy.core.reasons import TABLE, Reason
from proxy.core.request.requirement import TEXT_LIMIT, Requirement, required
from proxy.core.request.second_targets import NamedTarget
from proxy.core.routes import Match
from proxy.core.token import Minted
from proxy.gateway.exchange import Exchange
from proxy.gateway.grants.cache import CacheEntry
from proxy.gateway.phases.record import ExchangeRecorder
from proxy.gateway.telemetry.audit_events import ALLOWED, LEVELS, WAITING, WAITING_BYTES
from proxy.observe.logs import get_logger
from proxy.settings.model import Audit, Log
from tests.unit.gateway.kit import TOKENS, Gateway, make_grant, make_route
from tests.unit.gateway.telemetry.test_usage_reporter import Link

ROUTE: Final = make_route("/v1/{entity}/{id}", Access.TOKEN)
DECISION: Final = b"0123456789abcdef00000001"
MINTED: Final = TOKENS.mint(Kind.PAT)


class Journal:
    """A recorder with events of some level."""

    def __init__(self, level: Any = "writes", workers: int = 1) -> None:
        self.gateway = Gateway(1)
        self.recorder = ExchangeRecorder(
            [ROUTE],
            get_logger("test"),
            prefix_of=self.gateway.authenticator.prefix_of,
            audit=Audit(requests=level),
            workers=workers,
            write=lambda lines: None,
        )

    def exchange(self, method: bytes = b"POST", *, entry: bool = True) -> Exchange:
        client = self.gateway.listener.connection("192.0.2.7")
        x = Exchange(client, boottime_ns(), DECISION)
        x.method, x.path, x.query, x.status = method, b"/v1/things/7", b"?q=secret", 201
        x.match = Match(ROUTE, "things", "7", "create", None)
        x.entry = CacheEntry(make_grant(MINTED), b"") if entry else None
        return x

    def refused(self, reason: Reason, *, entry: bool = True, token: Minted | None = None) -> Exchange:
        x = self.exchange(entry=entry)
        x.reason, x.status = reason, 403
        if token is not None:
            x.authorization = b"Bearer " + token.token.encode()
        return x

    def record(self, x: Exchange) -> None:
        self.recorder.record(x, boottime_ns())

    def taken(self) -> tuple[list[dict[str, Any]], int]:
        """The events, each of which the authority would accept, and the number of those left out."""
        events, omitted = self.recorder.trail.events.take(1_000_000)
        found = [json.loads(event) for event in events]
        for event in found:
            report_parsing.event(event)
        return found, omitted

    def one(self) -> dict[str, Any]:
        (event,), omitted = self.taken()
        assert omitted == 0
        return event


async def test_an_allowed_write_leaves_an_event_with_every_field() -> None:
    journal, before = Journal(), time.time()
    journal.record(journal.exchange())
    event = journal.one()
    assert before - 1 <= event.pop("at") <= time.time() + 1
    assert event == {
        "prefix": MINTED.prefix,
        "proven": True,
        "action": "request.create",
        "target": "things/7",
        "route": "/v1/{entity}/{id}",
        "org": "",
        "outcome": "allowed",
        "reason": "allowed",
        "address": "192.0.2.7",
        "decision": "0123456789abcdef00000001",
        "method": "POST",
        "host": "",
        "path": "/v1/things/7",
        "status": 201,
    }


async def test_a_refusal_without_a_proven_token_names_the_prefix_that_was_presented() -> None:
    journal = Journal()
    journal.record(journal.refused(Reason.TOKEN_WRONG_SECRET, entry=False, token=MINTED))
    event = journal.one()
    assert (event["prefix"], event["proven"], event["outcome"]) == (MINTED.prefix, False, "refused")
    journal.record(journal.refused(Reason.NO_CREDENTIAL, entry=False))
    assert journal.one()["prefix"] == ""


async def test_a_request_that_is_refused_before_it_is_parsed_leaves_an_event_too() -> None:
    journal = Journal()
    x = Exchange(None, 0, DECISION)
    x.reason, x.status = Reason.REQUEST_MALFORMED, 400
    journal.record(x)
    event = journal.one()
    assert (event["action"], event["target"], event["route"], event["path"], event["method"]) == ("request", *[""] * 4)


@pytest.mark.parametrize(
    ("match", "host"),
    [
        (Match(ROUTE, "things", "7", "create", None), ""),
        (Match(replace(ROUTE, host="*.example"), "things", "7", "create", None), "api.example"),
        (None, "api.example"),
    ],
)
async def test_an_event_has_the_host_where_it_had_a_part_in_the_route(match: Match | None, host: str) -> None:
    journal = Journal()
    x = journal.refused(Reason.ROLE_DENIES)
    x.match, x.host_name = match, "api.example"
    journal.record(x)
    assert journal.one()["host"] == host


@pytest.mark.parametrize(
    ("requirement", "text"),
    [
        (Requirement("things", "read", None, None), "entity=things&operation=read"),
        (Requirement("things", "read", "a_1:~@", "lab"), "entity=things&operation=read&id=a_1:~@&org=lab"),
        (Requirement("things", "read", MINTED.token, "lab"), "entity=things&operation=read&id=[redacted]&org=lab"),
        (Requirement(MINTED.token, "read", None, None), "entity=[redacted]&operation=read"),
        (
            Requirement("things", MINTED.token, "7", "x" + MINTED.token),
            "entity=things&operation=[redacted]&id=7&org=[redacted]",
        ),
        (Requirement("things", "read", "x" * 245 + ".cookie:ab", None), "entity=things&operation=read&id=[redacted]"),
        (
            Requirement("a" * 64, "b" * 64, "c" * 255, "d" * 255),
            f"entity={'a' * 64}&operation={'b' * 64}&id={'c' * 255}&org={'d' * 255}",
        ),
    ],
    ids=["operation", "all parts", "id", "entity", "operation and organisation", "field", "longest"],
)
async def test_the_requirement_of_the_ingress_is_in_the_event_without_secrets(
    requirement: Requirement, text: str
) -> None:
    journal = Journal()
    x = journal.exchange()
    x.requirement = requirement
    journal.record(x)
    (event,), _ = journal.taken()
    assert event["requirement"] == text
    assert len(text) <= TEXT_LIMIT


async def test_a_request_that_only_its_requirement_decides_has_its_host_in_the_event() -> None:
    journal = Journal()
    x = journal.exchange()
    x.requirement, x.host_name = Requirement("things", "read", None, None), "api.example"
    x.match, _ = required(x.requirement, None, Reason.NO_ROUTE)
    journal.record(x)
    event = journal.one()
    assert (event["route"], event["host"]) == ("-", "api.example")


async def test_a_second_target_that_was_refused_is_named_redacted_and_cut() -> None:
    journal = Journal()
    x = journal.refused(Reason.ROLE_DENIES)
    path = b"/v1/" + MINTED.token.encode() + b"/" + b"x" * 1000
    x.refused_second = (Reason.ROLE_DENIES, b"destination", NamedTarget(None, path, written=True))
    journal.recorder.record(x, boottime_ns())
    x = journal.refused(Reason.SECOND_TARGET)
    x.refused_second = (Reason.SECOND_TARGET, b"x-amz-copy-source", None)
    journal.recorder.record(x, boottime_ns())
    judged, unjudged = (report_parsing.event(row).event.details["second_target"] for row in journal.taken()[0])
    assert isinstance(judged, dict)
    assert (judged["header"], judged["method"], judged["path"][:4]) == ("destination", "PUT", "/v1/")
    assert MINTED.token not in judged["path"] and len(judged["path"]) <= 512 + len("[redacted]")
    assert unjudged == {"header": "x-amz-copy-source"}


@pytest.mark.parametrize("reason", [Reason.UPSTREAM_TIMEOUT, Reason.TOKEN_EXPIRED])
async def test_a_second_target_that_was_only_reported_is_not_named_for_a_later_failure(reason: Reason) -> None:
    journal = Journal()
    x = journal.refused(reason)
    x.status = TABLE[reason].status
    x.reported = Reason.ROLE_DENIES
    x.refused_second = (Reason.ROLE_DENIES, b"destination", NamedTarget(None, b"/v1/things/8", written=True))
    journal.recorder.record(x, boottime_ns())
    (row,) = journal.taken()[0]
    assert "second_target" not in report_parsing.event(row).event.details


async def test_a_token_in_the_host_is_redacted() -> None:
    journal = Journal()
    x = journal.refused(Reason.NO_ROUTE)
    x.match, x.host_name = None, MINTED.token + ".example"
    journal.record(x)
    assert journal.one()["host"] == MINTED.prefix + ".example"


ASKED: Final = {
    "allowed read": ("all",),
    "allowed write": ("writes", "all"),
    "allowed without a token": ("all",),
    "refused": ("refused", "writes", "all"),
    "refused without a token": ("refused", "writes", "all"),
    "reported": ("refused", "writes", "all"),
    "failed read": ("all",),
    "failed write": ("writes", "all"),
    "failed without a token": ("all",),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("what", ASKED)
async def test_the_setting_selects_which_requests_leave_an_event(what: str, level: str) -> None:
    journal = Journal(level)
    x = journal.exchange(b"GET" if "read" in what else b"POST", entry="without" not in what)
    if what.startswith("refused"):
        x.reason = Reason.ROLE_DENIES
    elif what.startswith("failed"):
        x.reason = Reason.UPSTREAM_RESET
    elif what == "reported":
        x.reported = Reason.ROLE_DENIES
    journal.record(x)
    events, omitted = journal.taken()
    assert len(events) == (level in ASKED[what])
    assert omitted == 0
    assert all(event["outcome"] == what.split()[0] for event in events)


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
async def test_reading_is_no_write(method: bytes) -> None:
    journal = Journal("writes")
    journal.record(journal.exchange(method))
    assert journal.taken() == ([], 0)


async def test_another_level_counts_from_the_next_request() -> None:
    journal = Journal("off")
    journal.record(journal.exchange())
    journal.recorder.follow([ROUTE], Log(), 1, Audit(requests="all"))
    journal.record(journal.exchange(b"GET"))
    assert journal.one()["method"] == "GET"


async def test_the_organisation_is_the_requested_one_or_else_the_tokens_own() -> None:
    journal = Journal("all")
    there = OrgGrant(org_id="org_b", org_name="beta", role="r", permissions=PermissionSet.of([]))
    account = replace(make_grant(MINTED), reach=Reach.ACCOUNT, orgs=by_org([there]))
    team = replace(make_grant(MINTED), reach=Reach.ORG, org_id="org_a", org_name="alpha")
    for grant, org in ((account, "beta"), (account, "org_b"), (account, "other"), (account, None), (team, "other")):
        x = journal.exchange()
        x.match = Match(ROUTE, "things", "7", "create", org)
        x.entry = CacheEntry(grant, b"")
        journal.record(x)
    events, _ = journal.taken()
    assert [event["org"] for event in events] == ["org_b", "org_b", "", "", "org_a"]


@pytest.mark.parametrize("place", ["/v1/{}", "/v1/x{}/y", "/v1/%2f{}", "/v1/{}?q", "/v1/a%5f{}"])
async def test_no_secret_of_a_request_is_in_its_event(place: str) -> None:
    journal, token = Journal(), TOKENS.mint(Kind.PAT)
    secret = token.token.removeprefix(token.prefix)
    x = journal.exchange()
    x.path = place.format(token.token).partition("?")[0].encode()
    x.method = token.token.encode()
    x.match = Match(ROUTE, f"e{token.token}", f"a%{token.token}\x1b", "create", None)
    journal.record(x)
    x = journal.refused(Reason.TOKEN_WRONG_SECRET, entry=False, token=token)
    journal.record(x)
    events, _ = journal.taken()
    assert len(events) == 2
    assert secret[1:] not in json.dumps(events)
    assert token.prefix in events[0]["target"]


@pytest.mark.parametrize("text", ['a"b\\c', "é", "\x00\x1b\r\n", "*", "x" * 300, "%2A", "a/b", "\udcff"])
async def test_the_authority_accepts_the_event_of_any_request(text: str) -> None:
    journal = Journal()
    x = journal.exchange(b"QUERY")
    x.match = Match(ROUTE, "things", text, "create", None)
    # A request with a NUL in its target is refused while its head is read.
    x.path = b"/v1/things/" + text.replace("\0", "").encode("utf-8", "replace") * 3
    journal.record(x)
    event = journal.one()
    assert len(event["target"]) <= 128
    assert event["target"].isascii() and event["target"].isprintable()


async def test_a_path_that_hides_a_nul_behind_a_token_still_has_its_event() -> None:
    journal, token = Journal(), TOKENS.mint(Kind.PAT)
    x = journal.refused(Reason.TARGET_NOT_CANONICAL, entry=False)
    x.match, x.path = None, f"/a%00b/{token.prefix}%5F{'x' * 30}".encode()
    journal.record(x)
    event = journal.one()
    assert (event["reason"], event["path"]) == ("target_not_canonical", f"/a\ufffdb/{token.prefix}")


async def test_a_route_of_any_length_leaves_events_and_reports() -> None:
    journal = Journal()
    x = journal.exchange()
    x.match = Match(make_route(f"/{'v' * 300}/{{entity}}/{{id}}", Access.TOKEN), "things", "7", "create", None)
    journal.record(x)
    x.reported = Reason.ROLE_DENIES
    journal.record(x)
    events, _ = journal.taken()
    assert [event["route"] for event in events] == [f"/{'v' * 199}"] * 2
    link = Link()
    journal.recorder.trail.send(link, last=True)
    (reported,) = link.rows("reports")
    assert report_parsing.report(reported).route == f"/{'v' * 199}"


async def test_requests_without_a_proven_token_have_a_small_burst_and_then_a_few_events_per_sweep() -> None:
    journal = Journal()
    for sweep in range(3):
        for _ in range(100):
            journal.record(journal.refused(Reason.TOKEN_UNKNOWN, entry=False))
        events, omitted = journal.taken()
        assert len(events) == (STRANGERS if sweep else STRANGERS_BURST)
        assert omitted == 100 - len(events)
        journal.recorder.trail.events.renew()
    for _ in range(100):
        journal.recorder.trail.events.renew()
    for _ in range(100):
        journal.record(journal.refused(Reason.TOKEN_UNKNOWN, entry=False))
    assert len(journal.taken()[0]) == STRANGERS_BURST


@pytest.mark.parametrize("reloaded", [False, True])
async def test_all_workers_together_record_no_more_unproven_requests_than_one(reloaded: bool) -> None:
    journal = Journal(workers=1 if reloaded else 8)
    if reloaded:
        journal.recorder.follow([ROUTE], Log(), 8, Audit())
        journal.recorder.trail.events.renew()
    made = 0
    for _ in range(80):
        for _ in range(100):
            journal.record(journal.refused(Reason.TOKEN_UNKNOWN, entry=False))
        made += len(journal.taken()[0])
        journal.recorder.trail.events.renew()
    assert 80 * STRANGERS // 8 <= made <= 80 * STRANGERS // 8 + STRANGERS_BURST


async def test_a_flood_of_unproven_requests_does_not_use_the_quota_of_tokens() -> None:
    journal = Journal()
    for _ in range(100):
        journal.record(journal.refused(Reason.TOKEN_UNKNOWN, entry=False))
    journal.taken()
    for _ in range(REFUSALS + 10):
        journal.record(journal.refused(Reason.ROLE_DENIES))
    events, omitted = journal.taken()
    assert (len(events), omitted) == (REFUSALS, 10)
    journal.record(journal.exchange())
    assert journal.one()["outcome"] == "allowed"


async def test_waiting_events_are_bounded_while_they_are_not_taken() -> None:
    journal = Journal()
    x = journal.exchange()
    for _ in range(4):
        journal.recorder.trail.events.renew()
        for _ in range(ALLOWED):
            journal.record(x)
    events, omitted = journal.taken()
    assert (len(events), omitted) == (WAITING, 2 * ALLOWED)
    # By bytes, where events are large.
    x.path = b"/v1/things/" + b"\xff" * 2000
    for _ in range(2):
        journal.recorder.trail.events.renew()
        for _ in range(ALLOWED):
            journal.record(x)
    events, omitted = journal.taken()
    assert WAITING_BYTES <= sum(len(json.dumps(event)) for event in events) < WAITING_BYTES * 1.1
    assert omitted == 2 * ALLOWED - len(events) > 0
