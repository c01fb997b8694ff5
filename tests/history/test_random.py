"""Random histories: right ones are never blamed, and on small ones the checker and brute force agree.

A right history comes from a simulation of what the promise permits: on each node each change comes into force at a
moment inside its call, and each decision has the verdict of a moment inside its request.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from tests.history import brute_force
from tests.history.checker import Change, Decision, Outcome, violations

SPAN = 24
"""Moments in a small history: so few that many of them coincide."""
CAUSES = ("token", "role")


@dataclass(frozen=True, kw_only=True)
class History:
    decisions: tuple[Decision, ...]
    changes: tuple[Change, ...]
    denied_at_first: tuple[tuple[str, str], ...]


@st.composite
def intervals(draw: st.DrawFn, span: int) -> tuple[int, int, int]:
    """Start, a moment inside (all even, so that an odd moment is strictly inside), and end."""
    start = 2 * draw(st.integers(0, span - 1))
    end = start + 2 * draw(st.integers(1, span))
    return start, draw(st.integers(start // 2, end // 2 - 1)) * 2 + 1, end


@st.composite
def right_histories(draw: st.DrawFn, reads: int, writes: int, span: int = SPAN, nodes: str = "ab") -> History:
    denied = tuple(("t", cause) for cause in draw(st.sets(st.sampled_from(CAUSES))))
    changes = []
    moments: dict[str, list[tuple[int, int]]] = {node: [] for node in nodes}
    numbered = draw(st.booleans())
    commits = {}
    for index in range(draw(st.integers(0, writes))):
        start, committed, end = draw(intervals(span))
        outcome = draw(st.sampled_from([Outcome.ACKNOWLEDGED, Outcome.ACKNOWLEDGED, Outcome.IN_DOUBT, Outcome.FAILED]))
        cause = draw(st.sampled_from(CAUSES))
        changes.append(
            Change(tokens=("t",), allows=draw(st.booleans()), start=start, end=end, cause=cause, outcome=outcome)
        )
        if outcome is Outcome.FAILED or (outcome is Outcome.IN_DOUBT and draw(st.booleans())):
            continue
        late = 2 * draw(st.integers(0, span)) if outcome is Outcome.IN_DOUBT else 0
        commits[index] = committed + late
        for node in nodes:
            # With numbers every node has the order of the commits; without, each may have an order of its own.
            moment = draw(st.integers(committed // 2, end // 2 - 1)) * 2 + 1 + late
            moments[node].append((committed + late if numbered else moment, index))
    if numbered:
        for number, index in enumerate(sorted(commits, key=lambda index: (commits[index], index))):
            changes[index] = replace(changes[index], number=number)
    decisions = []
    for _ in range(draw(st.integers(0, reads))):
        node = draw(st.sampled_from(nodes))
        start, moment, end = draw(intervals(span))
        forbidden = {cause for _, cause in denied}
        for at, index in sorted(moments[node]):
            if at <= moment:
                change = changes[index]
                forbidden = forbidden - {change.cause} if change.allows else forbidden | {change.cause}
        decisions.append(Decision(token="t", node=node, allowed=not forbidden, start=start, end=end))
    return History(decisions=tuple(decisions), changes=tuple(changes), denied_at_first=denied)


@st.composite
def mutated(draw: st.DrawFn) -> History:
    """A small right history with up to three things in it altered."""
    history = draw(right_histories(5, 3, nodes="a"))
    decisions, changes = list(history.decisions), list(history.changes)
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["verdict", "decision", "change", "outcome", "number", "direction"]))
        if kind in ("verdict", "decision") and decisions:
            at = draw(st.integers(0, len(decisions) - 1))
            if kind == "verdict":
                decisions[at] = replace(decisions[at], allowed=not decisions[at].allowed)
            else:
                start, _, end = draw(intervals(SPAN))
                decisions[at] = replace(decisions[at], start=start, end=end)
        elif kind not in ("verdict", "decision") and changes:
            at = draw(st.integers(0, len(changes) - 1))
            if kind == "change":
                start, _, end = draw(intervals(SPAN))
                changes[at] = replace(changes[at], start=start, end=end)
            elif kind == "outcome":
                changes[at] = replace(changes[at], outcome=draw(st.sampled_from(Outcome)))
            elif kind == "number":
                free = sorted(set(range(6)) - {change.number for change in changes})
                changes[at] = replace(changes[at], number=draw(st.sampled_from([None, *free])))
            else:
                changes[at] = replace(changes[at], allows=not changes[at].allows)
    return replace(history, decisions=tuple(decisions), changes=tuple(changes))


@given(right_histories(40, 8))
@settings(max_examples=300)
def test_a_right_history_is_never_blamed(history: History) -> None:
    assert violations(history.decisions, history.changes, denied_at_first=history.denied_at_first) == []


@seed(11)
@given(mutated())
@settings(max_examples=700, database=None)
def test_a_mutated_history_is_judged_as_brute_force_judges_it(history: History) -> None:
    _compare(history)


def _compare(history: History) -> bool:
    """Whether the history is right, by both; the set that is blamed is contradictory and as small as any."""
    found = violations(history.decisions, history.changes, denied_at_first=history.denied_at_first)
    right = brute_force.is_right(history.decisions, history.changes, history.denied_at_first)
    assert (not found) is right
    for violation in found:
        last = max((decision.end for decision in violation.decisions), default=0)
        until = [d for d in history.decisions if d.end < last or d in violation.decisions]
        assert not brute_force.is_right(violation.decisions, history.changes, history.denied_at_first)
        assert brute_force.smallest(until, history.changes, history.denied_at_first) == len(violation.decisions)
    return right


@pytest.mark.parametrize("number", range(4))
def test_anything_at_all_is_judged_as_brute_force_judges_it(number: int) -> None:
    """Verdicts without a simulation behind them: about half of these histories are wrong."""
    source = random.Random(number)

    def interval(span: int) -> tuple[int, int]:
        start = source.randrange(span)
        return start, source.randint(start + 1, span)

    judged = []
    for _ in range(1500):
        span = source.choice([4, 6, 10, 20])
        decisions = []
        for _ in range(source.randint(0, 5)):
            start, end = interval(span)
            allowed = source.random() < 0.5
            decisions.append(Decision(token="t", node="a", allowed=allowed, start=start, end=end))
        changes = []
        numbers = source.sample([None, None, None, None, 1, 2, 3, 4], 4)
        for given_number in numbers[: source.randint(0, 4)]:
            start, end = interval(span)
            outcome = source.choice([Outcome.ACKNOWLEDGED, Outcome.ACKNOWLEDGED, Outcome.IN_DOUBT])
            changes.append(
                Change(
                    tokens=("t",),
                    allows=source.random() < 0.5,
                    start=start,
                    end=end,
                    cause=source.choice(CAUSES),
                    outcome=outcome,
                    number=given_number,
                )
            )
        denied = (("t", "role"),) if source.random() < 0.3 else ()
        judged.append(_compare(History(decisions=tuple(decisions), changes=tuple(changes), denied_at_first=denied)))
    assert 0.3 < sum(judged) / len(judged) < 0.7


@given(st.lists(st.tuples(st.booleans(), intervals(SPAN)), min_size=1, max_size=20), intervals(SPAN))
@settings(max_examples=500)
def test_one_revocation_is_judged_by_the_formula(
    seen: list[tuple[bool, tuple[int, int, int]]], call: tuple[int, int, int]
) -> None:
    start, _, end = call
    latest = max((begun for allowed, (begun, _, _) in seen if allowed), default=start)
    earliest = min((ended for allowed, (_, _, ended) in seen if not allowed), default=end)
    found = violations(
        [Decision(token="t", node="a", allowed=allowed, start=a, end=b) for allowed, (a, _, b) in seen],
        [Change(tokens=("t",), allows=False, start=start, end=end)],
    )
    assert (not found) is (max(latest, start) < min(earliest, end))
    assert all(len(violation.decisions) <= 2 for violation in found)


@pytest.mark.parametrize("number", range(3))
def test_one_wrong_verdict_in_a_long_history_is_found(number: int) -> None:
    """30,000 decisions of 20 tokens on 3 nodes; a verdict that is altered far from any change cannot be right."""
    source = random.Random(number)
    decisions, changes = [], []
    for index in range(20):
        token, allowed, at = f"token {index}", True, 0
        for step in range(500):
            for node in "abc":
                start = at + source.randrange(500)
                decisions.append(
                    Decision(token=token, node=node, allowed=allowed, start=start, end=start + source.randint(1, 400))
                )
            at += 1000
            if step % 10 == 9:
                allowed = not allowed
                changes.append(Change(tokens=(token,), allows=allowed, start=at, end=at + source.randint(2, 900)))
                at += 1000
    source.shuffle(decisions)
    assert violations(decisions, changes) == []
    wrong = source.randrange(len(decisions))
    decisions[wrong] = replace(decisions[wrong], allowed=not decisions[wrong].allowed)
    found = violations(decisions, changes)
    assert [violation.decisions for violation in found] == [(decisions[wrong],)]
