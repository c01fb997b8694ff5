"""What the protocol needs of a database that several nodes share. PostgreSQL: ``dialects.postgresql_session``.

Every method raises StoreUnavailable, at the latest after the session's timeout, and then the connection is closed; the
next call connects again. No method retries by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from proxy.store.nodes.records import FeedHead, ListedNode, NodeRow, Poll, Remembered, StoreState


class NodeSession(Protocol):
    """A node's own connection: renewal, notifications and acknowledgement."""

    on_notify: Callable[[], None]
    """Called in the event loop when another node may have made a change, and after each new connection."""

    async def join(self, row: NodeRow, first: int) -> None:
        """Insert the row of a node, durably, with ``first`` renewals, and remove acknowledgements of no node."""
        ...

    async def renew(self, node: str, remembered: Remembered | None) -> StoreState:
        """Renew the row of ``node``, durably, and read the state in the same statement."""
        ...

    async def head(self) -> FeedHead:
        """Read the head."""
        ...

    async def acknowledge(self, node: str, applied: int) -> None:
        """Store that ``node`` has raised its page to ``applied``. A crash of the database may lose it."""
        ...

    async def leave(self, nodes: Sequence[str]) -> None:
        """Delete the rows of these nodes, which hold no lease any more."""
        ...

    async def close(self) -> None:
        """Close the connection; it is not used again."""
        ...


class MemberPoll(Protocol):
    """The connection on which a revoker polls the other nodes. Apart, because a renewal must not wait for it."""

    async def poll(self) -> Poll:
        """Read the rows of all nodes in a new snapshot."""
        ...

    async def reap(self, node: str, renewals: int) -> None:
        """Delete the row of ``node`` if it still has this many renewals."""
        ...

    async def describe(self, node: str, config_hash: str, lease: float) -> None:
        """Write what people see of ``node`` after a reload."""
        ...

    async def nodes(self) -> list[ListedNode]:
        """Read the rows of all nodes for display, oldest first."""
        ...

    async def close(self) -> None:
        """Close the connection; it is not used again."""
        ...
