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
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import asyncpg

from proxy.core.errors import StoreUnavailable
from proxy.observe.logs import get_logger
from proxy.store.dialects.postgresql_dsn import PostgresqlAddress
from proxy.store.nodes import statements

T = TypeVar("T")
Connection = asyncpg.Connection
Record = Mapping[str, Any]

CONNECT_SECONDS: Final = 2.0
"""How long one attempt may take, over all hosts."""
HEDGE_SECONDS: Final = 0.4
ATTEMPTS_AT_ONCE: Final = 4
_KEEPALIVE_SECONDS: Final = 5
_SETTINGS: Final = {
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "statement_timeout": "0",
    "lock_timeout": "2s",
    "idle_in_transaction_session_timeout": "1s",
    "tcp_keepalives_idle": str(_KEEPALIVE_SECONDS),
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
}
_LOST: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_log = get_logger("store.session")


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
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
        opened: Callable[[Connection[Any]], Awaitable[None]] | None = None,
    ) -> None:
        """Connect to ``address`` as application ``name``; each statement may take ``seconds``."""
        self._address = address
        self._name = name
        self._seconds = seconds
        self._opened = opened
        self._lock = asyncio.Lock()
        self._open: tuple[Connection[Any], Server] | None = None
        self._warned = False
        self._closed = False
        self._told_unidentified = False

    async def run(self, work: Callable[[Connection[Any], Server], Awaitable[T]]) -> T:
        """Run the statements of ``work``, connecting first if needed. Raises StoreUnavailable."""
        async with self._lock:
            connection, server = await self._connected()
            self._warned = False
            try:
                async with asyncio.timeout(self._seconds):
                    result = await work(connection, server)
            except _LOST as error:
                self._drop()
                raise StoreUnavailable(f"the store cannot be used now because {_cause(error)}") from error
            except BaseException:
                self._drop()
                raise
            if self._warned:
                self._drop()
                raise StoreUnavailable("the store cannot be used now because the database gave a warning")
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

    async def _connected(self) -> tuple[Connection[Any], Server]:
        if self._closed:
            raise StoreUnavailable("the connection to the store is closed")
        if self._open is not None and self._open[0].is_closed():
            self._open = None
        if self._open is None:
            self._open = await self._first_connection()
        return self._open

    async def _first_connection(self) -> tuple[Connection[Any], Server]:
        """Make attempts, overlapping (rule 3), until one succeeds or one fails."""
        attempts: set[asyncio.Task[tuple[Connection[Any], Server]]] = set()
        deadline = asyncio.get_running_loop().time() + CONNECT_SECONDS
        try:
            while True:
                if len(attempts) < ATTEMPTS_AT_ONCE:
                    attempts.add(asyncio.create_task(self._attempt(deadline), name=f"connect the {self._name}"))
                done, _ = await asyncio.wait(
                    attempts, timeout=HEDGE_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                for attempt in sorted(done, key=lambda one: one.exception() is not None):
                    attempts.discard(attempt)
                    return attempt.result()
        finally:
            for attempt in attempts:
                attempt.cancel()
            for late in await asyncio.gather(*attempts, return_exceptions=True):
                if isinstance(late, tuple):
                    late[0].terminate()

    async def _attempt(self, deadline: float) -> tuple[Connection[Any], Server]:
        connection: Connection[Any] | None = None
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._connect()
                server = await self._identify(connection)
                if self._opened is not None:
                    await self._opened(connection)
                return connection, server
        except _LOST as error:
            if connection is not None:
                connection.terminate()
            raise StoreUnavailable(f"no connection to the store: {_cause(error)}") from error
        except BaseException:
            if connection is not None:
                connection.terminate()
            raise

    async def _connect(self) -> Connection[Any]:
        """A connection to the first host that takes writes."""
        address, refused = self._address, StoreUnavailable("no connection to the store: its address has no host")
        for host, port in address.hosts:
            try:
                connection = await asyncpg.connect(
                    host=host,
                    port=port,
                    user=address.user,
                    password=address.password,
                    database=address.database,
                    ssl=await self._tls(host),
                    timeout=CONNECT_SECONDS,
                    statement_cache_size=32,
                    server_settings={**_SETTINGS, "application_name": self._name},
                )
            except _LOST as error:
                refused = StoreUnavailable(f"no connection to the store: {_cause(error)}")
                refused.__cause__ = error
                continue
            if await connection.fetchval("SELECT pg_is_in_recovery()"):
                connection.terminate()
                refused = StoreUnavailable("no connection to the store: the database is a standby")
                continue
            connection.add_log_listener(self._on_message)
            _watch(connection)
            return connection
        raise refused

    async def _tls(self, host: str) -> ssl.SSLContext | str | bool:
        """What the driver takes as ``ssl``; files are read outside of the event loop."""
        if host.startswith("/") or self._address.sslmode in ("disable", "allow", "prefer"):
            return self._address.tls(host)
        return await asyncio.to_thread(self._address.tls, host)

    async def _identify(self, connection: Connection[Any]) -> Server:
        row = await connection.fetchrow(statements.SERVER)
        assert row is not None
        if row["pid"] != connection.get_server_pid():
            raise StoreUnavailable(
                "a pooler stands between this node and the database: store_session must lead to the database itself"
            )
        if row["may_identify"]:
            system = str(await connection.fetchval(statements.SYSTEM))
        else:
            system = ""
            if not self._told_unidentified:
                self._told_unidentified = True
                _log.warning("the role may not read the database's system identifier; grant pg_control_system()")
        return Server(system=system, database=int(row["database"]))

    def _on_message(self, _connection: object, message: asyncpg.PostgresLogMessage) -> None:
        if getattr(message, "severity_en", None) == "WARNING" or getattr(message, "severity", None) == "WARNING":
            self._warned = True


def _watch(connection: Connection[Any]) -> None:
    """Let the kernel notice a server that has gone without a word."""
    transport = getattr(connection, "_transport", None)
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _cause(error: BaseException) -> str:
    """The cause in words, without anything that the server or the address says."""
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
        return "it refuses the user or the password"
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return "the database does not exist"
    if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
        return "it can only be read"
    if isinstance(error, asyncpg.PostgresError):
        return f"the database reports error {error.sqlstate}"
    if isinstance(error, OSError):
        return error.strerror or "the connection failed"
    return "the connection was lost"
