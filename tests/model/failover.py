"""Rules 2 and 20, and what they are for: another primary, with another history."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.bugs import Bug
from tests.model.change import Step, with_node
from tests.model.configuration import Configuration
from tests.model.node import NAMES, lease_of, raised
from tests.model.node import Step as NodeStep
from tests.model.state import ABSENT, OPEN, Call, Kind, Node, Phase, State, Store, Stored, allows, head

_WITH_STORE = OPEN | {Phase.SNAPSHOT, Phase.STORED, Phase.DOUBT_STORED, Phase.DOUBT_GONE}


def promotions(model: Configuration, state: State) -> Iterator[Step]:
    """A standby becomes the primary. It has all commits if it was synchronous, else any first part of them.

    A change that has not returned is in doubt: the store that answers has another history (rule 11). A synchronous
    standby may lack acknowledgements, which are committed asynchronously; one that lags may lack rows, too.
    """
    store = state.store
    shortest = len(store.changes) if model.synchronous else 0
    calls = tuple(Call(Phase.IN_DOUBT) if call.phase in _WITH_STORE else call for call in state.calls)
    for length in range(shortest, len(store.changes) + 1):
        others = (Stored(length + 1 + number, Kind.OTHER, -2 - number) for number in range(model.overtaken))
        after = store._replace(
            changes=(*store.changes[:length], *others), before=store.changes, era=store.era + 1,
            old_primary=model.second_primary,
        )  # fmt: skip
        lost = len(store.changes) - length
        for acknowledged in (True, False):
            words = "" if acknowledged else " and all acknowledgements"
            yield (
                f"a standby is promoted, without {lost} of {len(store.changes)} changes{words}",
                state._replace(
                    store=after,
                    calls=calls,
                    nodes=tuple(_replicated(model, node, length, acknowledged) for node in state.nodes),
                    budget=state.budget._replace(promote=state.budget.promote - 1),
                ),
            )


def _replicated(model: Configuration, node: Node, length: int, acknowledged: bool) -> Node:
    """The node with its rows as the standby has them. What was inserted after a change that is lost is lost, too."""
    row, old = node.row, node.old
    known = length if acknowledged else 0
    row = min(row, known) if model.synchronous or node.since <= length else ABSENT
    return node._replace(row=row, old=min(old, known), marks=0, old_marks=0)


def steps_elsewhere(model: Configuration, store: Store, node: Node, index: int) -> list[NodeStep]:
    """What a node does that still follows the history before the promotion.

    Its row is the one in the new store. The old primary, while it runs, has lost its standby: nothing that must be
    durable is committed there, but it can be read.
    """
    name = NAMES[index]
    newest = head(store.before)
    found = []
    if node.reply >= 0:
        after = raised(model, store.before, node, node.reply)
        words = f"{name}: receives a reply of the old primary: page {after.page}, lease {node.left}"
        found.append((words, after._replace(lease=node.left, reply=ABSENT, left=0)))
    if store.old_primary:
        if newest > node.page:
            words = f"{name}: reads head {newest} at the old primary and raises its page"
            found.append((words, raised(model, store.before, node, newest)))
        if Bug.RENEWAL_NOT_DURABLE in model.bugs and node.reply == ABSENT:
            words = f"{name}: renews at the old primary, which returns head {newest}"
            found.append((words, node._replace(reply=newest, left=lease_of(model, store, index))))
    found.append(connected(model, store, node, name))
    # 2: connections of the pool may reach the new primary before the session does. They compare its history, so a
    # lookup there is refused, and is no step. The number alone would not do: others may have made changes there.
    newest = head(store.changes)
    if Bug.LOOKUP_UNCOMPARED in model.bugs and node.lease and newest >= node.page:
        words = f"{name}: a worker without X in its cache looks it up at the new primary, in snapshot {newest}"
        found.append((words, node._replace(page=newest, cached=allows(store.changes, newest))))
    return found


def connected(model: Configuration, store: Store, node: Node, name: str) -> NodeStep:
    """Rule 2: the node compares what it remembers with the store that it reaches."""
    known = len(store.before) >= node.page and store.before[: node.page] == store.changes[: node.page]
    if Bug.NO_FENCE in model.bugs:
        accepts = True
    elif Bug.FENCE_BY_NUMBER in model.bugs:
        accepts = node.page <= head(store.changes)
    else:
        accepts = known and (model.synchronous or store.accepted)
    if accepts:
        return f"{name}: connects to the new primary", node._replace(era=store.era, reply=ABSENT, left=0)
    fenced = node._replace(era=store.era, fenced=True, lease=0, reply=ABSENT, left=0)
    return f"{name}: connects to the new primary and is fenced", fenced


def accepted(model: Configuration, state: State) -> Iterator[Step]:
    """Rule 20: an operator accepts, at a fenced node; an audited change records the history.

    A standby that lagged may lack rows, so a change in its history would not wait for all nodes. Therefore the
    acceptance comes a bound and margin after the node was fenced. That ends all leases of the history before; a guard
    says so here, which saves the clock.
    """
    elsewhere = any(node.era != state.store.era and (node.lease or node.reply >= 0) for node in state.nodes)
    if elsewhere and Bug.ACCEPTED_AT_ONCE not in model.bugs:
        return
    if any(node.fenced and node.up for node in state.nodes) and not any(call.phase in OPEN for call in state.calls):
        store = state.store
        change = Stored(head(store.changes) + 1, Kind.ACCEPT, -1)
        after = store._replace(changes=(*store.changes, change), accepted=True)
        budget = state.budget._replace(accept=state.budget.accept - 1)
        yield "an operator accepts the new history", state._replace(store=after, budget=budget)


def adopted(model: Configuration, state: State, index: int) -> Step:
    """A fenced node takes the accepted history: a new page, caches reset."""
    node, changes = state.nodes[index], state.store.changes
    if Bug.PAGE_KEPT in model.bugs:
        kept_page = with_node(state, index, node._replace(fenced=False))
        return f"{NAMES[index]}: takes the accepted history, and keeps page {node.page}", kept_page
    newest = head(changes)
    after = node._replace(fenced=False, page=newest, cached=allows(changes, newest))
    return f"{NAMES[index]}: takes the accepted history, with a new page", with_node(state, index, after)
