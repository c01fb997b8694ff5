"""Rules 8 to 11: the transaction of a change, and what is done when the outcome of its COMMIT is unknown."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.bugs import Bug
from tests.model.configuration import Configuration
from tests.model.node import NAMES, raised
from tests.model.state import OPEN, Call, Kind, Node, Phase, State, Store, Stored, allows, head

Step = tuple[str, State]


def steps(model: Configuration, state: State, k: int) -> Iterator[Step]:
    """What call ``k`` may do next until its wait begins."""
    call = state.calls[k]
    at = model.at[k]
    node = state.nodes[at]
    phase = call.phase
    who = f"call {k + 1} ({model.kinds[k]}, {NAMES[at]})"
    if phase in (Phase.IDLE, Phase.SNAPSHOT):
        if reaches_store(state.store, node):
            yield from _begin(model, state, k, who)
    elif phase is Phase.LOCKED:
        yield f"{who}: COMMIT of number {call.number} takes place", _store(model, state, k, Phase.STORED)
        if state.budget.doubt:
            lost = _spent(with_call(state, k, call._replace(phase=Phase.DOUBT_OPEN)))
            yield f"{who}: the connection is lost at COMMIT", lost
    elif phase is Phase.STORED:
        yield from _returned(model, state, k, who)
        if state.budget.doubt:
            lost = _spent(with_call(state, k, call._replace(phase=Phase.DOUBT_STORED)))
            yield f"{who}: the connection is lost after COMMIT took place", lost
    elif phase in (Phase.DOUBT_OPEN, Phase.DOUBT_STORED, Phase.DOUBT_GONE):
        yield from _doubt(model, state, k, who)
    if phase in (Phase.DOUBT_OPEN, Phase.IN_DOUBT_OPEN, Phase.FAILED_OPEN):
        stored, gone = {
            Phase.DOUBT_OPEN: (Phase.DOUBT_STORED, Phase.DOUBT_GONE),
            Phase.IN_DOUBT_OPEN: (Phase.IN_DOUBT, Phase.IN_DOUBT),
            Phase.FAILED_OPEN: (Phase.FAILED, Phase.FAILED),
        }[phase]
        yield f"{who}: the COMMIT without a client takes place", _store(model, state, k, stored)
        yield f"{who}: the transaction without a client is rolled back", with_call(state, k, _over(call, gone))


def reaches_store(store: Store, node: Node) -> bool:
    """Whether a call at this node can use the present primary."""
    return node.up and not node.fenced and not node.cut and node.era == store.era


def _begin(model: Configuration, state: State, k: int, who: str) -> Iterator[Step]:
    """Rules 8 and 9: the lock, the head, and whether there is anything to do."""
    call, store, bugs = state.calls[k], state.store, model.bugs
    free = Bug.NO_LOCK in bugs or not any(other.phase in OPEN for other in state.calls)
    if call.phase is Phase.IDLE:
        newest = head(store.changes)
        nothing = _nothing_to_do(model.kinds[k], store)
        bound = model.bound if Bug.BOUND_FROM_MEMORY in bugs else store.bound
        rows = -1
        if Bug.ROWS_OF_THE_TRANSACTION in bugs:
            rows = sum(1 << index for index, node in enumerate(state.nodes) if node.row >= 0)
        number = newest if nothing else newest + 1
        call = Call(Phase.SNAPSHOT, number, nothing, bound=bound, rows=rows, era=store.era)
        if Bug.REPEATABLE_READ in bugs:
            yield f"{who}: its snapshot has head {newest}", with_call(state, k, call)
            return
    if not free:
        return
    if call.nothing:
        waits = Bug.NOTHING_TO_DO_AT_ONCE not in bugs
        after = call._replace(phase=Phase.WAITING) if waits else _over(call, Phase.ANSWERED)
        yield f"{who}: sees number {call.number} and has nothing to do", with_call(state, k, after)
        return
    locked = with_call(state, k, call._replace(phase=Phase.LOCKED))
    if Bug.NUMBER_BEFORE_COMMIT in bugs and model.kinds[k] is Kind.OTHER:
        node = locked.nodes[model.at[k]]
        locked = with_node(locked, model.at[k], node._replace(page=max(node.page, call.number)))
    yield f"{who}: locks the head and executes number {call.number}", locked


def _nothing_to_do(kind: Kind, store: Store) -> bool:
    if kind is Kind.REVOKE:
        return not allows(store.changes, head(store.changes))
    if kind is Kind.RESTORE:
        return allows(store.changes, head(store.changes))
    return False


def _store(model: Configuration, state: State, k: int, phase: Phase) -> State:
    """Rule 10: the change, its number and its mark (the call's index stands for it), durably."""
    call, kind, store = state.calls[k], model.kinds[k], state.store
    bound = {Kind.RAISE: model.own, Kind.LOWER: 1}.get(kind, store.bound)
    changes = (*store.changes, Stored(call.number, kind, k))
    return with_call(state._replace(store=store._replace(changes=changes, bound=bound)), k, _over(call, phase))


def _returned(model: Configuration, state: State, k: int, who: str) -> Iterator[Step]:
    call, at, bugs = state.calls[k], model.at[k], model.bugs
    if Bug.OWN_KEYS_ONLY in bugs:
        node = state.nodes[at]
        own = tuple(change for change in state.store.changes if change.call == k)
        state = with_node(state, at, raised(model, own, node, call.number))
    if Bug.ANSWER_AT_ONCE in bugs:
        yield f"{who}: COMMIT returns; answers", with_call(state, k, _over(call, Phase.ANSWERED))
    else:
        waiting = with_call(state, k, call._replace(phase=Phase.WAITING))
        yield f"{who}: COMMIT returns; waits for the nodes", waiting


def _doubt(model: Configuration, state: State, k: int, who: str) -> Iterator[Step]:
    """Rule 11: with the lock, which waits for the old transaction, the mark is there or it is not."""
    call, bugs = state.calls[k], model.bugs
    reaches = reaches_store(state.store, state.nodes[model.at[k]])
    given_up = Phase.IN_DOUBT_OPEN if call.phase is Phase.DOUBT_OPEN else Phase.IN_DOUBT
    yield f"{who}: gets no answer about the mark; answers in doubt", with_call(state, k, _over(call, given_up))
    if Bug.DOUBT_IS_SUCCESS in bugs:
        yield f"{who}: takes it for success", with_call(state, k, call._replace(phase=Phase.WAITING))
    elif reaches and call.phase is Phase.DOUBT_STORED:
        after = Phase.ANSWERED if Bug.RESOLVED_AT_ONCE in bugs else Phase.WAITING
        yield f"{who}: finds its mark; {after.name.lower()}", with_call(state, k, call._replace(phase=after))
    elif reaches and (call.phase is Phase.DOUBT_GONE or Bug.RESOLVED_WITHOUT_LOCK in bugs):
        after = Phase.FAILED if call.phase is Phase.DOUBT_GONE else Phase.FAILED_OPEN
        yield (
            f"{who}: does not find its mark; answers that nothing was changed",
            with_call(state, k, _over(call, after)),
        )


def _over(call: Call, phase: Phase) -> Call:
    """The call in this phase; what only a waiting call needs is forgotten."""
    if phase in (Phase.ANSWERED, Phase.FAILED):
        return Call(phase, call.number, call.nothing, era=call.era)
    if phase is Phase.IN_DOUBT:
        return Call(phase)
    return call._replace(phase=phase)


def over(state: State, k: int, phase: Phase) -> State:
    """The state after call ``k`` has got its answer, with its marks on the rows forgotten."""
    bit = ~(1 << k)
    nodes = tuple(
        node._replace(marks=node.marks & bit, old_marks=node.old_marks & bit) if node.marks or node.old_marks else node
        for node in state.nodes
    )
    return with_call(state._replace(nodes=nodes), k, _over(state.calls[k], phase))


def tick(model: Configuration, call: Call) -> Call:
    """A tick passes; beyond the longest wait it makes no difference."""
    if call.phase is Phase.WAITING or (
        Bug.TIMED_BEFORE_COMMIT in model.bugs and call.phase in (Phase.LOCKED, Phase.STORED)
    ):
        longest = max(model.own, model.bound) + model.margin
        seen = min(call.seen + 1, longest) if call.seen >= 0 else -1
        return call._replace(age=min(call.age + 1, longest), seen=seen)
    return call


def _spent(state: State) -> State:
    return state._replace(budget=state.budget._replace(doubt=state.budget.doubt - 1))


def with_call(state: State, k: int, call: Call) -> State:
    """The state with another call ``k``."""
    first, second = state.calls
    return State(state.store, state.nodes, (first, call) if k else (call, second), state.budget)


def with_node(state: State, index: int, node: Node) -> State:
    """The state with another node ``index``."""
    first, second = state.nodes
    return State(state.store, (first, node) if index else (node, second), state.calls, state.budget)
