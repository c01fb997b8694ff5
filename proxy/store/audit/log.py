"""The audit log as this process uses it: what is appended and verified, and the memory of the newest event.

Rules:

1. The memory is the newest event that this process has read at the start, written since, or seen at the end of a log
   without a problem. Other processes append too, so later events are no problem; but the remembered one must be there.
2. Whether it is there is found out by the statement that locks the chain, so for each append, and by each check of the
   end. An event that was missing once stays remembered as lost.
3. Appends of one process end in any order here, so the memory takes the greatest number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.audit import chain, request_events
from proxy.store.audit.chain import Appended, ChainVerification, Mark, Occurred, Outdated
from proxy.store.audit.request_events import RequestEvent
from proxy.store.dialects.dialect import Database
from proxy.store.nodes import asking
from proxy.store.nodes.asking import Asking
from proxy.store.upkeep import batches
from proxy.store.upkeep.batches import Batch
from proxy.store.upkeep.writing import written

VERIFY_PAGE: Final = 100
"""Audit events checked in one piece: 4 ms in which nothing else runs."""
_NONE: Final = Mark(n=0, hash="")


class AuditLog:
    """The log of one store. ``acknowledged`` returns the number of the last change that is certainly stored."""

    def __init__(self, database: Database, acknowledged: Callable[[], int], ask: Asking) -> None:
        """``ask`` says whether the database may be read and written (``nodes.asking``)."""
        self._database = database
        self._acknowledged = acknowledged
        self._ask = ask
        self._head = _NONE
        self._lost: Mark | None = None
        """An event that this process wrote and that was gone when it wrote another one, or looked."""

    @property
    def head(self) -> Mark:
        """The newest event that this process knows."""
        return self._head

    @property
    def written(self) -> Mark | None:
        """The event that must be in the log, if there is any."""
        return self._head if self._head.n else None

    async def begin(self, connection: AsyncConnection) -> None:
        """Forget everything and remember the end of the log: at the start, or after another history was accepted."""
        self._head, self._lost = await chain.head(connection), None

    def logged(self, appended: Appended | None) -> None:
        """Remember the newest event, now that it is committed, and an earlier one that turned out to be gone."""
        if appended is None:
            return
        if self._lost is None:
            self._lost = appended.lost
        if appended.lost is not None or appended.head.n > self._head.n:
            self._head = appended.head

    async def append(
        self, connection: AsyncConnection, occurred: Sequence[Occurred], *, epoch: int = 0
    ) -> Appended | None:
        """Append events in this transaction (``chain.append_many``); ``logged`` after its commit."""
        return await chain.append_many(connection, occurred, epoch=epoch, written=self.written)

    async def append_requests(self, events: Sequence[RequestEvent], batch: Batch | None, now: float) -> None:
        """Append request events, all or none; nothing if ``batch`` is stored already. ``now`` in unix seconds."""

        async def work(connection: AsyncConnection) -> Appended | None:
            if batch is not None and not await batches.begin(connection, batch, now):
                return None
            return await request_events.append(connection, events, written=self.written)

        self.logged(await written(self._database, work, self._ask))

    async def verify(self, after: Mark | None, expected: Mark | None, limit: int | None) -> ChainVerification:
        """Verify the chain after ``after``: at least ``limit`` events, or all (``chain.verify``)."""
        events = 0
        while True:
            # Read before the snapshot begins, so that it contains them.
            known, change = self._known, self._acknowledged()
            async with asking.snapshot(self._database, self._ask) as connection:
                found = await chain.verify(connection, after, expected, VERIFY_PAGE, written=known, change=change)
            events += found.events
            after = found.last
            if found.done or (limit is not None and events >= limit):
                return replace(found, events=events)

    async def tail_problem(self) -> str | None:
        """A problem with the end of the log, if any: a few reads, where ``verify`` reads all of it."""
        known, change = self._known, self._acknowledged()
        async with asking.snapshot(self._database, self._ask) as connection:
            problem = await chain.tail_problem(connection, written=known, change=change)
            end = await chain.head(connection)
        if problem is None and end.n > self._head.n:
            self._head = end  # another process has appended it
        return problem

    @property
    def _known(self) -> Mark | None:
        return self._lost or self.written

    async def outdated(self, before: float, now: float) -> Outdated:
        """The events that are older than ``before``; both times in unix seconds."""
        async with asking.snapshot(self._database, self._ask) as connection:
            return await chain.outdated(connection, before, now)

    async def trim(self, through: int, limit: int, record: Occurred | None) -> int:
        """Remove the oldest events up to number ``through``, at most ``limit``, and append ``record`` about it.

        Returns how many were removed. Nothing is done if another process has removed them already. Raises Conflict if
        the chain is broken there.
        """

        async def work(connection: AsyncConnection) -> tuple[Appended | None, int]:
            removed = await chain.trim(connection, through, limit)
            events = () if record is None or not removed else (record,)
            return await self.append(connection, events), removed

        appended, removed = await written(self._database, work, self._ask)
        self.logged(appended)
        return removed
