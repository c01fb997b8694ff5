"""Whether a connection leads to PostgreSQL itself or to a pooler, which may run each transaction on another server.

Renewals, acknowledgements and LISTEN need one server session. A pooler invents the process id that it sends when a
connection begins, and gives a session that is between two transactions to the next who asks.
"""

from __future__ import annotations

import secrets
from typing import Final

from proxy.core.errors import StoreUnavailable
from proxy.store.dialects.postgresql_driver import Connection, Servers

POOLER: Final = (
    "the store cannot be used because a connection pooler stands before it, and store_session must be an address "
    "without one"
)
_ROUNDS: Final = 3


async def require_direct(servers: Servers) -> None:
    """Raise StoreUnavailable if connections to ``servers`` are not sessions of PostgreSQL itself."""
    first = await servers.connect()
    try:
        second = await servers.connect()
        try:
            for _ in range(_ROUNDS):
                mine = await _backend(first)
                # A pooler gives the session that the first connection has just left.
                await second.execute("BEGIN")
                other = await _backend(second)
                again = await _backend(first)
                await second.execute("ROLLBACK")
                if mine != first.get_server_pid() or again != mine or other != second.get_server_pid():
                    raise StoreUnavailable(POOLER)
        finally:
            second.terminate()
    finally:
        first.terminate()


async def require_same(store: Servers, session: Servers) -> None:
    """Raise StoreUnavailable if the two do not lead to the same database of the same server."""
    key = secrets.randbits(63)
    ours = await session.connect()
    try:
        await ours.execute(f"SELECT pg_advisory_lock({key})")
        theirs = await store.connect()
        try:
            free = await theirs.fetchval(f"SELECT pg_try_advisory_xact_lock({key})")
        finally:
            theirs.terminate()
    finally:
        ours.terminate()
    if free:
        raise StoreUnavailable("the store cannot be used: store and store_session do not lead to the same database")


async def _backend(connection: Connection) -> int:
    return int(await connection.fetchval("SELECT pg_backend_pid()"))
