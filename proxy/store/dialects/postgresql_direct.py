"""One direct connection to PostgreSQL that belongs to one task, outside of every pool, and connects again by itself.

Rules of this module:

1. One statement runs at a time. One that fails in any way closes the connection: after a timeout or a cancellation
   nobody knows in which state it is, and what the statement did is unknown to the caller.
2. Time limits are the client's. A limit of the server would cancel a COMMIT that waits for a synchronous standby, and
   PostgreSQL reports that as a success with a warning. So a statement during which the server warned has failed.
3. While no connection can be made, a new attempt begins every ``HEDGE_SECONDS`` and the first to succeed is taken: a
   packet that was lost while the network was down would otherwise cost seconds after its return.
4. A transaction pooler in between is refused: behind it LISTEN and session settings reach other connections. It is
   noticed by the process id of the server's backend, which is not the one that the connection was greeted with.
5. A standby is refused, and what it is that the connection leads to (``server``) is read once: none of it can change
   while a connection lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import asyncpg

from proxy.core.errors import StoreUnavailable
from proxy.observe.logs import get_logger
from proxy.store.dialects import postgresql_nodes as statements
from proxy.store.dialects.postgresql_driver import (
    PostgresqlConnection,
    PostgresqlLimits,
    Servers,
    retrieved,
    unavailable,
)
from proxy.store.dialects.postgresql_dsn import PostgresqlAddress

T = TypeVar("T")
Record = Mapping[str, Any]

CONNECT_SECONDS: Final = 2.0
"""How long one attempt may take, over all hosts."""
HEDGE_SECONDS: Final = 0.4
ATTEMPTS_AT_ONCE: Final = 4
_FAILURES: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_log = get_logger("store.session")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectedServer:
    """Which database a connection leads to. ``system`` is "" where the role may not read it."""

    system: str
    database: int

    def history(self, timeline: str, relation: int | None) -> str:
        """The history of the store (``nodes.history``)."""
        return f"{self.system}/{timeline}/{self.database}/{relation or 0}"


class DirectConnection:
    """A connection that is made when it is first needed. ``opened`` runs on each new connection, e.g. to LISTEN."""

    def __init__(
        self,
        address: PostgresqlAddress,
        *,
        name: str,
        seconds: float,
        limits: PostgresqlLimits,
        opened: Callable[[PostgresqlConnection], Awaitable[None]] | None = None,
    ) -> None:
        """Connect to ``address`` as application ``name``; each statement may take ``seconds``."""
        hosts = max(1, len(address.hosts))
        patient = min(address.connect_timeout, CONNECT_SECONDS / hosts)
        self._servers = Servers(replace(address, connect_timeout=patient, application_name=name), limits)
        self._name = name
        self._seconds = seconds
        self._opened = opened
        self._lock = asyncio.Lock()
        self._open: tuple[PostgresqlConnection, ConnectedServer] | None = None
        self._closed = False
        self._unidentified = False

    async def run(self, work: Callable[[PostgresqlConnection, ConnectedServer], Awaitable[T]]) -> T:
        """Run the statements of ``work``, connecting first if needed. Raises StoreUnavailable."""
        async with self._lock:
            connection, server = await self._connected()
            connection.warnings.clear()
            try:
                async with asyncio.timeout(self._seconds):
                    result = await work(connection, server)
            except _FAILURES as error:
                self._drop()
                raise unavailable(error) from error
            except BaseException:  # also a cancellation: the connection is in an unknown state
                self._drop()
                raise
            if connection.warnings:
                self._drop()
                raise StoreUnavailable("the store cannot be used now because the database did not confirm a write")
            return result

    async def close(self) -> None:
        """Close for good."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        if self._open is not None:
            connection, _ = self._open
            self._open = None
            # Not close(): it would wait for a server that may not answer.
            connection.terminate()

    async def _connected(self) -> tuple[PostgresqlConnection, ConnectedServer]:
        if self._closed:
            raise StoreUnavailable("the connection to the store is closed")
        if self._open is not None and self._open[0].is_closed():
            self._open = None
        if self._open is None:
            self._open = await self._first_connection()
        return self._open

    async def _first_connection(self) -> tuple[PostgresqlConnection, ConnectedServer]:
        """Make attempts, overlapping (rule 3), until one succeeds or one fails."""
        attempts: set[asyncio.Task[tuple[PostgresqlConnection, ConnectedServer]]] = set()
        deadline = asyncio.get_running_loop().time() + CONNECT_SECONDS
        try:
            while True:
                if len(attempts) < ATTEMPTS_AT_ONCE:
                    another = asyncio.create_task(self._attempt(deadline), name=f"connect the {self._name}")
                    another.add_done_callback(retrieved)
                    attempts.add(another)
                done, _ = await asyncio.wait(attempts, timeout=HEDGE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                for attempt in sorted(done, key=lambda one: one.exception() is not None):
                    attempts.discard(attempt)
                    return attempt.result()
        finally:
            for attempt in attempts:
                attempt.cancel()
            for late in await asyncio.gather(*attempts, return_exceptions=True):
                if isinstance(late, tuple):
                    late[0].terminate()

    async def _attempt(self, deadline: float) -> tuple[PostgresqlConnection, ConnectedServer]:
        connection: PostgresqlConnection | None = None
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._servers.connect(default_transaction_isolation="read committed")
                server = await self._identify(connection)
                if self._opened is not None:
                    await self._opened(connection)
                return connection, server
        except _FAILURES as error:
            if connection is not None:
                connection.terminate()
            raise unavailable(error) from error
        except BaseException:  # also a cancellation: nobody else would close it
            if connection is not None:
                connection.terminate()
            raise

    async def _identify(self, connection: PostgresqlConnection) -> ConnectedServer:
        row = await connection.fetchrow(statements.SERVER)
        if row is None or row["pid"] != connection.get_server_pid():
            raise StoreUnavailable(
                "a pooler stands between this node and the database: store_session must lead to the database itself"
            )
        if row["may_identify"]:
            system = str(await connection.fetchval(statements.SYSTEM))
        else:
            system = ""
            if not self._unidentified:
                self._unidentified = True
                _log.warning("the database's user may not call pg_control_system(), which tells servers apart")
        return ConnectedServer(system=system, database=int(row["database"]))
