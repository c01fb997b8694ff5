"""What must hold in every state, or at every step."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from itertools import pairwise

from tests.model import barrier
from tests.model.configuration import Configuration
from tests.model.state import Call, Node, Phase, State, Store, Stored, allows, head, kept


class Invariant(StrEnum):
    """The promise, and what the rules rest on."""

    REVOKED = "no allow begun after an answer"
    HISTORY = "acknowledged means in the history, and failed means not in it"
    LINEARIZABLE = "each node is linearizable"
    PAGE = "a page never falls"
    NUMBERS = "numbers are in commit order"
    BOUNDED = "every wait ends within bound and margin"


def broken(model: Configuration, state: State) -> Iterator[Invariant]:
    """The invariants that do not hold in this state."""
    store = state.store
    numbers = [change.number for change in store.changes]
    if any(later <= earlier for earlier, later in pairwise(numbers)):
        yield Invariant.NUMBERS
    for k, call in enumerate(state.calls):
        if call.phase is Phase.ANSWERED:
            if not _in_history(model, store, call, k):
                yield Invariant.HISTORY
            if any(_decides(node) and _violates(store, node, call) for node in state.nodes):
                yield Invariant.REVOKED
        elif call.phase in (Phase.FAILED, Phase.FAILED_OPEN):
            if any(change.call == k for change in store.changes):
                yield Invariant.HISTORY
        elif call.phase is Phase.WAITING and call.age >= call.bound + model.margin:
            node = state.nodes[model.at[k]]
            if node.up and all(after.calls[k].phase is Phase.WAITING for _, after in barrier.steps(model, state, k)):
                yield Invariant.BOUNDED
    for node in state.nodes:
        history = _history(store, node)
        # A page that is ahead of the store (only a bug makes one) is none that a verdict can be compared with.
        if _decides(node) and node.page <= head(history) and node.cached is not allows(history, node.page):
            yield Invariant.LINEARIZABLE


def broken_by_step(model: Configuration, before: State, after: State) -> Iterator[Invariant]:
    """The invariants that do not hold for this step. A node that was fenced begins with a new page."""
    for at, called, call in zip(model.at, before.calls, after.calls, strict=True):
        answers = call.phase is Phase.ANSWERED and called.phase is not Phase.ANSWERED
        # A node that knows the present history acknowledges nothing that is not in it.
        if answers and after.nodes[at].era == after.store.era and not kept(after.store, call):
            yield Invariant.HISTORY
    for old, new in zip(before.nodes, after.nodes, strict=True):
        if new.page < old.page and not old.fenced:
            yield Invariant.PAGE


def _decides(node: Node) -> bool:
    """Whether a request that begins now may be allowed or denied; also if its authority is down or frozen."""
    return node.lease > 0 and not node.fenced


def _history(store: Store, node: Node) -> tuple[Stored, ...]:
    return store.changes if node.era == store.era else store.before


def _violates(store: Store, node: Node, call: Call) -> bool:
    """Whether a request that begins at the node now may get a verdict that the call's answer has ruled out."""
    return not _applied(store, node, call) or (node.cached and _revoked(store, node, call))


def _applied(store: Store, node: Node, call: Call) -> bool:
    """Whether the node's page has what the call's answer promised. What an operator gave up is promised no more."""
    if kept(store, call):
        return node.page >= call.number
    return store.accepted or (node.era == call.era and node.page >= call.number)


def _revoked(store: Store, node: Node, call: Call) -> bool:
    """Whether X has been revoked in the node's history since before the answer, by every prefix of it."""
    history = _history(store, node)
    known = kept(store, call) or node.era == call.era
    return known and not any(allows(history, until) for until in range(call.number, head(history) + 1))


def _in_history(model: Configuration, store: Store, call: Call, k: int) -> bool:
    """A promotion of a standby that lags loses changes; then REVOKED says that nobody decides by that history."""
    if call.nothing:
        return True
    made = Stored(call.number, model.kinds[k], k)
    if call.era == store.era:
        return made in store.changes
    return made in store.changes or (made in store.before and not model.synchronous)
