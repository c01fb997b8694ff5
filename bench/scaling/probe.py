"""Micro-measurements: what each statement of the protocol costs the database, and the node that sends it.

CPU is the kernel's account of the one backend that serves the connection, so other load of the machine changes it
little. Times on the wall do depend on other load; of these only the disk's sync and the round trip enter the
simulation. A measurement repeats one statement for a fraction of a second, in rounds.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any, Final

import asyncpg

from bench.report.figures import Spread, percentile, spread
from bench.scaling import statements
from bench.scaling.dataset import Dataset
from bench.system.cpu_time import cpu_ns
from bench.system.postgres import USER, Server
from proxy.store.dialects import postgresql_nodes as nodes

LEASE: Final = 2.0
WARM_UP: Final = 20
BATCH: Final = 100
_SYNC_BYTES: Final = 8192
Work = Callable[[int], Awaitable[object]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The cost of one operation, each as the spread of the rounds."""

    server_us: Spread
    """Microseconds of CPU in the backend."""
    client_us: Spread
    """Microseconds of CPU in the process that sends it (asyncpg, in Python)."""
    wall_us: Spread
    """Microseconds until the answer; the median of each round."""
    wal_bytes: Spread
    """Bytes of write-ahead log."""


@dataclass(kw_only=True, slots=True)
class Session:
    """One connection and the process that serves it."""

    connection: asyncpg.Connection
    pid: int

    async def close(self) -> None:
        await self.connection.close()


async def connect(server: Server, database: str, **settings: str) -> Session:
    """A session with these server settings, such as ``synchronous_commit="off"``."""
    connection = await asyncpg.connect(
        host=server.sockets, user=USER, database=database, server_settings={"jit": "off", **settings}
    )
    return Session(connection=connection, pid=int(await connection.fetchval("SELECT pg_backend_pid()")))


class Prober:
    """Measures on one database, for ``seconds`` in each of ``rounds`` rounds."""

    def __init__(self, server: Server, control: asyncpg.Connection, *, seconds: float, rounds: int) -> None:
        self._server = server
        self._control = control
        self._seconds = seconds
        self._rounds = rounds

    async def cost(self, session: Session, work: Work, *, each: int = 1) -> Cost:
        """The cost of ``work``, called with growing numbers; ``each`` operations in one call."""
        number = 0
        for _ in range(WARM_UP):
            await work(number)
            number += 1
        found: list[tuple[float, float, float, float]] = []
        for _ in range(self._rounds):
            times: list[int] = []
            log = await self._log_position()
            served, sent = cpu_ns((session.pid,)), time.process_time_ns()
            end = time.monotonic() + self._seconds
            while not times or time.monotonic() < end:
                began = time.perf_counter_ns()
                await work(number)
                times.append(time.perf_counter_ns() - began)
                number += 1
            count = len(times) * each
            sent, served = time.process_time_ns() - sent, cpu_ns((session.pid,)) - served
            wrote = await self._log_position() - log
            found.append((served / count / 1e3, sent / count / 1e3, median(times) / each / 1e3, wrote / count))
        server, client, wall, log_bytes = (spread(values) for values in zip(*found, strict=True))
        return Cost(server_us=server, client_us=client, wall_us=wall, wal_bytes=log_bytes)

    async def rate(self, works: Sequence[Work]) -> Spread:
        """Operations a second when each of ``works`` (a connection of its own) is repeated without a pause."""
        found = []
        for turn in range(self._rounds):
            counts = [0] * len(works)
            end = time.monotonic() + self._seconds

            async def repeat(place: int, work: Work, start: int, end: float = end, counts: list[int] = counts) -> None:
                while time.monotonic() < end:
                    await work(start + counts[place])
                    counts[place] += 1

            began = time.monotonic()
            await asyncio.gather(*(repeat(place, work, turn * 1_000_000) for place, work in enumerate(works)))
            found.append(sum(counts) / (time.monotonic() - began))
        return spread(found)

    async def _log_position(self) -> int:
        return int(await self._control.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))

    def disk_sync_us(self) -> Spread:
        """Microseconds of an ``fdatasync`` after a write of one page, in the server's own directory."""
        file = self._server.data / "pg_wal" / "patgate-sync-probe"
        page = os.urandom(_SYNC_BYTES)
        found = []
        try:
            descriptor = os.open(file, os.O_CREAT | os.O_WRONLY, 0o600)
            try:
                os.write(descriptor, page * 64)
                os.fdatasync(descriptor)
                for _ in range(self._rounds):
                    times = []
                    for turn in range(100):
                        os.pwrite(descriptor, page, turn % 64 * _SYNC_BYTES)
                        began = time.perf_counter_ns()
                        os.fdatasync(descriptor)
                        times.append((time.perf_counter_ns() - began) / 1e3)
                    found.append(percentile(times, 0.5))
            finally:
                os.close(descriptor)
        finally:
            file.unlink(missing_ok=True)
        return spread(found)

    async def fan_out(self, notifier: Session, listeners: Sequence[Session]) -> FanOut:
        """NOTIFY to ``listeners``: the CPU of the one that sends, of each that receives, and the time to the last."""
        missing = 0
        received = asyncio.Event()

        def heard(*_: object) -> None:
            nonlocal missing
            missing -= 1
            if not missing:
                received.set()

        for one in listeners:
            await one.connection.add_listener(nodes.CHANNEL, heard)
        sending, receiving, last = [], [], []
        try:
            for _ in range(self._rounds):
                times: list[float] = []
                pids = [one.pid for one in listeners]
                sent, served = cpu_ns((notifier.pid,)), cpu_ns(pids)
                end = time.monotonic() + self._seconds
                while not times or time.monotonic() < end:
                    missing = len(listeners)
                    received.clear()
                    began = time.perf_counter_ns()
                    await notifier.connection.execute(f"NOTIFY {nodes.CHANNEL}")
                    if listeners:
                        async with asyncio.timeout(30):
                            await received.wait()
                    times.append((time.perf_counter_ns() - began) / 1e3)
                sending.append((cpu_ns((notifier.pid,)) - sent) / len(times) / 1e3)
                receiving.append((cpu_ns(pids) - served) / len(times) / 1e3 / max(1, len(listeners)))
                last.append(median(times))
        finally:
            for one in listeners:
                await one.connection.remove_listener(nodes.CHANNEL, heard)
        return FanOut(
            listeners=len(listeners), sender_us=spread(sending), receiver_us=spread(receiving), last_us=spread(last)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FanOut:
    """NOTIFY to a number of listeners."""

    listeners: int
    sender_us: Spread
    """CPU of the backend that commits, for one NOTIFY."""
    receiver_us: Spread
    """CPU of each backend that listens, for one NOTIFY."""
    last_us: Spread
    """Time until the last listener's client had it; all clients share one process here."""


async def add_nodes(control: asyncpg.Connection, ids: Sequence[str], applied: int) -> None:
    """Replace the rows of all nodes by these."""
    now = time.time()
    await control.execute("DELETE FROM acknowledgements")
    await control.execute("DELETE FROM nodes")
    await control.executemany(
        "INSERT INTO nodes (id, name, version, protocol, schema, config_hash, lease, renewals, started_at, renewed_at) "
        "VALUES ($1, $2, '0.2.0', 1, '0006', $3, $4, 0, $5, $5)",
        [(id_, f"node-{place}", sha256(b"").hexdigest(), LEASE, now) for place, id_ in enumerate(ids)],
    )
    await control.executemany(
        "INSERT INTO acknowledgements (id, applied) VALUES ($1, $2)", [(id_, applied) for id_ in ids]
    )
    await control.execute("VACUUM ANALYZE nodes, acknowledgements")


def node_ids(count: int) -> list[str]:
    return [sha256(str(place).encode()).hexdigest()[:32] for place in range(count)]


class Revoker:
    """Makes changes, each with one audit event."""

    def __init__(self, connection: asyncpg.Connection, dataset: Dataset) -> None:
        self._connection = connection
        self._tokens = dataset.tokens

    async def __call__(self, number: int) -> int:
        """Revoke a token and commit durably. Returns the number of the change."""
        token, connection, now = self._tokens[number * 7919 % len(self._tokens)], self._connection, time.time()
        async with connection.transaction(isolation="read_committed"):
            head = await connection.fetchrow(statements.lock_head())
            row = await connection.fetchrow(statements.READ_TOKEN, token)
            assert head is not None
            assert row is not None
            await connection.execute(statements.REVOKE, token, now)
            chain = await connection.fetchrow(statements.LOCK_CHAIN)
            assert chain is not None
            change, place = head["n"] + 1, chain["head_n"] + 1
            values = event(place, chain["head_hash"], row, now, change)
            await connection.execute(statements.EVENT, *values)
            await connection.execute(statements.MOVE_CHAIN, place, values[-1])
            mark = os.urandom(16)
            await connection.execute(statements.CHANGE, change, f'["token:{token}"]', now, mark)
            await connection.execute(statements.MOVE_HEAD, change, mark)
            await connection.execute(f"NOTIFY {nodes.CHANNEL}")
        return int(change)


def event(number: int, before: str, token: Any, at: float, change: int) -> list[Any]:
    """The columns of an audit event of this token: of a change, or of a request if ``change`` is 0."""
    made: dict[str, Any] = {
        "n": number, "at": at, "level": "account", "org_id": "", "actor_kind": "pat", "actor_id": token["id"],
        "actor_name": token["name"], "action": "account.pat.revoke" if change else "request.update",
        "target_kind": "token" if change else "route", "target_id": token["id"], "target_name": token["name"],
        "outcome": "done" if change else "allowed", "reason": "", "address": "192.0.2.7",
        "request_id": os.urandom(8).hex(), "decision_id": "" if change else os.urandom(8).hex(), "epoch": change,
        "details": '{"method":"PATCH","path":"/v1/things/0123456789","status":200}',
        "user_id": token["user_id"] or "", "prev_hash": before,
    }  # fmt: skip
    made["hash"] = sha256(repr(made).encode()).hexdigest()
    return [made[name] for name in statements.EVENT_COLUMNS]


async def append_events(connection: asyncpg.Connection, token: Any) -> None:
    """Append a batch of request events under the lock of the chain."""
    now = time.time()
    async with connection.transaction():
        chain = await connection.fetchrow(statements.LOCK_CHAIN)
        assert chain is not None
        number, before, rows = chain["head_n"], chain["head_hash"], []
        for _ in range(BATCH):
            number += 1
            rows.append(event(number, before, token, now, 0))
            before = rows[-1][-1]
        await connection.executemany(statements.EVENT, rows)
        await connection.execute(statements.MOVE_CHAIN, number, before)


async def add_uses(connection: asyncpg.Connection, tokens: Sequence[str]) -> None:
    """Add a batch of uses, one of each of these tokens, sorted by id."""
    now = time.time()
    async with connection.transaction():
        await connection.executemany(statements.USE, [(token, now, "192.0.2.7", 3) for token in sorted(tokens)])


def private_bytes(pid: int) -> int:
    """The private memory of a process, in bytes (/proc/<pid>/smaps_rollup)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
