"""The nodes of a store as an operator sees them (``patgate nodes``, ``GET /api/v1/nodes``)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeView:
    """One node. Times are unix seconds by the database's clock."""

    id: str
    name: str
    version: str
    schema: str
    applied: int
    """The number of the last change that it has acknowledged."""
    lease: float
    """The length of its lease, in seconds."""
    lease_seconds: float
    """How much of the lease is left, at least, since its last renewal; 0 if it has run out."""
    started_at: float
    config_hash: str
    config_matches: bool
    """Whether its configuration is the same as that of the node that answers, apart from what belongs to one host."""
    self: bool
    """Whether this is the node that answers."""
