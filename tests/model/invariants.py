"""What must hold in every state, or at every step."""

from __future__ import annotations

from enum import StrEnum

from tests.model import barrier
from tests.model.configuration import Configuration
from tests.model.state import Call, Kind, Node, Phase, State, Store, Stored, allows


class Invariant(StrEnum):
    """The promise, and what the rules rest on."""

    REVOKED = "no allow begun after an answer"
    HISTORY = "acknowledged means in the history, and failed means not in it"
    LINEARIZABLE = "each node is linearizable"
    PAGE = "a page never falls"
    NUMBERS = "numbers are in commit order"
    BOUNDED = "every wait ends within bound and margin"


def broken(model: Configuration, state: State) -> Invariant | None:
    """The invariant that does not hold in this state."""
    store = state.store
    numbers = [change.number for change in store.changes]
    if any(later <= earlier for earlier, later in zip(numbers, numbers[1:], strict=False)):
        return Invariant.NUMBERS
    for k, call in enumerate(state.calls):
        if call.phase is Phase.ANSWERED:
            if not _in_history(model, store, call, k):
                return Invariant.HISTORY
            if any(_decides(node) and not _applied(store, node, call) for node in state.nodes):
                return Invariant.REVOKED
        elif call.phase in (Phase.FAILED, Phase.FAILED_OPEN):
            if any(change.call == k for change in store.changes):
                return Invariant.HISTORY
        elif call.phase is Phase.WAITING and call.age >= call.bound + model.margin:
            node = state.nodes[model.at[k]]
            if node.up and not any(after.calls[k].phase is Phase.ANSWERED for _, after in barrier.steps(model, state, k)):
                return Invariant.BOUNDED
    for node in state.nodes:
        if _decides(node) and node.cached is not allows(_history(store, node), node.page):
            revoked = node.cached and any(
                call.phase is Phase.ANSWERED and not allows(_history(store, node), call.number) for call in state.calls
            )
            return Invariant.REVOKED if revoked and _all_answered(state) else Invariant.LINEARIZABLE
    return None


def broken_by_step(before: State, after: State) -> Invariant | None:
    """The invariant that does not hold for this step. A node that was fenced begins with a new page."""
    for old, new in zip(before.nodes, after.nodes, strict=True):
        if new.page < old.page and not old.fenced:
            return Invariant.PAGE
    return None


def _decides(node: Node) -> bool:
    """Whether a request that begins now may be allowed or denied; also if its authority is down or frozen."""
    return node.lease > 0 and not node.fenced


def _history(store: Store, node: Node) -> tuple[Stored, ...]:
    return store.changes if node.era == store.era else store.before


def _all_answered(state: State) -> bool:
    return all(call.phase in (Phase.ANSWERED, Phase.IDLE) for call in state.calls)


def _applied(store: Store, node: Node, call: Call) -> bool:
    """Whether the node's page has what the call's answer promised."""
    if node.page < call.number:
        return False
    if node.era == call.era or store.accepted:
        return True
    return store.before[: call.number] == store.changes[: call.number]


def _in_history(model: Configuration, store: Store, call: Call, k: int) -> bool:
    """A promotion of a standby that lags loses changes; then REVOKED says that nobody decides by that history."""
    if call.nothing:
        return True
    made = Stored(call.number, model.kinds[k], k)
    if call.era == store.era:
        return made in store.changes
    return made in store.changes or (made in store.before and not model.synchronous)


