"""The judge of a run: it finds what is wrong in records, and nothing in right ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.history.checker import Outcome
from tests.nemesis.promotion import Moments, judged
from tests.nemesis.record import Record, Recorded
from tests.nemesis.run import Options, Report
from tests.nemesis.verdict import Verdict, compare, judge
from tests.nemesis.wire import complete

REVOKED = Recorded(
    kind="revoke", registers=["c0-0 read"], allows=False, cause="token", start=100, end=200, node=1,
    action="account.pat.revoke", target="T", outcome=Outcome.ACKNOWLEDGED,
)  # fmt: skip
SUSPENDED = replace(REVOKED, kind="suspend", cause="suspend", action="account.user.suspend", target="U")


def event(action: str, target: str) -> dict[str, Any]:
    return {"action": action, "target_id": target}


def recorded(*decisions: tuple[int, bool, int, int]) -> Record:
    """A record of one revoked register, and decisions of a node: node, allowed, start, end."""
    record = Record(registers=["c0-0 read"], changes=[REVOKED])
    for node, allowed, start, end in decisions:
        record.decisions.add(0, node, allowed, start, end)
    return record


def test_nodes_may_differ_before_the_answer_and_not_after_it() -> None:
    events = [event("account.pat.revoke", "T")]
    right = judge([recorded((0, False, 110, 120), (1, True, 130, 190), (1, False, 195, 210))], events)
    assert right.passed() and right.decisions == 3 and right.kinds == {"revoke": 1}
    wrong = judge([recorded((0, False, 110, 120), (1, True, 201, 210))], events)
    assert [violation.node for violation in wrong.violations] == ["n1"]
    assert "n1" in wrong.faults()[0]


@pytest.mark.parametrize(
    ("changes", "events", "lost", "twice"),
    [
        ([SUSPENDED], 1, 0, 0),
        ([SUSPENDED], 0, 1, 0),
        ([SUSPENDED], 2, 0, 1),
        ([SUSPENDED, replace(SUSPENDED, outcome=Outcome.IN_DOUBT)], 1, 0, 0),
        ([SUSPENDED, replace(SUSPENDED, outcome=Outcome.IN_DOUBT)], 2, 0, 0),
        ([replace(SUSPENDED, outcome=Outcome.IN_DOUBT)], 0, 0, 0),
        ([SUSPENDED, SUSPENDED], 1, 1, 0),
        ([REVOKED, REVOKED], 1, 0, 0),
        ([REVOKED, REVOKED], 0, 1, 0),
        ([REVOKED, REVOKED], 2, 0, 1),
    ],
)
def test_acknowledged_changes_are_compared_with_the_audit_log(
    changes: list[Recorded], events: int, lost: int, twice: int
) -> None:
    found = compare(changes, [event(changes[0].action, changes[0].target)] * events)
    assert (len(found[0]), len(found[1])) == (lost, twice)


def test_a_record_survives_its_files(tmp_path: Path) -> None:
    record = recorded((0, False, 110, 120), (3, True, 2**62, 2**62 + 1))
    record.unborn.append(("c0-0 read", "token"))
    record.other["n0 503 authority_unavailable"] = 4
    record.write(tmp_path, "c0")
    found = Record.read(tmp_path, "c0")
    assert list(found.judged()) == list(record.judged())
    assert (found.changes, found.unborn, found.other) == (record.changes, record.unborn, record.other)


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r", False),
        (b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 4\r\nX: y\r\n\r\nabc", False),
        (b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 4\r\nX: y\r\n\r\nabcd", True),
    ],
)
def test_a_response_is_read_to_its_end(data: bytes, whole: bool) -> None:
    assert complete(data) is whole


@pytest.mark.parametrize(
    ("acknowledged", "allowed", "events", "found"),
    [
        # Before it was known to be on the standby: it must be there and in force for ever.
        (200, 450, 1, (0, 0, 1)),
        (200, 450, 0, (0, 1, 1)),
        # It may have been lost by the failover: in force until the operator accepts that.
        (350, 390, 0, (1, 0, 1)),
        (350, 450, 0, (1, 0, 0)),
        (350, 450, 1, (0, 0, 0)),
        # Made after the acceptance.
        (500, 550, 1, (0, 0, 1)),
        (500, 550, 0, (0, 1, 1)),
    ],
)
def test_what_a_promoted_standby_lacked_is_judged_until_an_operator_accepts_it(
    acknowledged: int, allowed: int, events: int, found: tuple[int, int, int]
) -> None:
    """Found: changes gone with the former primary, lost, and violations."""
    moments = Moments(complete=300, accepted=400)
    record = recorded((1, True, allowed, allowed + 10))
    record.changes = [replace(REVOKED, start=acknowledged - 20, end=acknowledged)]
    report = Report(options=Options(seed=0), verdict=Verdict(), seconds=1.0)
    judgement = judged(report, [record], [event("account.pat.revoke", "T")] * events, moments)
    assert (judgement.gone, len(judgement.lost), len(judgement.violations)) == found


@pytest.mark.parametrize(
    ("kind", "acknowledged", "problem", "explained"),
    [
        ("suspend back", 350, "mint at n0: 409 conflict", True),
        ("suspend back", 250, "mint at n0: 409 conflict", False),
        ("revoke", 350, "mint at n0: 409 conflict", False),
        ("suspend back", 350, "rotate at n0: 409 conflict", False),
        ("revoke", 350, "rotate at n0: 404 not_found", True),
        ("revoke", 250, "rotate at n0: 404 not_found", False),
    ],
)
def test_a_problem_is_explained_only_by_a_change_that_the_standby_may_have_lacked(
    kind: str, acknowledged: int, problem: str, explained: bool
) -> None:
    record = recorded()
    record.changes = [replace(REVOKED, kind=kind, start=acknowledged - 20, end=acknowledged)]
    record.problems.append(problem)
    report = Report(options=Options(seed=0), verdict=Verdict(), seconds=1.0)
    judgement = judged(report, [record], [], Moments(complete=300, accepted=400))
    assert (judgement.problems == []) is explained
