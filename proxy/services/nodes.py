"""The nodes of a store as an operator sees them (``patgate nodes``, ``GET /api/v1/nodes``), and accepting a store.

1. A node that refuses its store (it is *fenced*) can believe nothing that the store says, so no token either: only the
   operator, who needs no credential, accepts a store. The authority refuses every token meanwhile.
2. The operator sees the nodes without another read of the store, so that a fenced node can show them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from proxy.core.model import Actor
from proxy.services.caller import AccountEntity, AccountOperation, load_caller
from proxy.services.views import rfc3339
from proxy.store.store import Store


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

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {
            "id": self.id,
            "name": self.name,
            "version": self.version,
            "schema": self.schema,
            "applied": self.applied,
            "lease": self.lease,
            "lease_seconds": round(self.lease_seconds, 3),
            "started_at": rfc3339(self.started_at),
            "config_hash": self.config_hash,
            "config_matches": self.config_matches,
            "self": self.self,
        }


class StoreNodes(Protocol):
    """The nodes of the store; the authority implements it."""

    async def nodes(self) -> list[NodeView]:
        """All nodes, oldest first. Raises StoreUnavailable."""
        ...

    async def accept_history(self, actor: Actor) -> None:
        """Accept the store that this node refuses. Raises Conflict if it refuses none, and StoreError."""
        ...


class NodeService:
    """Lists nodes and accepts a store. All methods raise StoreUnavailable, Forbidden and Unauthenticated."""

    def __init__(self, store: Store, clock: Callable[[], float], nodes: StoreNodes) -> None:
        self._store = store
        self._clock = clock
        self._nodes = nodes

    async def list(self, actor: Actor) -> list[NodeView]:
        """Every node, oldest first, for a caller who may list nodes in the account."""
        await self._require(actor, AccountOperation.LIST)
        return await self._nodes.nodes()

    async def accept(self, actor: Actor) -> None:
        """Accept the store that this node refuses, for the operator or whoever may update nodes. Raises Conflict."""
        await self._require(actor, AccountOperation.UPDATE)
        await self._nodes.accept_history(actor)

    async def _require(self, actor: Actor, operation: AccountOperation) -> None:
        if actor.credential is None:
            return  # rule 2
        async with self._store.read() as rows:
            (await load_caller(rows, actor, self._clock())).require(AccountEntity.NODES, operation)
