"""What a state of the model is made of. All of it is immutable and hashable.

Time is counted in ticks. A state has no clock: it has only what is left of a lease, and how long a wait has lasted, so
the number of states is finite. What happens within a tick may happen in every order, and any number of ticks may pass
between two steps of a node. So a frozen node, one that is cut from the database, a slow message and a lost one need no
transitions of their own: each is a run in which that node's next step comes late, or never.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """What a change does. The verdict that is watched is that of one token, X, which is allowed at first."""

    REVOKE = "revoke X"
    RESTORE = "restore X"
    OTHER = "change something else"
    RAISE = "raise the lease bound"
    LOWER = "lower the lease bound"
    ACCEPT = "accept the history"
    NONE = "no call"

    __hash__ = str.__hash__  # that of enumerations is slow


class Stored(NamedTuple):
    """A committed change."""

    number: int
    kind: Kind
    call: int
    """The call that made it; -1: the operator; below: nobody of these nodes."""


class Store(NamedTuple):
    """The primary. Rows are with their nodes, because each belongs to one."""

    changes: tuple[Stored, ...] = ()
    """In commit order."""
    bound: int = 1
    """Ticks."""
    era: int = 0
    """Counts promotions: the timeline in the history of the page."""
    before: tuple[Stored, ...] = ()
    """What the previous primary had stored when this one was promoted."""
    old_primary: bool = False
    """Whether the previous primary still runs and reaches its nodes."""
    accepted: bool = False
    """Whether the new history is recorded as accepted."""
    stepped: bool = False
    """Whether the database's clock has been put forward."""


ABSENT = -1
UNCOMMITTED = -2


class Node(NamedTuple):
    """One authority with its page, its workers' cache, and its row in the store."""

    up: bool = True
    page: int = 0
    lease: int = 0
    """Ticks for which workers may still decide."""
    cached: bool = True
    """Whether the verdict on X in a worker's cache is "allow"."""
    row: int = ABSENT
    """The acknowledged number in this node's row."""
    since: int = -1
    """How many changes there were when this row was inserted; -1: it was there at first."""
    marks: int = 0
    """A bit for each call that has read this row and would still find ``renewals = seen``."""
    old: int = ABSENT
    """The same of the row of the previous start of this authority."""
    old_marks: int = 0
    reply: int = ABSENT
    """The head in a renewal's reply that is on its way."""
    left: int = 0
    """The lease that this reply would give now; 0: none."""
    era: int = 0
    """The history that the node follows."""
    fenced: bool = False
    cut: bool = False
    """Only where a rule asks whether the database is away: see ``Faults.cut``."""


class Phase(IntEnum):
    """Where a call to change something is. ``OPEN``: its transaction still holds the lock, without a client."""

    IDLE = 0
    SNAPSHOT = 1
    LOCKED = 2
    STORED = 3
    WAITING = 4
    ANSWERED = 5
    FAILED = 6
    DOUBT_OPEN = 7
    DOUBT_STORED = 8
    DOUBT_GONE = 9
    IN_DOUBT_OPEN = 10
    IN_DOUBT = 11
    FAILED_OPEN = 12


OPEN = frozenset({Phase.LOCKED, Phase.DOUBT_OPEN, Phase.IN_DOUBT_OPEN, Phase.FAILED_OPEN})
"""The transaction holds the lock on the change head."""


class Call(NamedTuple):
    """One call of a revoker, with its transaction and its wait."""

    phase: Phase = Phase.IDLE
    number: int = 0
    """Its change's number; without a change, the highest number that its transaction saw."""
    nothing: bool = False
    """There was nothing to do."""
    age: int = 0
    """Ticks since COMMIT returned."""
    seen: int = -1
    """Ticks since it read the rows; -1: not yet."""
    bound: int = 0
    """The lease bound in its transaction."""
    reap_bound: int = 0
    """The lease bound when it read the rows."""
    rows: int = -1
    """The nodes that it waits for, as bits; -1: all."""
    era: int = 0


class Budget(NamedTuple):
    """How many faults of each kind may still happen."""

    crash: int = 0
    kill: int = 0
    stop: int = 0
    cut: int = 0
    doubt: int = 0
    restart: int = 0
    promote: int = 0
    accept: int = 0
    step: int = 0
    forge: int = 0


class State(NamedTuple):
    """Everything."""

    store: Store
    nodes: tuple[Node, ...]
    calls: tuple[Call, ...]
    budget: Budget


def allows(changes: tuple[Stored, ...], until: int) -> bool:
    """Whether X is allowed after the changes with numbers up to ``until``."""
    verdict = True
    for change in changes:
        if change.number <= until and change.kind in (Kind.REVOKE, Kind.RESTORE):
            verdict = change.kind is Kind.RESTORE
    return verdict


def head(changes: tuple[Stored, ...]) -> int:
    """The greatest number; 0 before the first change."""
    return max((change.number for change in changes), default=0)


def kept(store: Store, call: Call) -> bool:
    """Whether the present history has all that the call's transaction saw and wrote."""
    return call.era == store.era or store.before[: call.number] == store.changes[: call.number]
