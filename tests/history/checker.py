"""The history checker: what clients saw on several nodes, judged against the promise.

The promise: after the revoking call has answered, no request that begins later is accepted on any node. Before that
answer nodes may differ. Each node is linearizable by itself, and a change comes into force on a node at some moment
between call and answer. So the checker looks at each token on each node alone. It looks for moments at which the
changes came into force on that node, such that each decision has the verdict of some moment between its start and its
end. If there are none, the history is a violation. For one revocation that nothing takes back, that is the formula

    max(latest start of an allow, start of the call) < min(earliest end of a deny, end of the call)

which must hold on each node.

How to record a history:

- All times are nanoseconds of one clock that all clients share (``time.monotonic_ns()`` on one machine). The start is
  read before the first byte is sent, the end after the verdict has been received; the end is later than the start.
- A *token* is all that has a verdict of its own: if a scope is removed, "token 7" and "token 7, write" are two.
- A decision is a verdict: 200 is an allow, 401 and 403 are denies. An answer 503 (lease over, store away) and a request
  without an answer are no verdicts and are left out. If the backend got a request whose answer was lost, then it is an
  allow that ended when the backend got it.
- A change that was retried with the same ``Idempotency-Key`` is one change: from the first call to the last answer. If
  the answer says that certainly nothing was changed, it failed; if no answer says what happened, it is in doubt.
- A change concerns all tokens whose verdict depends on it (a role: each token that has only this role). A token is
  allowed while no *cause* forbids it. Revocation, suspension and a role are three causes: each is set to and fro by
  its own changes.
- A token that does not exist yet is denied: name ``(token, cause)`` in ``denied_at_first``, and let the mint be a
  change with this cause that allows it. (Rotation: one change that forbids the old token, one that allows the new.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from operator import attrgetter
from typing import Final

from tests.history import register


class Outcome(StrEnum):
    """What the caller of a change learned."""

    ACKNOWLEDGED = "acknowledged"
    """It is in force: it came into force on each node between ``start`` and ``end``."""
    IN_DOUBT = "in doubt"
    """It may have come into force, or may still do so at any moment until the end of the history, or never will."""
    FAILED = "failed"
    """Certainly nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One verdict that a client saw. Times are nanoseconds, ``start < end``."""

    token: str
    node: str
    allowed: bool
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One call that changes verdicts. Times are nanoseconds, ``start < end``; the end of one in doubt has no meaning.

    ``number`` is the change's number in the store, if it is known. Changes with numbers came into force in their order,
    and one in doubt that has a number is known to come into force, at an unknown moment after its start. Without
    numbers every order is tried that the times permit.
    """

    tokens: tuple[str, ...]
    allows: bool
    start: int
    end: int
    cause: str = "token"
    outcome: Outcome = Outcome.ACKNOWLEDGED
    number: int | None = None
    name: str = ""
    """How a report names it, such as ``revoke``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """Decisions on one node that cannot all be true; ``str()`` says it in words.

    ``decisions``: nothing can be left out of them, and no smaller set of the decisions until the last of them is
    contradictory (proven by trial for up to ``TRIALS`` smaller sets; beyond that, it is only certain that nothing can
    be left out). Empty: the numbers of ``changes`` contradict the times of the calls.
    ``changes``: those of the token that bear on the decisions: the last of each cause that had ended before they
    began, and all that were under way until they had ended.
    """

    token: str
    node: str
    decisions: tuple[Decision, ...]
    changes: tuple[Change, ...]

    def __str__(self) -> str:
        entries: list[Decision | Change] = [*self.decisions, *self.changes]
        entries.sort(key=attrgetter("start", "end"))
        origin = entries[0].start
        if not self.decisions:
            head = f"{self.token}: the numbers of these changes contradict the times of their calls:"
        elif len(self.decisions) == 1:
            head = f"{self.token} on {self.node}: this verdict was false at every moment of its request:"
        else:
            head = f"{self.token} on {self.node}: there is no moment for the changes at which all these are true:"
        return "\n".join([head, *(f"  {_times(entry, origin)}  {_words(entry)}" for entry in entries)])


TRIALS: Final = 20_000


def violations(
    decisions: Iterable[Decision],
    changes: Iterable[Change],
    *,
    denied_at_first: Collection[tuple[str, str]] = (),
) -> list[Violation]:
    """The first violation of each token on each node, by the time at which it was seen; empty: the history is right.

    Exact. O(n log n) in the decisions; exponential only in the number of changes of one token that overlap in time.
    Raises ValueError for a decision or a change that does not end after its start.
    """
    seen: defaultdict[tuple[str, str], list[Decision]] = defaultdict(list)
    for decision in decisions:
        if decision.start >= decision.end:
            raise ValueError(f"a decision ends before it has begun: {decision}")
        seen[decision.token, decision.node].append(decision)
    concerned: defaultdict[str, list[Change]] = defaultdict(list)
    for change in changes:
        if change.outcome is Outcome.FAILED:
            continue
        if change.start >= change.end and change.outcome is Outcome.ACKNOWLEDGED:
            raise ValueError(f"a change ends before it has begun: {change}")
        for token in change.tokens:
            concerned[token].append(change)
    denied: defaultdict[str, set[str]] = defaultdict(set)
    for token, cause in denied_at_first:
        denied[token].add(cause)

    found = []
    registers = {}
    for token in {token for token, _ in seen} | concerned.keys():
        pair = _misnumbered(concerned[token])
        if pair is not None:
            found.append(Violation(token=token, node="every node", decisions=(), changes=pair))
        else:
            registers[token] = _register(concerned[token], denied[token])
    for (token, node), group in seen.items():
        if token in registers:
            group.sort(key=attrgetter("end"))
            failed = registers[token].first_failure(group)
            if failed is not None:
                smallest = _smallest(registers[token], group[: failed + 1])
                found.append(
                    Violation(
                        token=token,
                        node=node,
                        decisions=tuple(sorted(smallest, key=attrgetter("start"))),
                        changes=_bearing(concerned[token], smallest),
                    )
                )
    return sorted(found, key=_seen_at)


def _seen_at(violation: Violation) -> tuple[int, str, str]:
    return max(entry.end for entry in (violation.decisions or violation.changes)), violation.token, violation.node


def _register(changes: Sequence[Change], denied: Collection[str]) -> register.Register:
    causes = {cause: 1 << place for place, cause in enumerate(sorted({c.cause for c in changes} | set(denied)))}
    return register.Register(
        (
            register.Write(
                start=change.start,
                end=None if change.outcome is Outcome.IN_DOUBT else change.end,
                cause=causes[change.cause],
                allows=change.allows,
                number=change.number,
            )
            for change in changes
        ),
        sum(causes[cause] for cause in denied),
    )


def _misnumbered(changes: Sequence[Change]) -> tuple[Change, Change] | None:
    """Two changes of which the one with the greater number had ended before the other began."""
    latest: Change | None = None
    for change in sorted((c for c in changes if c.number is not None), key=attrgetter("number")):
        if latest is not None and change.outcome is Outcome.ACKNOWLEDGED and change.end <= latest.start:
            return change, latest
        if latest is None or change.start > latest.start:
            latest = change
    return None


def _smallest(truth: register.Register, group: list[Decision]) -> list[Decision]:
    """A smallest contradictory subset. ``group`` is sorted by end, contradictory, and not so without its last one."""

    def contradictory(chosen: list[Decision]) -> bool:
        return truth.first_failure(chosen) is not None

    # Every contradictory subset has the last decision. From it backwards, take the latest that is still needed.
    needed = [group[-1]]
    rest = group[:-1]
    while not contradictory(needed):
        low, high = 0, len(rest) - 1  # the greatest k for which rest[k:] and the needed ones are contradictory
        while low < high:
            middle = (low + high + 1) // 2
            if contradictory(rest[middle:] + needed):
                low = middle
            else:
                high = middle - 1
        needed.insert(0, rest[low])
        needed.sort(key=attrgetter("end"))
        rest = rest[low + 1 :]
    trials = TRIALS
    for size in range(1, len(needed) - 1):
        for others in combinations(reversed(group[:-1]), size):
            trials -= 1
            if trials < 0:
                return needed
            if contradictory([*reversed(others), group[-1]]):
                return [*others, group[-1]]
    return needed


def _bearing(changes: Sequence[Change], decisions: Sequence[Decision]) -> tuple[Change, ...]:
    begin, end = min(d.start for d in decisions), max(d.end for d in decisions)
    before: dict[str, Change] = {}
    during = []
    for change in sorted(changes, key=attrgetter("start")):
        if change.outcome is Outcome.ACKNOWLEDGED and change.end <= begin:
            if change.cause not in before or change.end > before[change.cause].end:
                before[change.cause] = change
        elif change.start < end:
            during.append(change)
    return tuple(sorted((*before.values(), *during), key=attrgetter("start")))


def _times(entry: Decision | Change, origin: int) -> str:
    end = f"{(entry.end - origin) / 1e6:.3f} ms"
    if isinstance(entry, Change) and entry.outcome is Outcome.IN_DOUBT:
        end = "open"
    return f"{(entry.start - origin) / 1e6:10.3f} ms to {end:<14}"


def _words(entry: Decision | Change) -> str:
    if isinstance(entry, Decision):
        return "allowed" if entry.allowed else "denied"
    number = "" if entry.number is None else f", number {entry.number}"
    name = entry.name or "change"
    return f"{name} ({entry.outcome}{number}): {'allows' if entry.allows else 'forbids'}, cause {entry.cause}"
