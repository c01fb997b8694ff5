"""Breadth first through all states, to the shortest run that breaks an invariant, or to the end."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.model import barrier, change, failover, faults, node
from tests.model.bugs import Bug
from tests.model.change import Step, with_node
from tests.model.configuration import Configuration
from tests.model.invariants import Invariant, broken, broken_by_step
from tests.model.node import NAMES
from tests.model.state import Call, Kind, Node, Phase, State, Store


@dataclass(frozen=True, kw_only=True)
class Explored:
    """``seconds`` of processor time. ``trace``: the steps to the broken invariant, and what they lead to."""

    states: int
    steps: int
    depth: int
    seconds: float
    broken: Invariant | None = None
    trace: tuple[str, ...] = ()
    complete: bool = True

    def __str__(self) -> str:
        size = f"{self.states:,} states, {self.steps:,} steps, depth {self.depth}, {self.seconds:.1f} s"
        if self.broken is None:
            return size if self.complete else f"{size}, not all"
        lines = (f"{number:4}. {step}" for number, step in enumerate(self.trace, 1))
        return "\n".join([f"broken: {self.broken}", *lines, f"      ({size})"])


class Explorer:
    """The transitions of a configuration; what a node does by itself is computed once for each of its states."""

    def __init__(self, model: Configuration) -> None:
        self.model = model
        self._shared = Bug.SHARED_ID in model.bugs
        self._nodes: dict[tuple[Store, Node, int], list[tuple[str, Node]]] = {}
        self._ticked: dict[Node, Node] = {}
        self._called: dict[Call, Call] = {}

    def successors(self, state: State) -> Iterator[Step]:
        """All next states, with what happened."""
        model, store = self.model, state.store
        for index, one in enumerate(state.nodes):
            key = (store, one, index)
            known = self._nodes.get(key)
            if known is None:
                known = self._nodes[key] = self._steps_of_node(store, one, index)
            for words, after in known:
                yield words, self._with_node(state, index, after)
            if one.fenced and one.up and store.accepted:
                yield failover.adopted(model, state, index)
        for k, call in enumerate(state.calls):
            if call.phase is Phase.WAITING:
                yield from barrier.steps(model, state, k)
            elif model.kinds[k] is not Kind.NONE and call.phase not in (Phase.ANSWERED, Phase.FAILED, Phase.IN_DOUBT):
                yield from change.steps(model, state, k)
        if any(state.budget):
            for words, after_fault in faults.steps(model, state):
                yield words, faults.without_clients(model, after_fault)
        yield "a tick passes", self._tick(state)

    def _steps_of_node(self, store: Store, one: Node, index: int) -> list[tuple[str, Node]]:
        if not one.up:
            found = [(f"{NAMES[index]}: its authority starts", one._replace(up=True))]
            if one.lease and Bug.ROW_BEFORE_LEASE in self.model.bugs:
                found.append((f"{NAMES[index]}: ends its lease", one._replace(lease=0)))
            return found
        if self.model.quiet and index == 0 and not one.fenced and one.era != store.era:
            return [failover.connected(self.model, store, one, NAMES[index])]
        if one.fenced or (self.model.quiet and index == 0):
            return []
        if one.era != store.era:
            return failover.steps_elsewhere(self.model, store, one, index)
        return node.steps(self.model, store, one, index)

    def _with_node(self, state: State, index: int, after: Node) -> State:
        if self._shared:
            nodes = [one._replace(row=after.row, marks=after.marks) for one in state.nodes]
            nodes[index] = after
            return state._replace(nodes=tuple(nodes))
        return with_node(state, index, after)

    def _tick(self, state: State) -> State:
        nodes = []
        for one in state.nodes:
            after = self._ticked.get(one)
            if after is None:
                after = self._ticked[one] = node.tick(self.model, one)
            nodes.append(after)
        calls = []
        for call in state.calls:
            later = self._called.get(call)
            if later is None:
                later = self._called[call] = change.tick(self.model, call)
            calls.append(later)
        return state._replace(nodes=tuple(nodes), calls=tuple(calls))


def canonical(state: State) -> State:
    """Of a state and its mirror image the one that is kept, where nodes and calls can be exchanged."""
    one, other = state.nodes
    first, second = state.calls
    if (one, first) <= (other, second):
        return state
    swapped = (_mirrored(other), _mirrored(one))
    return state._replace(nodes=swapped, calls=(second, first), store=_renamed(state.store))


def _mirrored(one: Node) -> Node:
    if not one.marks and not one.old_marks:
        return one
    flip = (0, 2, 1, 3)
    return one._replace(marks=flip[one.marks], old_marks=flip[one.old_marks])


def _renamed(store: Store) -> Store:
    changes = tuple(c._replace(call=1 - c.call) if c.call >= 0 else c for c in store.changes)
    before = tuple(c._replace(call=1 - c.call) if c.call >= 0 else c for c in store.before)
    return store._replace(changes=changes, before=before)


def explore(model: Configuration, *, aim: Invariant | None = None, limit: int | None = None) -> Explored:
    """Visit every state, about ``limit`` of them at most, until an invariant is broken (``aim``: until this one is)."""
    collecting = gc.isenabled()
    gc.disable()  # states have no cycles, and there are very many
    try:
        return _explore(model, aim, limit)
    finally:
        if collecting:
            gc.enable()


def _explore(model: Configuration, aim: Invariant | None, limit: int | None) -> Explored:
    began = time.process_time()
    explorer = Explorer(model)
    symmetric = model.symmetric
    first = model.initial()
    # The state before each state, and the step between.
    parents: dict[State, tuple[State, str] | None] = {first: None}
    level, depth, taken = [first], 0, 0

    def result(broken_one: Invariant | None = None, trace: tuple[str, ...] = (), *, complete: bool = True) -> Explored:
        seconds = time.process_time() - began
        return Explored(
            states=len(parents),
            steps=taken,
            depth=depth,
            seconds=seconds,
            broken=broken_one,
            trace=trace,
            complete=complete,
        )

    while level:
        following = []
        depth += 1
        for state in level:
            for words, reached in explorer.successors(state):
                taken += 1
                after = canonical(reached) if symmetric else reached
                wrong: list[Invariant] = []
                if reached.calls is not state.calls or _falls(state, reached):
                    wrong.extend(broken_by_step(model, state, reached))
                if after not in parents:
                    parents[after] = (state, words)
                    wrong.extend(broken(model, after))
                    following.append(after)
                for one in wrong:
                    if aim is None or one is aim:
                        return result(one, (*_trace(parents, state), words))
            if limit is not None and len(parents) >= limit:
                return result(complete=False)
        level = following
    return result()


def _falls(before: State, after: State) -> bool:
    return after.nodes[0].page < before.nodes[0].page or after.nodes[1].page < before.nodes[1].page


def _trace(parents: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    steps = []
    at = parents[state]
    while at is not None:
        state, words = at
        steps.append(words)
        at = parents[state]
    return steps[::-1]
