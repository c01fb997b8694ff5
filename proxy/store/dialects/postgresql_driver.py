"""Connections to PostgreSQL: how one is made, how its transactions begin and end, and what its errors mean.

Rules:

1. A COMMIT is acknowledged only if the server answered ``COMMIT`` without any warning: the answer ``ROLLBACK`` means
   that an earlier statement failed, and a warning that a synchronous standby may lack the transaction.
2. Nothing is stored for certain only if COMMIT was not sent, or the server refused it with an error and lives on. In
   every other case the outcome is unknown (``OutcomeUnknown``).
3. No client timeout is set on COMMIT, because the driver would cancel it, and a cancelled wait for a synchronous
   standby reports success. At the deadline the socket is closed.
4. Every session states what it relies on (``PostgresqlLimits.settings``), regardless of the defaults of the server,
   the database and the role. Behind a transaction pooler (``pooled``) each transaction states it.
5. Only a server that can be written to, and that runs with ``fsync = on``, is used: looked at for each connection. The
   server that answered last is tried first.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
from asyncpg.exceptions import PostgresError

from proxy.core.errors import OutcomeUnknown, StoreUnavailable
from proxy.store.dialects.postgresql_dsn import PostgresqlAddress

_UNLIMITED: Final = 86_400.0
"""Seconds that no statement takes: the driver's own timeout, where another deadline counts."""
_ROLLBACK_SECONDS: Final = 2.0

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_STOOD_STILL: Final = "25P03"
_TERMINATED: Final = "57P01"
_LOST: Final = "the connection was lost"
_CAUSES: Final[Mapping[str, str]] = {
    "08": _LOST,
    "25006": "it can only be read",
    _STOOD_STILL: "a transaction stood still for too long",
    "28": "it refuses the user or the password",
    "3D": "there is no such database",
    "40": "another transaction was in the way",
    "42501": "the user lacks a privilege",
    "53100": "its disk is full",
    "53": "it is out of connections or memory",
    "55P03": "another transaction holds a lock",
    "57014": "a statement took too long",
    "57": "it is starting or stopping",
    "58": "of an I/O error",
    "XX": "it is damaged or has a defect",
}
_OF_POOLERS: Final = (asyncpg.exceptions.ProtocolViolationError, asyncpg.exceptions.InvalidSQLStatementNameError)
"""A pooler refuses the parameters of a session, or runs a statement on a server that has not prepared it."""
FAILURES: Final = (PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""What the driver raises; a timeout is an OSError."""
_VALUES: Final[Mapping[str, str]] = {
    # The driver's own: a lone surrogate is not UTF-8, and a number may be too large.
    "22000": "holds a character or a number that the store cannot hold",
    "22001": "is longer than the store can hold",
    "22021": "holds a character that the store cannot hold",
    "22P05": "holds a character that the store cannot hold",
}
_NEXT_HOST: Final = ("08", "53", "57")
"""Classes of errors after which another host is tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PostgresqlLimits:
    """Time limits in seconds. No setting reaches them; tests pass their own."""

    statement: float = 15.0
    lock: float = 5.0
    """How long a statement waits for a lock that another transaction holds."""
    idle: float = 1.0
    """How long a transaction that writes may stand still: a frozen node must not hold the lock of all changes."""
    commit: float = 10.0
    network: float = 4.0
    """How long sent data may stay unacknowledged, on either side, before the connection counts as lost."""
    durable: bool = True
    """Whether a server with ``fsync = off`` is refused."""

    @property
    def local(self) -> Mapping[str, str]:
        """The settings of a writing transaction."""
        return {
            "synchronous_commit": "on",
            "idle_in_transaction_session_timeout": _milliseconds(self.idle),
            "lock_timeout": _milliseconds(self.lock),
            "statement_timeout": _milliseconds(self.statement),
        }

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings of a session that is not behind a pooler."""
        return {
            **self.local,
            "jit": "off",
            "tcp_user_timeout": _milliseconds(self.network),
            "tcp_keepalives_idle": "2",
            "tcp_keepalives_interval": "1",
            "tcp_keepalives_count": "3",
        }


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


class PostgresqlConnection(asyncpg.Connection):  # type: ignore[misc]
    """A connection whose transactions follow the rules above. The transport is closed by ``terminate``."""

    limits: PostgresqlLimits
    pooled: bool
    transport: asyncio.Transport

    def __init__(self, protocol: Any, transport: asyncio.Transport, *args: Any) -> None:
        super().__init__(protocol, transport, *args)
        self.transport = transport
        self.warnings: list[str] = []
        """SQLSTATEs of the warnings that came since this was cleared."""
        self.add_log_listener(self._noted)

    def _noted(self, _connection: object, message: Any) -> None:
        if (message.severity_en or message.severity) == "WARNING":
            self.warnings.append(message.sqlstate)

    def transaction(self, *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False) -> Any:
        """A transaction as SQLAlchemy starts and ends it."""
        return Transaction(self, (isolation or "read_committed").replace("_", " ").upper(), readonly=readonly)

    async def close(self, *, timeout: float | None = None) -> None:
        """Close the connection; a server that does not answer is not waited for."""
        with suppress(*FAILURES):
            await super().close(timeout=_ROLLBACK_SECONDS if timeout is None else timeout)


class Transaction:
    """One transaction: BEGIN, then COMMIT or ROLLBACK."""

    def __init__(self, connection: PostgresqlConnection, isolation: str, *, readonly: bool) -> None:
        self._connection = connection
        self._isolation = isolation
        self._readonly = readonly

    async def start(self) -> None:
        """Begin; behind a pooler with the settings of a writing transaction."""
        begin = f"BEGIN ISOLATION LEVEL {self._isolation}{' READ ONLY' if self._readonly else ''}"
        local = self._connection.limits.local if self._connection.pooled else {}
        await self._connection.execute("; ".join([begin, *(f"SET LOCAL {name} = '{local[name]}'" for name in local)]))

    async def commit(self) -> None:
        """Commit (rules 1 to 3). Raises StoreUnavailable or the driver's error: nothing is stored; OutcomeUnknown."""
        connection = self._connection
        if connection.is_closed():
            raise StoreUnavailable("the store cannot be used now because the connection was lost")
        connection.warnings.clear()
        # Not awaited itself: cancelling it would send a request to cancel the commit.
        task = asyncio.create_task(connection.execute("COMMIT", timeout=_UNLIMITED), name="store-commit-statement")
        task.add_done_callback(retrieved)
        try:
            await asyncio.wait([task], timeout=connection.limits.commit)
        finally:
            if not task.done():
                connection.terminate()
        if not task.done():
            await asyncio.wait([task], timeout=_ROLLBACK_SECONDS)
        error = task.exception() if task.done() else None
        if task.done() and error is None and not connection.warnings:
            if task.result() == "COMMIT":
                return
            raise StoreUnavailable("the store cannot be used now because an earlier statement of the change failed")
        if isinstance(error, PostgresError) and not connection.warnings and _is_refusal(error, connection):
            raise error
        connection.terminate()
        raise OutcomeUnknown(
            "the database did not confirm the change, so it is unknown whether it is stored"
        ) from error

    async def rollback(self) -> None:
        """Roll back; a connection that cannot even do that is closed, which ends the transaction as well."""
        connection = self._connection
        if connection.is_closed():
            return
        try:
            await connection.execute("ROLLBACK", timeout=_ROLLBACK_SECONDS)
        except FAILURES:
            connection.terminate()


def retrieved(task: asyncio.Task[Any]) -> None:
    """Retrieve a task's exception, so that asyncio does not report it: nobody waits for the task any more."""
    if not task.cancelled():
        task.exception()


def _is_refusal(error: PostgresError, connection: PostgresqlConnection) -> bool:
    """Whether the server itself has refused to commit, and so has rolled back (rule 2)."""
    if error.sqlstate == _STOOD_STILL:
        return True  # the server ended the session before it read the COMMIT
    refused = _severity(error) == "ERROR" and not (error.sqlstate or "08").startswith("08")
    return refused and not connection.is_closed()


def is_lost(error: Exception, connection: PostgresqlConnection) -> bool:
    """Whether an error ends the connection, which is closed then."""
    # An error without a severity is the driver's, about a value.
    if isinstance(error, PostgresError) and _severity(error) in ("ERROR", "") and not connection.is_closed():
        return False
    connection.terminate()
    return True


def _severity(error: PostgresError) -> str:
    return getattr(error, "severity_en", None) or getattr(error, "severity", None) or ""


def cause(error: Exception) -> str:
    """Why the database failed, in words; "" if that is unknown."""
    if isinstance(error, _OF_POOLERS):
        return "a connection pooler stands before it, and store_session must be an address without one"
    if isinstance(error, PostgresError):
        state = error.sqlstate or ""
        return _CAUSES.get(state) or _CAUSES.get(state[:2], "")
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError):
        return _LOST
    if isinstance(error, socket.gaierror):
        return "its host name is unknown"
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return "no server listens there"
    return _tls_cause(error) or (_LOST if isinstance(error, OSError) else "")


class Gone(StoreUnavailable):
    """The server has closed a connection, as a restart does to all of them; nothing is known of the statement."""

    def __init__(self) -> None:
        super().__init__(f"the store cannot be used now because {_LOST}")


def value_problem(error: Exception) -> str:
    """What is wrong with a value that the database cannot hold; "" for every other error."""
    return _VALUES.get(error.sqlstate or "", "") if isinstance(error, PostgresError) else ""


def without_values(error: BaseException | None) -> None:
    """Remove from an error, and from what caused it, the part that repeats the values of a row."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, PostgresError):
            error.detail = None
        error = error.__cause__ or error.__context__


def _tls_cause(error: Exception) -> str:
    # By name: ``ssl`` is loaded only where it is used.
    names = {kind.__name__ for kind in type(error).__mro__}
    if "SSLCertVerificationError" in names:
        return "its certificate is not valid for its name, or not signed by sslrootcert"
    if "SSLError" in names:
        return "TLS with it failed"
    return "it offers no TLS" if "rejected SSL upgrade" in str(error) else ""


def unavailable(error: Exception) -> StoreUnavailable:
    """The error of the product for an error of the driver."""
    because = cause(error)
    if because == _LOST or getattr(error, "sqlstate", None) == _TERMINATED:
        return Gone()
    return StoreUnavailable(f"the store cannot be used now{f' because {because}' if because else ''}")


class Servers:
    """The servers of one address: connects to the one that can be written to."""

    def __init__(self, address: PostgresqlAddress, limits: PostgresqlLimits, *, pooled: bool = False) -> None:
        self.address = address
        self.limits = limits
        self.pooled = pooled
        self._last = 0

    async def connect(self, **settings: str) -> PostgresqlConnection:
        """A new connection, with more settings of the session. Raises StoreUnavailable."""
        hosts = self.address.hosts
        failure: StoreUnavailable | None = None
        for turn in range(len(hosts)):
            index = (self._last + turn) % len(hosts)
            try:
                connection = await self._connect(*hosts[index], settings)
            except PostgresError as error:
                failure = unavailable(error)
                if not (error.sqlstate or "").startswith(_NEXT_HOST):
                    raise failure from error
            except FAILURES as error:
                failure = unavailable(error)
                failure.__cause__ = error
            else:
                if connection is not None:
                    self._last = index
                    return connection
                failure = StoreUnavailable("the store cannot be used now because it can only be read, as a standby")
        raise failure or StoreUnavailable("the store cannot be used now")

    async def _connect(self, host: str, port: int, settings: Mapping[str, str]) -> PostgresqlConnection | None:
        """A connection to this server; ``None`` if it can only be read."""
        address, limits = self.address, self.limits
        tls = await asyncio.to_thread(address.tls, host)
        session = {} if self.pooled else {**limits.settings, **settings}
        async with asyncio.timeout(address.connect_timeout):
            connection: PostgresqlConnection = await asyncpg.connect(
                host=host,
                port=port,
                user=address.user,
                password=address.password,
                database=address.database,
                ssl=tls,
                target_session_attrs="any",
                server_settings={"application_name": address.application_name, **session},
                # Behind a pooler a statement that was prepared on one server may be run on another.
                statement_cache_size=0 if self.pooled else 200,
                max_cached_statement_lifetime=0,
                command_timeout=limits.statement + limits.lock,
                connection_class=PostgresqlConnection,
            )
            connection.limits, connection.pooled = limits, self.pooled
            try:
                keep_alive(connection.transport, limits.network)
                readable, fsync = await connection.fetchrow(
                    "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on',"
                    " current_setting('fsync')"
                )
                if fsync != "on" and limits.durable and not readable:
                    raise StoreUnavailable(
                        "the store cannot be used: the server runs with fsync = off, so a crash would lose acknowledged"
                        " changes"
                    )
            except BaseException:  # also a cancellation: nobody else would close it
                connection.terminate()
                raise
        if readable:
            connection.terminate()
            return None
        return connection


def keep_alive(transport: asyncio.Transport, seconds: float) -> None:
    """Notice within ``seconds`` or so that the other side of a TCP connection has gone."""
    given = transport.get_extra_info("socket")
    if given is None or given.family == socket.AF_UNIX:
        return
    # A socket object of our own, because uvloop's cannot set options.
    with socket.socket(fileno=socket.dup(given.fileno())) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))
