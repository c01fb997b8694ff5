"""What one exploration is of: the calls, the lease, the clocks, and how many faults of each kind may happen."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.model.bugs import Bug
from tests.model.state import ABSENT, Budget, Call, Kind, Node, State, Store


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One model. All times are ticks."""

    kinds: tuple[Kind, ...]
    """What each call does."""
    at: tuple[int, ...]
    """The node of each call."""
    own: int = 1
    """Each node's own lease."""
    bound: int = 1
    """The bound in the store at first."""
    margin: int = 0
    drift: tuple[int, int] = (0, 0)
    """How much longer a lease lasts on a node whose clock is slow: at most ``margin``."""
    faults: Budget = field(default_factory=Budget)
    joined: tuple[bool, bool] = (True, True)
    quiet: bool = False
    """Node a takes calls, but has no page, no row and no lease. (It makes runs to a bug of node b shorter.)"""
    synchronous: bool = False
    """A synchronous standby, and ``failover: synchronous`` in writing."""
    second_primary: bool = False
    """After the promotion the old primary still runs; its standby is gone."""
    overtaken: int = 0
    """How many changes somebody else makes at the promoted standby before any of the nodes sees it."""
    bugs: frozenset[Bug] = frozenset()

    def initial(self) -> State:
        """Nodes that have joined have just renewed."""
        nodes = tuple(
            Node(row=0, lease=min(self.own, self.bound) + drift) if joined else Node(row=ABSENT)
            for joined, drift in zip((self.joined[0] and not self.quiet, self.joined[1]), self.drift, strict=True)
        )
        return State(Store(bound=self.bound), nodes, tuple(Call() for _ in self.kinds), self.faults)

    @property
    def symmetric(self) -> bool:
        """Whether exchanging the nodes, and the calls with them, changes nothing."""
        return (
            self.at == (0, 1)
            and self.kinds[0] is self.kinds[1]
            and self.drift[0] == self.drift[1]
            and self.joined[0] == self.joined[1]
            and not self.bugs  # a trace through mirror images could not be read
        )
