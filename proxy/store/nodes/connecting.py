"""The sessions of a node for the database at an address. The driver is imported only where it is needed."""

from __future__ import annotations

from proxy.core.errors import StoreUnavailable
from proxy.store.nodes.sessions import MemberPoll, NodeSession


def sessions(url: str, *, lease: float, listen: bool) -> tuple[NodeSession, MemberPoll]:
    """The two sessions for a node with a lease of ``lease`` seconds; nothing is connected yet.

    ``listen`` is false for a database without LISTEN and NOTIFY. Raises StoreUnavailable for an address of a database
    that several nodes cannot share.
    """
    if not url.startswith("postgresql"):
        raise StoreUnavailable("several nodes can share a store in PostgreSQL only")
    from proxy.store.dialects.postgresql_session import PostgresqlPoll, PostgresqlSession

    return PostgresqlSession(url, lease=lease, listen=listen), PostgresqlPoll(url, lease=lease)
