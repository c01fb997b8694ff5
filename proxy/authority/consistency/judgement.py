"""Whether the store is the one that this node has followed: a pure decision over one statement's view of it.

Rules of this module:
1. A node serves only from a store that has the newest change that the node remembers, and that is where the node, and
   the store itself, last knew it to be. A promoted standby, a restored dump and an older copy of the files fail this.
2. An operator's acceptance overrules it, if the node has not seen that acceptance before: it is about the store as the
   operator found it, and does not cover what is put in its place later. It overrules also a node that would not refuse
   the store. The acceptance makes the store forget its changes, so whether a remembered one was among them is unknown.
3. ``failover: synchronous`` accepts another place by itself, never the loss of a change.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from proxy.store.nodes.records import AcceptedBy, Remembered, StoreState


class StoreVerdict(StrEnum):
    """What a node does with the store that it sees."""

    KNOWN = "known"
    NEW = "new"
    """No history is recorded yet: record this one."""
    MOVED = "moved"
    """The place is another one and ``failover: synchronous`` accepts it: record it."""
    OVERRULED = "overruled"
    """An operator has accepted the store: forget what is remembered, and drop every cache."""
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """A verdict; ``why`` is a sentence for the operator while the store is refused, otherwise empty."""

    verdict: StoreVerdict
    why: str = ""


_KNOWN = Judgement(verdict=StoreVerdict.KNOWN)
LOST_CHANGES = (
    "the store lacks changes that this node has seen: an older store, or a standby that was behind, was put in its "
    "place; check it, then accept it with patgate nodes accept"
)
NOT_DROPPED = "an operator has accepted the store, and this node has not yet dropped what it knew of the former one"
OTHER_PLACE = (
    "the store is in another database than before (after a failover, a restored dump or an upgrade): check that it is "
    "complete, then accept it with patgate nodes accept"
)


def judge(state: StoreState, memory: Remembered | None, *, page: int, trust_standby: bool) -> Judgement:
    """Judge the store; ``page`` was on the page before it was read, ``trust_standby`` is ``failover: synchronous``."""
    listed = {one.history for one in state.acceptances}
    complete = state.remembered and state.n >= page
    if memory is not None and _overruled(state, memory):
        return Judgement(verdict=StoreVerdict.OVERRULED, why=NOT_DROPPED)
    if not complete:
        return Judgement(verdict=StoreVerdict.REFUSED, why=LOST_CHANGES)
    if memory is not None and memory.history not in {*listed, state.history}:
        return Judgement(verdict=StoreVerdict.REFUSED, why=OTHER_PLACE)
    if state.history in listed:
        return _KNOWN
    if not listed:
        # The place that the node remembers is this one, or it remembers none.
        return Judgement(verdict=StoreVerdict.NEW)
    return (
        Judgement(verdict=StoreVerdict.MOVED)
        if trust_standby
        else Judgement(verdict=StoreVerdict.REFUSED, why=OTHER_PLACE)
    )


def _overruled(state: StoreState, memory: Remembered) -> bool:
    """Whether an operator has accepted this store since the node last saw it."""
    return any(
        one.by is AcceptedBy.OPERATOR and one.history == state.history and one.id not in memory.acceptances
        for one in state.acceptances
    )
