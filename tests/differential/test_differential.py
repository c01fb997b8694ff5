"""Tests of the differential test itself: it finds the defects for which it exists."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import pytest

from proxy.core.routes import RouteTable
from tests.differential.campaign import Campaign
from tests.differential.client import Lane
from tests.differential.judge import UNCOUNTED, Answer, Case, Finding, Judge, View, numbered
from tests.differential.targets import corpus, mutations
from tests.support.pathservers import PathServer
from tests.support.process import wait_until

VISIBLE = frozenset(range(0x21, 0x7F))

#: For each server, a path to /admin/ that passes a gateway which compares the raw path with "/admin/".
KNOWN = {
    "nginx": {
        b"/public/../admin/x",
        b"/public/%2e%2e/admin/x",
        b"/%61dmin/x",
        b"//admin/",
        b"/public/..%2fadmin/x",
    },
    "apache": {b"/public/../admin/x", b"/public/%2e%2e/admin/x", b"/%61dmin/x", b"//admin/"},
    "wsgi": {b"/%61dmin/x", b"//admin/"},
    "node": {b"/public/../admin/x", b"/public/%2e%2e/admin/x", b"/%61dmin/x", b"/public\\..\\admin/x"},
}


def beliefs(server: PathServer, targets: list[bytes]) -> dict[bytes, str]:
    """The area in which a server sees each target, without a gateway."""
    cases = [Case(number=UNCOUNTED, target=target) for target in targets]
    lane = Lane(server.port, server)
    try:
        answers = lane.exchange(cases)
    finally:
        lane.close()
    return {
        case.target: answer.view.area for case, answer in zip(cases, answers, strict=True) if answer.view is not None
    }


def test_each_server_falls_for_tricks_of_its_own_when_nobody_judges_the_path(running: Campaign) -> None:
    """With a gateway that compares raw prefixes, or with none, the differential test would fail at once."""
    tricks = [
        target
        for target in corpus()
        if not target.startswith(b"/admin") and VISIBLE.issuperset(target) and target.startswith((b"/", b"%"))
    ][::25]
    for server in running.servers:
        found = beliefs(server, [*KNOWN[server.name], *tricks])
        fallen = {target for target, area in found.items() if area == "admin"}
        assert fallen >= KNOWN[server.name], server.name
        assert not running.run(fallen)


def answer(case: Case, view: View) -> Answer:
    return Answer(status=204, by_gateway=False, number=case.number, view=view)


PUBLIC = View(method="GET", area="public", entity=b"", entity_id=b"", path=b"/public/x")
ITEM = View(method="GET", area="item", entity=b"things", entity_id=b"7", path=b"/v1/things/7")


@pytest.mark.parametrize(
    ("target", "wide", "view", "problem"),
    [
        (b"/public/x", True, PUBLIC, None),
        (b"/p%75blic/x?/../admin/x", False, PUBLIC, None),
        (b"http://HOST/public/x", False, PUBLIC, None),
        (b"/public/x", True, replace(PUBLIC, area="admin", path=b"/admin/x"), "no token opens"),
        (b"/public/x", True, replace(PUBLIC, path=b"/public/y"), "authorised was"),
        (b"/public/x", True, replace(PUBLIC, area="open"), "authorised was"),
        (b"/public/x", True, replace(PUBLIC, method="DELETE"), "authorised was"),
        (b"/public/x", True, replace(PUBLIC, area="redirect"), None),
        (b"/m/public/x", True, PUBLIC, None),
        (b"/%6d/%70ublic/x", True, PUBLIC, None),
        (b"/m/public/x", True, replace(PUBLIC, path=b"/m/public/x"), "authorised was"),
        (b"/m/public/x", True, replace(PUBLIC, path=b"/x"), "authorised was"),
        (b"/m/x", True, replace(PUBLIC, area="other", path=b"/x"), None),
        (b"/m/x", True, replace(PUBLIC, area="admin", path=b"/x"), "no token opens"),
        (b"/m/x", False, replace(PUBLIC, area="other", path=b"/x"), "no token opens"),
        (b"/m/v1/things/7", False, ITEM, None),
        (b"/public/x", True, replace(PUBLIC, area="redirect", path=b"/x"), "authorised was"),
        (b"/v1/things/7", False, ITEM, None),
        (b"/v1/things/7", False, replace(ITEM, entity_id=b"8", path=b"/v1/things/8"), "narrow token does not open"),
        (b"/v1/things/7", True, replace(ITEM, entity_id=b"8", path=b"/v1/things/8"), "authorised was"),
        (b"/public/../v1/things/7", True, ITEM, "authorises nothing"),
    ],
)
def test_a_server_that_believes_something_else_is_found(
    running: Campaign, target: bytes, wide: bool, view: View, problem: str | None
) -> None:
    case = Case(number=1, target=target, wide=wide)
    found = running.judge.judge(running.servers[0], case, answer(case, view))
    assert found is None if problem is None else problem in (found or "")


def test_answers_of_the_gateway_are_judged_too(running: Campaign) -> None:
    judge: Judge = running.judge
    server = running.servers[0]
    allowed = Case(number=1, target=b"/public/x")
    assert judge.judge(server, allowed, Answer(status=502, by_gateway=True)) == "the gateway answered 502"
    assert judge.judge(server, allowed, Answer(status=0, by_gateway=True)) == "the gateway answered 0"
    assert "authorises" in (judge.judge(server, allowed, Answer(status=400, by_gateway=True)) or "")
    assert judge.judge(server, replace(allowed, target=b"/admin/x"), Answer(status=403, by_gateway=True)) is None
    of_another = Answer(status=204, by_gateway=False, number=2, view=PUBLIC)
    assert judge.judge(server, allowed, of_another) == "this is the answer to request 2"


def written(server: PathServer, line: bytes) -> bool:
    return line in server.lines_since(0)[0]


def test_a_server_that_was_given_what_the_gateway_refused_is_found(running: Campaign) -> None:
    """The test sends the request directly to the server, with the number of a request that will be refused."""
    for server in running.servers:
        smuggled = Lane(server.port, server)
        try:
            smuggled.exchange([Case(number=running.next_number, target=b"/public/x")])
        finally:
            smuggled.close()
        line = b"%d" % running.next_number
        wait_until(partial(written, server, line), f"{server.name} having written the number")
        findings = running.run([b"/admin/x"])
        assert [(finding.server, finding.problem) for finding in findings] == [
            (server.name, "refused, and yet the server was given it")
        ]


def test_a_finding_is_reported_with_as_little_of_its_target_as_still_shows_it(running: Campaign) -> None:
    """For a judge without routes, every authorised request is a disagreement."""
    strict = Campaign(port=running.port, servers=running.servers, judge=Judge(RouteTable([])), tokens=running.tokens)
    try:
        case = Case(number=UNCOUNTED, target=b"/public/some/longer/p%61th?with=a&query")
        found = strict.minimised(Finding(server="nginx", case=case, problem="as found"))
        assert found.case.target == b"/public/"
        assert "authorises nothing" in found.problem
    finally:
        strict.close()


def test_the_same_seed_makes_the_same_targets() -> None:
    first, again, other = (list(itertools.islice(mutations(seed), 500)) for seed in (1, 1, 2))
    assert first == again != other
    assert corpus() == corpus()
    assert all(b"\r\n" not in target and target for target in (*first, *corpus()))


def test_methods_and_tokens_are_dealt_out_evenly() -> None:
    cases = numbered([b"/"] * 76, 1)
    assert {(case.method, case.wide) for case in cases} == {
        (method, wide) for method in ("GET", "HEAD", "PUT", "DELETE", "POST") for wide in (True, False)
    }
