"""The databases that can hold a store, one module each, with everything that only that database can do.

The rest of the store is written once, against ``dialect.Dialect`` and ``dialect.Database``. The scheme of the store's
URL chooses the dialect, in ``DIALECTS``. This module itself imports no database library. ``store.copying`` alone knows
two databases: it copies from the one into the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from proxy.core.errors import StoreUnavailable
from proxy.store.address import UNKNOWN

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from proxy.store.dialects.dialect import Dialect
    from proxy.store.nodes.sessions import MemberPoll, NodeSession


def _sqlite() -> Dialect:
    from proxy.store.dialects.sqlite import SQLITE

    return SQLITE


def _postgresql() -> Dialect:
    try:
        import asyncpg  # noqa: F401
    except ImportError as error:
        raise StoreUnavailable("a store on PostgreSQL needs the extra patgate[postgres]") from error
    from proxy.store.dialects.postgresql import POSTGRESQL

    return POSTGRESQL


DIALECTS: Final[Mapping[str, Callable[[], Dialect]]] = {
    "sqlite": _sqlite,
    "postgresql": _postgresql,
    "postgres": _postgresql,
}
"""Each URL scheme (without ``+driver``) with what loads its dialect."""


def of_url(url: str) -> Dialect:
    """The dialect of the database at ``url``. Raises StoreUnavailable for a scheme without one."""
    scheme = url.partition("://")[0].partition("+")[0]
    if scheme not in DIALECTS:
        raise StoreUnavailable(UNKNOWN)
    return DIALECTS[scheme]()


def of_connection(connection: AsyncConnection) -> Dialect:
    """The dialect of the database that ``connection`` is open to."""
    return of_url(f"{connection.dialect.name}://")


def embedded() -> Dialect:
    """The dialect of the store in the data directory."""
    return _sqlite()


def node_sessions(url: str, *, lease: float, listen: bool) -> tuple[NodeSession, MemberPoll]:
    """The two sessions for a node with a lease of ``lease`` seconds; nothing is connected yet.

    ``listen`` is false for a database without LISTEN and NOTIFY. Raises StoreUnavailable for an address of a database
    that several nodes cannot share.
    """
    if not url.startswith("postgres"):
        raise StoreUnavailable("several nodes can share a store in PostgreSQL only")
    from proxy.store.dialects.postgresql_session import PostgresqlPoll, PostgresqlSession

    return PostgresqlSession(url, lease=lease, listen=listen), PostgresqlPoll(url, lease=lease)
