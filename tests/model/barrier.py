"""Rules 12 to 16: how a call waits until every node has its change, or can decide nothing any more."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.bugs import Bug
from tests.model.change import Step, over, reaches_store, with_call
from tests.model.configuration import Configuration
from tests.model.node import NAMES
from tests.model.state import ABSENT, Node, Phase, State, kept


def steps(model: Configuration, state: State, k: int) -> Iterator[Step]:
    """What call ``k``, which waits, may do next."""
    call, bugs = state.calls[k], model.bugs
    at = model.at[k]
    who = f"call {k + 1} ({model.kinds[k]}, {NAMES[at]})"
    node = state.nodes[at]
    reaches = reaches_store(state.store, node)
    if Bug.POLL_UNCOMPARED in bugs:
        reaches = node.up and not node.fenced and not node.cut
    # 11, 16: its number means nothing in another history, unless the change is there.
    if node.era != call.era and Bug.WAIT_OVER_A_NEW_HISTORY not in bugs and not kept(state.store, call):
        yield f"{who}: its node follows another history; answers in doubt", over(state, k, Phase.IN_DOUBT)
        return
    due = call.age >= call.bound + (0 if Bug.NO_MARGIN in bugs else model.margin)
    if reaches:
        # 13: a snapshot of the rows; what is remembered of it is which rows have not been renewed since.
        if call.seen < 0:
            yield f"{who}: reads the rows", _looked(state, k)
        # 14
        if _complete(model, state, k):
            yield f"{who}: every row has number {call.number} or is gone; answers", over(state, k, Phase.ANSWERED)
        # 15: the rows that have not been renewed for a whole bound and margin
        reaped = _reap(model, state, k, due=due)
        if reaped is not None:
            yield f"{who}: deletes the rows that were not renewed", reaped
    # 15, 16: it answers whatever it deleted, also without the database
    if due and Bug.WAIT_FOR_THE_ROW not in bugs and (reaches or Bug.WAIT_FOR_THE_DATABASE not in bugs):
        yield f"{who}: the longest wait is over; answers", over(state, k, Phase.ANSWERED)


def _complete(model: Configuration, state: State, k: int) -> bool:
    call = state.calls[k]
    if Bug.OWN_NODE_ONLY in model.bugs:
        return state.nodes[model.at[k]].page >= call.number
    for index, node in enumerate(state.nodes):
        if call.rows >> index & 1 and (0 <= node.row < call.number or 0 <= node.old < call.number):
            return False
    return True


def _looked(state: State, k: int) -> State:
    call = state.calls[k]
    nodes = tuple(
        node._replace(
            marks=node.marks | 1 << k if node.row >= 0 else 0,
            old_marks=node.old_marks | 1 << k if node.old >= 0 else 0,
        )
        for node in state.nodes
    )
    return with_call(state._replace(nodes=nodes), k, call._replace(seen=0, reap_bound=state.store.bound))


def _reap(model: Configuration, state: State, k: int, *, due: bool) -> State | None:
    call, bugs = state.calls[k], model.bugs
    bound = call.bound if Bug.REAP_BY_OLD_BOUND in bugs else call.reap_bound
    long_ago = call.seen >= bound + (0 if Bug.NO_MARGIN in bugs else model.margin)
    compared = True
    if Bug.REAP_AFTER_A_LATE_LOOK in bugs:
        long_ago = call.seen >= 0
    if Bug.REAP_BY_ROW_TIME in bugs:
        compared, long_ago = False, True
        due = due or state.store.stepped
    if Bug.REAP_UNCOMPARED in bugs:
        compared = False
    if not (due and long_ago):
        return None
    nodes = tuple(_without(node, call.number, 1 << k if compared else 0) for node in state.nodes)
    return None if nodes == state.nodes else state._replace(nodes=nodes)


def _without(node: Node, number: int, bit: int) -> Node:
    """The node without its rows that lack the number; with a bit, only those that were not renewed since."""
    if 0 <= node.row < number and (not bit or node.marks & bit):
        node = node._replace(row=ABSENT, marks=0)
    if 0 <= node.old < number and (not bit or node.old_marks & bit):
        node = node._replace(old=ABSENT, old_marks=0)
    return node
