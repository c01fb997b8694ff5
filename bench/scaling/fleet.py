"""A small fleet against a real PostgreSQL: what the simulation is compared with.

Every node is one session of this process: it renews its lease, listens, reads the head, acknowledges and fetches, as
docs/consistency.md says, but keeps no cache and serves no request. One more session makes the changes, and one polls.
So all nodes share one interpreter, which the simulation has to take into account (``protocol.Deployment.one_client``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Final

from bench.report.figures import percentile
from bench.scaling import statements
from bench.scaling.dataset import Dataset
from bench.scaling.probe import LEASE, Revoker, Session, add_nodes, connect, node_ids
from bench.system.postgres import Server
from proxy.store.dialects import postgresql_nodes as nodes
from proxy.store.nodes.history import ACCEPTANCES

POLL_SECONDS: Final = 0.002
_DEADLINE: Final = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """A run of a fleet. Times in milliseconds."""

    nodes: int
    changes_per_second: float
    changes: int
    commit_p50: float
    """From the first statement of a change to COMMIT's return."""
    commit_p99: float
    acknowledged_p50: float
    """From COMMIT's return to the poll that saw every acknowledgement."""
    acknowledged_p99: float


class _Node:
    """Renews its lease and follows the changes, on one session."""

    def __init__(self, id_: str, session: Session, head: tuple[int, bytes]) -> None:
        self._id = id_
        self._connection = session.connection
        self._turn = asyncio.Lock()
        self._stirred = asyncio.Event()
        self._remembered = head
        self._applied = head[0]

    async def start(self) -> None:
        await self._connection.add_listener(nodes.CHANNEL, lambda *_: self._stirred.set())

    async def renew(self, phase: float) -> None:
        await asyncio.sleep(phase)
        while True:
            began = time.monotonic()
            async with self._turn:
                await self._connection.fetchrow(nodes.RENEW, self._id, *self._remembered, ACCEPTANCES)
            await asyncio.sleep(max(0.0, began + LEASE / 5 - time.monotonic()))

    async def follow(self) -> None:
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            async with self._turn:
                known, row = self._applied, await self._connection.fetchrow(nodes.HEAD)
                assert row is not None
                if row["n"] == known:
                    continue
                self._applied = row["n"]
                await self._connection.execute(nodes.ACKNOWLEDGE, self._id, self._applied)
            async with self._turn:
                text, values = statements.fetch(known)
                await self._connection.fetch(text, *values)


async def observe(server: Server, database: str, dataset: Dataset, *, count: int, rate: float, seconds: float
) -> Observed:  # fmt: skip
    """Run ``count`` nodes for ``seconds`` while ``rate`` changes a second are made, one at a time."""
    async with contextlib.AsyncExitStack() as stack:

        async def session() -> Session:
            made = await connect(server, database)
            stack.push_async_callback(made.close)
            return made

        changer, poller = await session(), await session()
        ids = node_ids(count)
        head = await changer.connection.fetchrow("SELECT n, mark FROM change_head")
        await add_nodes(changer.connection, ids, head["n"])
        members = [_Node(id_, await session(), (head["n"], head["mark"])) for id_ in ids]
        tasks = []
        for place, member in enumerate(members):
            await member.start()
            tasks.append(asyncio.create_task(member.renew(LEASE / 5 * place / count), name=f"renew-{place}"))
            tasks.append(asyncio.create_task(member.follow(), name=f"follow-{place}"))
        try:
            revoke, poll = Revoker(changer.connection, dataset), await poller.connection.prepare(nodes.POLL)
            for number in range(10):
                await revoke(number)
            commits, waits = [], []
            end = time.monotonic() + seconds
            due = time.monotonic()
            number = 10
            while time.monotonic() < end:
                due = max(time.monotonic(), due + 1 / rate)
                await asyncio.sleep(due - time.monotonic())
                began = time.perf_counter()
                change = await revoke(number)
                committed = time.perf_counter()
                async with asyncio.timeout(_DEADLINE):
                    # The protocol polls, too.
                    while any(row["applied"] < change for row in await poll.fetch()):  # noqa: ASYNC110
                        await asyncio.sleep(POLL_SECONDS)
                waits.append((time.perf_counter() - committed) * 1e3)
                commits.append((committed - began) * 1e3)
                number += 1
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return Observed(
        nodes=count, changes_per_second=rate, changes=len(waits),
        commit_p50=percentile(commits, 0.5), commit_p99=percentile(commits, 0.99),
        acknowledged_p50=percentile(waits, 0.5), acknowledged_p99=percentile(waits, 0.99),
    )  # fmt: skip
