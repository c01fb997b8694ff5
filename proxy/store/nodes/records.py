"""Values of the protocol of several nodes. Times are unix seconds and are shown to people; no decision uses them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

PROTOCOL = 1
"""The version of the protocol that this version of patgate speaks (column ``nodes.protocol``)."""


class AcceptedBy(StrEnum):
    """Why a history of the store is accepted."""

    CREATION = "creation"
    """The first node of a new store recorded where it is."""
    OPERATOR = "operator"
    """An operator accepted the store as it was found, with all that may be missing from it."""
    SYNCHRONOUS = "synchronous"
    """``failover: synchronous``: only the place is another; the newest change that a node knows must be there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptance:
    """A history that nodes accept, and how it came to be accepted. ``id`` is 32 random hexadecimal digits."""

    id: str
    history: str
    by: AcceptedBy


@dataclass(frozen=True, kw_only=True, slots=True)
class Remembered:
    """What a node remembers of the store that it followed: a change, and which database the store was in."""

    n: int
    mark: bytes
    history: str
    acceptances: frozenset[str]
    """The ids of all acceptances that were in the store then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeRow:
    """A node as it joins. ``lease`` in seconds."""

    id: str
    name: str
    version: str
    schema: str
    config_hash: str
    lease: float
    started_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedNode:
    """A row of a node, with the number that it has acknowledged and the seconds since its last renewal."""

    row: NodeRow
    protocol: int
    applied: int
    age: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreState:
    """What one statement sees of the store: the head, where it is, and what a node remembers of it."""

    renewed: bool
    """Whether the node has a row, which this statement has renewed."""
    n: int
    mark: bytes
    history: str
    bound: float
    """The longest lease that any node may have, in seconds; 0 before the first node."""
    acceptances: tuple[Acceptance, ...]
    remembered: bool
    """Whether the remembered change is in the store; true if nothing was to be looked for."""
    acknowledged: int
    """The number that the store has as acknowledged by this node; 0 for none."""
    database_time: float
    """Unix seconds by the database's clock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedHead:
    """The newest change with its mark, the longest lease that any node may have (seconds), and the history."""

    n: int
    mark: bytes
    bound: float
    history: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A row of a node as a revoker polls it."""

    id: str
    applied: int
    renewals: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Poll:
    """All rows of nodes in one snapshot, the lease bound (seconds) and the history of the store that was polled."""

    members: tuple[Member, ...]
    bound: float
    history: str
