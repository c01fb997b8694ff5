"""What may go wrong, each kind a bounded number of times.

Not here, because they are runs without a transition of their own (``state``): a frozen node, a slow or cut connection,
a notification that is lost, or one that is forged and makes a node read the head.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model import failover
from tests.model.bugs import Bug
from tests.model.change import Step, with_node
from tests.model.configuration import Configuration
from tests.model.node import NAMES
from tests.model.state import ABSENT, OPEN, Call, Node, Phase, State

_LOST = frozenset({Phase.SNAPSHOT, Phase.STORED, Phase.WAITING, Phase.DOUBT_STORED, Phase.DOUBT_GONE})


def steps(model: Configuration, state: State) -> Iterator[Step]:
    """All faults that may happen next."""
    budget = state.budget
    for index, node in enumerate(state.nodes):
        name = NAMES[index]
        if node.up:
            if budget.crash:
                spent = state._replace(budget=budget._replace(crash=budget.crash - 1))
                yield f"{name}: its authority is killed; its workers serve until the lease ends", _dead(spent, index)
                if 0 <= node.row < node.page:
                    # An acknowledgement that was on its way arrives.
                    sent = with_node(spent, index, node._replace(row=node.page))
                    yield f"{name}: its authority is killed after it sent an acknowledgement", _dead(sent, index)
            if budget.kill:
                spent = state._replace(budget=budget._replace(kill=budget.kill - 1))
                yield f"{name}: is killed whole", _dead(with_node(spent, index, node._replace(lease=0)), index)
            if budget.stop and not _calls_at(model, state, index):
                spent = state._replace(budget=budget._replace(stop=budget.stop - 1))
                yield from _stopped(model, spent, index)
            if budget.cut and not node.cut:
                spent = state._replace(budget=budget._replace(cut=budget.cut - 1))
                yield f"{name}: is cut from the database", with_node(spent, index, node._replace(cut=True))
        if node.cut:
            yield f"{name}: reaches the database again", with_node(state, index, node._replace(cut=False))
        if Bug.NOTIFY_BELIEVED in model.bugs and budget.forge:
            spent = state._replace(budget=budget._replace(forge=budget.forge - 1))
            forged = node._replace(page=len(model.kinds))
            yield f"{name}: believes a forged notification of number {forged.page}", with_node(spent, index, forged)
    if budget.restart:
        yield _restarted(model, state)
        if Bug.CHANGE_NOT_DURABLE in model.bugs and state.store.changes:
            words, after = _restarted(model, state)
            store = after.store._replace(changes=after.store.changes[:-1])
            yield f"{words}, and has lost its last change", after._replace(store=store)
        if Bug.JOIN_NOT_DURABLE in model.bugs:
            words, after = _restarted(model, state)
            nodes = tuple(node._replace(row=ABSENT, marks=0) for node in after.nodes)
            yield f"{words}, and has lost the rows", after._replace(nodes=nodes)
    if budget.step:
        stepped = state.store._replace(stepped=True)
        spent = state._replace(budget=budget._replace(step=budget.step - 1))
        yield "the database's clock is put forward", spent._replace(store=stepped)
    if budget.promote:
        yield from failover.promotions(model, state)
    if budget.accept:
        yield from failover.accepted(model, state)


def _calls_at(model: Configuration, state: State, index: int) -> bool:
    """Whether a call is in progress at this node: a node that stops lets its calls end first."""
    over = (Phase.IDLE, Phase.ANSWERED, Phase.FAILED, Phase.IN_DOUBT)
    return any(at == index and call.phase not in over for at, call in zip(model.at, state.calls, strict=True))


def _dead(state: State, index: int) -> State:
    """The authority is gone. Its row stays under the old id; a new start has another one."""
    node = state.nodes[index]
    old, marks = (node.row, node.marks) if node.row >= 0 else (node.old, node.old_marks)
    dead = node._replace(up=False, row=ABSENT, marks=0, old=old, old_marks=marks, reply=ABSENT, left=0)
    return with_node(state, index, dead)


def without_clients(model: Configuration, state: State) -> State:
    """The calls at nodes that are down have no client any more."""
    calls = []
    for at, call in zip(model.at, state.calls, strict=True):
        if not state.nodes[at].up:
            if call.phase in (Phase.LOCKED, Phase.DOUBT_OPEN):
                call = call._replace(phase=Phase.IN_DOUBT_OPEN)
            elif call.phase in _LOST:
                call = Call(Phase.IN_DOUBT)
        calls.append(call)
    return state._replace(calls=tuple(calls))


def _stopped(model: Configuration, state: State, index: int) -> Iterator[Step]:
    """Rule 19: lease 0, then the row."""
    node = state.nodes[index]
    gone = node._replace(up=False, row=ABSENT, marks=0, reply=ABSENT, left=0)
    if Bug.ROW_BEFORE_LEASE not in model.bugs:
        gone = gone._replace(lease=0)
    yield f"{NAMES[index]}: stops and deletes its row", with_node(state, index, gone)


def _restarted(model: Configuration, state: State) -> Step:
    """The database stops at once and starts again: what was not committed is gone, and so are acknowledgements."""
    calls = []
    for call in state.calls:
        if call.phase is Phase.LOCKED:
            call = call._replace(phase=Phase.DOUBT_GONE)
        elif call.phase in OPEN:
            gone = {
                Phase.DOUBT_OPEN: call._replace(phase=Phase.DOUBT_GONE),
                Phase.IN_DOUBT_OPEN: Call(Phase.IN_DOUBT),
                Phase.FAILED_OPEN: Call(Phase.FAILED, call.number, era=call.era),
            }
            call = gone[call.phase]
        elif call.phase is Phase.STORED:
            call = call._replace(phase=Phase.DOUBT_STORED)
        elif call.phase is Phase.SNAPSHOT:
            call = Call()
        calls.append(call)
    marks = 0
    if Bug.RENEWAL_NOT_DURABLE in model.bugs:
        # The counter of renewals is what it was when the rows were read.
        marks = sum(1 << k for k, call in enumerate(state.calls) if call.seen >= 0)
    nodes = tuple(_forgotten(node, marks) for node in state.nodes)
    budget = state.budget._replace(restart=state.budget.restart - 1)
    words = "the database restarts, without the acknowledgements"
    return words, state._replace(calls=tuple(calls), nodes=nodes, budget=budget)


def _forgotten(node: Node, marks: int) -> Node:
    if node.row >= 0:
        node = node._replace(row=0, marks=node.marks | marks)
    return node._replace(old=0) if node.old >= 0 else node
