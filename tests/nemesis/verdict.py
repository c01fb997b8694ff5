"""Judges a run: what clients recorded against the promise, and what was acknowledged against the store's audit log.

Every acknowledged change must have left its event: the number of events of one action about one target lies between
the number of acknowledged changes and that plus the attempts in doubt, each of which may have been executed or not. A
token is revoked once, however often that is acknowledged.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.history.checker import Outcome, Violation, violations
from tests.nemesis.record import Record, Recorded

_WORDS: Final = 12
Event = dict[str, Any]


@dataclass(kw_only=True, slots=True)
class Verdict:
    decisions: int = 0
    changes: int = 0
    doubts: int = 0
    violations: list[Violation] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Acknowledged changes without an event in the audit log."""
    twice: list[str] = field(default_factory=list)
    """Events that no change explains."""
    problems: list[str] = field(default_factory=list)
    allowed: Counter[str] = field(default_factory=Counter)
    """How many requests each node has allowed."""
    kinds: Counter[str] = field(default_factory=Counter)
    other: Counter[str] = field(default_factory=Counter)
    waits: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from call to acknowledgement, sorted, by kind of change."""

    def passed(self) -> bool:
        return not (self.violations or self.lost or self.twice or self.problems)

    def faults(self) -> list[str]:
        """Everything that is wrong, in words; the first ones of each kind."""
        named = (
            ("violation", [str(each) for each in self.violations]),
            ("lost", self.lost),
            ("twice", self.twice),
            ("problem", self.problems),
        )
        return [f"{kind}: {text}" for kind, texts in named for text in texts[:_WORDS]]


def judge(records: Sequence[Record], events: Iterable[Event]) -> Verdict:
    """The verdict on a run with these records, whose store has these audit events."""
    verdict = Verdict()
    waits: defaultdict[str, list[float]] = defaultdict(list)
    for record in records:
        verdict.decisions += len(record.decisions)
        verdict.problems += record.problems
        verdict.other.update(record.other)
        verdict.allowed.update(f"n{node}" for node in record.decisions.allowed())
        verdict.violations += violations(
            record.judged(), [each.change() for each in record.changes], denied_at_first=record.unborn
        )
        for change in record.changes:
            if change.outcome is Outcome.IN_DOUBT:
                verdict.doubts += 1
            elif change.action:
                verdict.kinds[change.kind] += 1
                waits[change.kind].append((change.end - change.start) / 1e9)
    verdict.changes = sum(verdict.kinds.values())
    verdict.waits = {kind: sorted(times) for kind, times in waits.items()}
    verdict.lost, verdict.twice = compare([change for record in records for change in record.changes], events)
    return verdict


def compare(changes: Iterable[Recorded], events: Iterable[Event]) -> tuple[list[str], list[str]]:
    """What was acknowledged and is not in the audit log, and what is there more often than it was done."""
    logged = Counter((str(event["action"]), str(event["target_id"])) for event in events)
    done: Counter[tuple[str, str]] = Counter()
    doubtful: Counter[tuple[str, str]] = Counter()
    repeated: dict[tuple[str, str], list[Recorded]] = defaultdict(list)
    for change in changes:
        key = change.action, change.target
        if not change.action or not change.target:
            continue
        repeated[key].append(change)
        (doubtful if change.outcome is Outcome.IN_DOUBT else done)[key] += 1
    lost, twice = [], []
    for key, attempts in repeated.items():
        # Revoking at two nodes at once, or after an attempt in doubt, is one change that is acknowledged twice.
        once = key[0] == "account.pat.revoke"
        least = min(1, done[key]) if once else done[key]
        most = 1 if once else done[key] + doubtful[key]
        if logged[key] < least:
            lost.append(f"{key[0]} {key[1]}: {logged[key]} events, {done[key]} acknowledged: {_times(attempts)}")
        if logged[key] > most:
            twice.append(f"{key[0]} {key[1]}: {logged[key]} events, {done[key]} acknowledged: {_times(attempts)}")
    return lost, twice


def _times(attempts: Sequence[Recorded]) -> str:
    return "; ".join(f"{each.kind} at n{each.node} {each.outcome} {each.start}..{each.end}" for each in attempts)


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies; 0 without any."""
    if not sorted_values:
        return 0.0
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]
