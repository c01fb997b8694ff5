"""Histories that are wrong, each in one way, and right ones that look wrong until one reads the promise."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.history.checker import Change, Decision, Outcome, Violation, violations

MS = 1_000_000


def allow(start: float, end: float, node: str = "a", token: str = "t") -> Decision:
    return Decision(token=token, node=node, allowed=True, start=int(start * MS), end=int(end * MS))


def deny(start: float, end: float, node: str = "a", token: str = "t") -> Decision:
    return replace(allow(start, end, node, token), allowed=False)


def down(start: float, end: float, cause: str = "token", number: int | None = None, name: str = "revoke") -> Change:
    return Change(
        tokens=("t",), allows=False, start=int(start * MS), end=int(end * MS), cause=cause, number=number, name=name
    )


def up(start: float, end: float, cause: str = "token", number: int | None = None) -> Change:
    return replace(down(start, end, cause, number, "restore"), allows=True)


def in_doubt(change: Change) -> Change:
    return replace(change, outcome=Outcome.IN_DOUBT)


def only(found: list[Violation]) -> Violation:
    assert len(found) == 1
    return found[0]


REVOKE = down(10, 20)


def test_a_history_without_changes_allows_always() -> None:
    assert violations([allow(0, 1), allow(5, 6, "b")], []) == []
    assert only(violations([allow(0, 1), deny(2, 3)], [])).decisions == (deny(2, 3),)


def test_before_the_answer_nodes_may_differ() -> None:
    assert violations([deny(11, 12, "a"), allow(13, 14, "b"), deny(15, 16, "a"), allow(17, 19, "b")], [REVOKE]) == []


def test_a_request_that_began_before_the_answer_may_be_allowed_after_it() -> None:
    assert violations([allow(19, 40), deny(21, 22, "b")], [REVOKE]) == []


def test_an_allow_begun_after_the_answer_is_a_violation() -> None:
    found = only(violations([allow(0, 1), deny(12, 13, "b"), allow(20, 21), deny(22, 23)], [REVOKE]))
    assert (found.node, found.decisions, found.changes) == ("a", (allow(20, 21),), (REVOKE,))


def test_a_deny_that_ended_before_the_call_is_a_violation() -> None:
    assert only(violations([deny(9, 10)], [REVOKE])).decisions == (deny(9, 10),)
    assert violations([deny(9, 10.5)], [REVOKE]) == []


def test_an_allow_begun_after_a_deny_on_the_same_node_is_a_violation_even_before_the_answer() -> None:
    found = only(violations([allow(1, 2), deny(11, 12), allow(12, 13), deny(21, 22)], [REVOKE]))
    assert found.decisions == (deny(11, 12), allow(12, 13))
    assert violations([deny(11, 12.5), allow(12, 13)], [REVOKE]) == []


def test_each_node_is_judged_by_its_own_decisions() -> None:
    found = violations([deny(11, 12, "a"), allow(12, 13, "a"), allow(20, 30, "b"), deny(11, 12, "c")], [REVOKE])
    assert [one.node for one in found] == ["a", "b"]


def test_an_acknowledged_change_that_is_lost_is_a_violation() -> None:
    assert only(violations([deny(11, 12), deny(30, 31), allow(500, 501)], [REVOKE])).decisions == (allow(500, 501),)


def test_a_verdict_of_neither_side_of_up_and_down_is_a_violation() -> None:
    changes = [down(10, 20), up(30, 40)]
    assert violations([allow(1, 2), deny(21, 29), deny(31, 33), allow(33, 34), allow(41, 42)], changes) == []
    assert only(violations([deny(21, 29), deny(40, 41)], changes)).decisions == (deny(40, 41),)
    assert only(violations([allow(31, 32), deny(33, 34)], changes)).decisions == (allow(31, 32), deny(33, 34))


def test_three_verdicts_that_are_possible_by_twos() -> None:
    """Down and up overlap, so either may be last, but the verdict changes at most twice."""
    changes = [down(10, 50), up(10, 50)]
    flicker = [deny(11, 12), allow(13, 14), deny(15, 16)]
    for left in range(3):
        assert violations([seen for index, seen in enumerate(flicker) if index != left], changes) == []
    assert only(violations(flicker, changes)).decisions == tuple(flicker)
    assert violations(flicker, [*changes, down(10, 50)]) == []


def test_the_numbers_say_which_of_two_calls_at_the_same_time_was_last() -> None:
    after = [allow(60, 61)]
    assert violations(after, [down(10, 50), up(10, 50)]) == []
    assert violations(after, [down(10, 50, number=7), up(10, 50, number=8)]) == []
    assert only(violations(after, [down(10, 50, number=8), up(10, 50, number=7)])).decisions == tuple(after)


def test_a_change_waits_for_one_with_a_smaller_number_that_began_later() -> None:
    changes = [down(10, 50, number=2), up(30, 40, cause="role", number=1)]
    assert only(violations([deny(20, 29)], changes)).decisions == (deny(20, 29),)
    assert violations([deny(20, 31)], changes) == []


def test_numbers_that_contradict_the_calls_are_a_violation() -> None:
    wrong = down(10, 20, number=8), up(30, 40, number=7)
    found = only(violations([], wrong))
    assert (found.decisions, found.changes) == ((), wrong)
    assert "the numbers of these changes contradict the times of their calls" in str(found)


def test_a_change_in_doubt_comes_into_force_at_any_time_or_never() -> None:
    doubtful = [in_doubt(REVOKE)]
    assert violations([allow(11, 12), allow(30, 31), allow(900, 901)], doubtful) == []
    assert violations([allow(11, 12), allow(30, 31), deny(900, 901)], doubtful) == []
    assert only(violations([deny(9, 10), allow(11, 12)], doubtful)).decisions == (deny(9, 10),)


def test_a_change_in_doubt_that_was_seen_stays() -> None:
    found = only(violations([deny(30, 31), allow(32, 33)], [in_doubt(REVOKE)]))
    assert found.decisions == (deny(30, 31), allow(32, 33))


def test_a_change_in_doubt_may_come_after_a_later_one_unless_it_has_a_smaller_number() -> None:
    seen = [allow(41, 42), deny(50, 51)]
    assert violations(seen, [in_doubt(down(10, 20)), up(30, 40)]) == []
    found = only(violations(seen, [in_doubt(down(10, 20, number=1)), up(30, 40, number=2)]))
    assert found.decisions == (deny(50, 51),)


def test_each_change_in_doubt_counts_once() -> None:
    flicker = [deny(11, 12), allow(33, 34), deny(40, 41)]
    assert violations(flicker, [in_doubt(down(10, 20)), up(30, 35), in_doubt(down(10, 21))]) == []
    found = only(violations(flicker, [in_doubt(down(10, 20)), up(30, 35)]))
    assert found.decisions == (deny(11, 12), deny(40, 41))


def test_a_failed_change_never_comes_into_force() -> None:
    failed = replace(REVOKE, outcome=Outcome.FAILED)
    assert violations([allow(11, 12), allow(30, 31)], [failed]) == []
    assert only(violations([deny(15, 16)], [failed])).decisions == (deny(15, 16),)


def test_one_cause_does_not_lift_another() -> None:
    changes = [down(10, 20, "role"), down(30, 40, "suspension"), up(50, 60, "suspension")]
    assert violations([deny(61, 62)], changes) == []
    found = only(violations([allow(1, 2), deny(45, 46), allow(61, 62)], changes))
    assert found.decisions == (allow(61, 62),)
    assert found.changes == (changes[0], changes[2])
    assert violations([allow(71, 72)], [*changes, up(63, 70, "role")]) == []


def test_a_token_is_denied_until_it_is_made() -> None:
    mint = replace(up(10, 20, "exists"), name="mint")
    first = [("t", "exists")]
    assert violations([deny(1, 2), allow(15, 16), allow(21, 22)], [mint], denied_at_first=first) == []
    assert only(violations([allow(1, 2)], [mint], denied_at_first=first)).decisions == (allow(1, 2),)


def test_a_change_concerns_the_tokens_that_it_names() -> None:
    role = replace(REVOKE, tokens=("t", "u"))
    seen = [allow(30, 31, token="t"), allow(30, 31, token="u"), allow(30, 31, token="v")]
    assert {one.token for one in violations(seen, [role])} == {"t", "u"}


def test_what_ends_when_another_starts_was_before_it() -> None:
    assert violations([allow(5, 10), deny(20, 30)], [REVOKE]) == []
    assert only(violations([allow(20, 21)], [REVOKE])).decisions == (allow(20, 21),)
    assert violations([allow(19.999, 21)], [REVOKE]) == []


def test_a_report_says_in_words_what_contradicts_what() -> None:
    found = only(violations([allow(1, 2), deny(11, 12.5), allow(13, 14)], [down(10, 20, number=17)]))
    assert re.sub(" +", " ", str(found)).splitlines() == [
        "t on a: there is no moment for the changes at which all these are true:",
        " 0.000 ms to 10.000 ms revoke (acknowledged, number 17): forbids, cause token",
        " 1.000 ms to 2.500 ms denied",
        " 3.000 ms to 4.000 ms allowed",
    ]
    alone = only(violations([deny(13, 14)], [in_doubt(down(20, 30))]))
    assert str(alone).startswith("t on a: this verdict was false at every moment of its request:\n")
    open_ended = only(violations([deny(15, 16), allow(17, 18)], [in_doubt(down(10, 20))]))
    assert "0.000 ms to open" in re.sub(" +", " ", str(open_ended))


@pytest.mark.parametrize("wrong", [allow(2, 2), deny(3, 2)])
def test_a_decision_that_ends_before_it_begins_is_refused(wrong: Decision) -> None:
    with pytest.raises(ValueError, match="a decision ends before it has begun"):
        violations([wrong], [])


def test_a_change_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="a change ends before it has begun"):
        violations([], [down(2, 2)])
    assert violations([], [in_doubt(down(2, 2))]) == []
