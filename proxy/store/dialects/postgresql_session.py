"""PostgreSQL for the protocol of several nodes: ``nodes.sessions`` over two direct connections.

The timeout of a statement is half a lease, at least ``SHORTEST`` and at most ``LONGEST`` seconds. A renewal begins
every fifth of a lease, so after a dead connection three tenths of the lease are left for another connection and
renewal, which take milliseconds. Shorter would be worse: on a busy machine one slow disk write of the database must not
cost a connection, because a renewal that took half a lease still gives the other half. Longer leases do not need longer
timeouts, and a dead LISTEN, which each renewal notices, delays the revocations of all other nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from proxy.core.errors import StoreUnavailable
from proxy.store.dialects import postgresql_nodes as statements
from proxy.store.dialects.postgresql_direct import ConnectedServer, DirectConnection, Record
from proxy.store.dialects.postgresql_driver import PostgresqlConnection, PostgresqlLimits
from proxy.store.dialects.postgresql_dsn import parse
from proxy.store.nodes import history
from proxy.store.nodes.records import (
    PROTOCOL,
    FeedHead,
    ListedNode,
    Member,
    NodeRow,
    Poll,
    Remembered,
    StoreState,
)

SHORTEST: Final = 0.25
LONGEST: Final = 2.0
LIMITS: Final = PostgresqlLimits()


def statement_seconds(lease: float) -> float:
    """How long a statement of a node with a lease of ``lease`` seconds may take."""
    return min(max(lease / 2, SHORTEST), LONGEST)


def _nothing() -> None:
    return None


class PostgresqlSession:
    """``NodeSession``: renewal, LISTEN and acknowledgement on one connection, so that a dead one is noticed."""

    def __init__(self, url: str, *, lease: float, listen: bool, limits: PostgresqlLimits = LIMITS) -> None:
        """``listen`` is false for a database without LISTEN and NOTIFY. Raises StoreUnavailable for a wrong URL."""
        self.on_notify: Callable[[], None] = _nothing
        self._listen = listen
        self._direct = DirectConnection(
            parse(url), name="patgate session", seconds=statement_seconds(lease), limits=limits, opened=self._opened
        )

    async def _opened(self, connection: PostgresqlConnection) -> None:
        if self._listen:
            await connection.add_listener(statements.CHANNEL, self._heard)
        # What was notified before this connection is not heard.
        self.on_notify()

    def _heard(self, *_: object) -> None:
        self.on_notify()

    async def join(self, row: NodeRow, first: int) -> None:
        """``NodeSession.join``."""

        async def work(connection: PostgresqlConnection, _server: ConnectedServer) -> None:
            await connection.execute(
                statements.JOIN,
                row.id,
                row.name,
                row.version,
                PROTOCOL,
                row.schema,
                row.config_hash,
                row.lease,
                first,
                row.started_at,
            )

        await self._direct.run(work)

    async def renew(self, node: str, remembered: Remembered | None) -> StoreState:
        """``NodeSession.renew``."""

        async def work(connection: PostgresqlConnection, server: ConnectedServer) -> StoreState:
            known, mark = (0, None) if remembered is None else (remembered.n, remembered.mark)
            row = _one(await connection.fetchrow(statements.RENEW, node, known, mark, history.ACCEPTANCES))
            return StoreState(
                renewed=row["renewed"],
                n=row["n"],
                mark=row["mark"],
                history=server.history(row["timeline"], row["relation"]),
                bound=row["lease_bound"],
                acceptances=history.decode(row["acceptances"]),
                remembered=row["remembered"],
                acknowledged=row["acknowledged"],
                database_time=row["database_time"],
            )

        return await self._direct.run(work)

    async def head(self) -> FeedHead:
        """``NodeSession.head``."""

        async def work(connection: PostgresqlConnection, server: ConnectedServer) -> FeedHead:
            row = _one(await connection.fetchrow(statements.HEAD))
            return FeedHead(
                n=row["n"],
                mark=row["mark"],
                bound=row["lease_bound"],
                history=server.history(row["timeline"], row["relation"]),
            )

        return await self._direct.run(work)

    async def acknowledge(self, node: str, applied: int) -> None:
        """``NodeSession.acknowledge``."""

        async def work(connection: PostgresqlConnection, _server: ConnectedServer) -> None:
            await connection.execute(statements.ACKNOWLEDGE, node, applied)

        await self._direct.run(work)

    async def leave(self, nodes: Sequence[str]) -> None:
        """``NodeSession.leave``."""

        async def work(connection: PostgresqlConnection, _server: ConnectedServer) -> None:
            await connection.execute(statements.LEAVE, list(nodes))

        await self._direct.run(work)

    async def close(self) -> None:
        """``NodeSession.close``."""
        await self._direct.close()


class PostgresqlPoll:
    """``MemberPoll``."""

    def __init__(self, url: str, *, lease: float, limits: PostgresqlLimits = LIMITS) -> None:
        """Raises StoreUnavailable for a wrong URL."""
        self._direct = DirectConnection(
            parse(url), name="patgate poll", seconds=statement_seconds(lease), limits=limits
        )

    async def poll(self) -> Poll:
        """``MemberPoll.poll``."""

        async def work(connection: PostgresqlConnection, server: ConnectedServer) -> Poll:
            rows = await connection.fetch(statements.POLL)
            head = _one(rows[0] if rows else None)
            return Poll(
                members=tuple(
                    Member(id=row["id"], applied=row["applied"], renewals=row["renewals"])
                    for row in rows
                    if row["id"] is not None
                ),
                bound=head["lease_bound"],
                history=server.history(head["timeline"], head["relation"]),
            )

        return await self._direct.run(work)

    async def reap(self, node: str, renewals: int) -> None:
        """``MemberPoll.reap``."""

        async def work(connection: PostgresqlConnection, _server: ConnectedServer) -> None:
            await connection.execute(statements.REAP, node, renewals)

        await self._direct.run(work)

    async def describe(self, node: str, config_hash: str, lease: float) -> None:
        """``MemberPoll.describe``."""

        async def work(connection: PostgresqlConnection, _server: ConnectedServer) -> None:
            await connection.execute(statements.DESCRIBE, node, config_hash, lease)

        await self._direct.run(work)

    async def nodes(self) -> list[ListedNode]:
        """``MemberPoll.nodes``."""

        async def work(connection: PostgresqlConnection, _server: ConnectedServer) -> list[ListedNode]:
            return [
                ListedNode(
                    row=NodeRow(
                        id=row["id"],
                        name=row["name"],
                        version=row["version"],
                        schema=row["schema"],
                        config_hash=row["config_hash"],
                        lease=row["lease"],
                        started_at=row["started_at"],
                    ),
                    protocol=row["protocol"],
                    applied=row["applied"],
                    age=row["age"],
                )
                for row in await connection.fetch(statements.NODES)
            ]

        return await self._direct.run(work)

    async def close(self) -> None:
        """``MemberPoll.close``."""
        await self._direct.close()


def _one(row: Record | None) -> Record:
    if row is None:
        raise StoreUnavailable("the store cannot be used: the row of its newest change is missing")
    return row
