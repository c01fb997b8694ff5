"""The same question as ``checker``, answered for a small history by trying every order of everything.

It shares no code with the checker: an order is right if nothing stands in it after something that it had preceded in
time, if each decision has the verdict of its place, and if the changes with numbers have the order of their numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

from tests.history.checker import Change, Decision, Outcome


def is_right(
    decisions: Sequence[Decision], changes: Sequence[Change], denied_at_first: Collection[tuple[str, str]] = ()
) -> bool:
    """Whether each token on each node has an order that explains its decisions."""
    tokens = {token for change in changes for token in change.tokens} | {d.token for d in decisions}
    for token in tokens:
        concerning = [c for c in changes if token in c.tokens and c.outcome is not Outcome.FAILED]
        denied = frozenset(cause for other, cause in denied_at_first if other == token)
        for node in {d.node for d in decisions if d.token == token} or {""}:
            here = [d for d in decisions if d.token == token and d.node == node]
            if not _explained([*here, *concerning], denied):
                return False
    return True


def smallest(
    decisions: Sequence[Decision], changes: Sequence[Change], denied_at_first: Collection[tuple[str, str]] = ()
) -> int | None:
    """The size of a smallest contradictory set of decisions; None if all are right."""
    for size in range(len(decisions) + 1):
        for chosen in combinations(decisions, size):
            if not is_right(chosen, changes, denied_at_first):
                return size
    return None


def _explained(left: list[Decision | Change], denied: frozenset[str]) -> bool:
    """Whether what is left can happen in some order from here on."""
    if all(isinstance(entry, Change) and entry.outcome is Outcome.IN_DOUBT for entry in left):
        return True
    for index, entry in enumerate(left):
        rest = left[:index] + left[index + 1 :]
        if any(_ends(other, entry) for other in rest):
            continue
        if isinstance(entry, Decision):
            if entry.allowed is not bool(denied) and _explained(rest, denied):
                return True
            continue
        if entry.number is not None and any(
            isinstance(other, Change) and other.number is not None and other.number < entry.number for other in rest
        ):
            continue
        after = denied - {entry.cause} if entry.allows else denied | {entry.cause}
        if _explained(rest, after):
            return True
    return False


def _ends(other: Decision | Change, entry: Decision | Change) -> bool:
    """Whether ``other`` had ended when ``entry`` started, so that it must be before it."""
    if isinstance(other, Change) and other.outcome is Outcome.IN_DOUBT:
        return False
    return other.end <= entry.start
