"""Opening the store and reading, changing and checking it: one database behind the repositories.

Rules:

1. Opening migrates an older schema, and refuses a newer one and a key other than the one the store was created with.
2. Every mutation goes through ``change``; the only other writes are ones that no decision depends on.
3. ``on_commit`` is called once a change is durable, in the order of the epochs, while the writer is still held: it must
   not start a change itself. A change whose announcement failed is announced before the next begins.
4. A change whose outcome is unknown is announced too, under its number: everything that depends on a key it touched is
   ``in_doubt`` until the log is settled, and must be refused. Then rows without effect take its number, so that no
   number ever means two changes, and the next number, which tells caches to drop what was refused in doubt.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.errors import OutcomeUnknown, StoreUnavailable, WrongKey
from proxy.core.model import Actor, ActorKind
from proxy.store import dialects, feed, grants, migrate, store_info
from proxy.store.audit import chain, request_events
from proxy.store.audit.chain import Appended, ChainVerification, Event, Mark, Occurred, Outdated
from proxy.store.audit.reports import Report, ReportsTable
from proxy.store.audit.request_events import RequestEvent
from proxy.store.change import Change, Rows
from proxy.store.dialects.dialect import Database
from proxy.store.engine import undisturbed
from proxy.store.records import Changes, GrantRows
from proxy.store.tokens import usage
from proxy.store.tokens.usage import Use

OnCommit = Callable[[int, Sequence[str]], Awaitable[None]]
OnDoubt = Callable[[int], None]

CHANGES_LIMIT: Final = 10_000
"""A reader further behind than this gets no list of changes: dropping its whole cache is cheaper."""
VERIFY_PAGE: Final = 100
"""Audit events checked in one piece: 4 ms in which nothing else runs."""

_PRUNE_BATCH: Final = 500
"""Rows in one transaction of pruning: others wait some milliseconds for the writer."""


_VOID: Final = "account.store.void"
_STORE: Final = (ActorKind.SYSTEM.value, "store", "store")


@dataclass(frozen=True, kw_only=True, slots=True)
class Doubt:
    """A change that may or may not be stored: the number that it was announced under, and the keys it touched."""

    number: int
    keys: frozenset[str]


async def _announce_nothing(_epoch: int, _keys: Sequence[str]) -> None:
    return None


def _no_doubt(_number: int) -> None:
    return None


class Store:
    """An open store. Created by ``Store.open``; closed by ``close``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._announced = 0
        self._head = Mark(n=0, hash="")
        self._lost: Mark | None = None
        """An event that this process wrote and that was gone from the end of the log when it wrote the next one."""
        self.store_id = ""
        self.on_commit: OnCommit = _announce_nothing
        """Called with the new epoch and the keys touched since the last call, before a change is acknowledged."""
        self.on_doubt: OnDoubt = _no_doubt
        """Called with the number of a change before it is announced in doubt, and with 0 once that has ended."""
        self._doubt: Doubt | None = None

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        key_fingerprint: str,
        on_commit: OnCommit | None = None,
        readers: int = 4,
        session: str | None = None,
    ) -> Store:
        """Open the database at ``url`` (``address.store_url``); create or migrate it if needed.

        ``session`` is the address without the transaction pooler that stands at ``url``, if there is one.

        Raises StoreUnavailable, StoreNewerSchema, and WrongKey if ``key_fingerprint`` (``services.derived_secrets``) is
        not the one that the store was created with.
        """
        database = dialects.of_url(url).database(url, readers=readers, session=session)
        store = cls(database)
        if on_commit is not None:
            store.on_commit = on_commit
        try:
            await store._database.open()
            async with store._database.write() as connection:
                await migrate.run(connection)
                store.store_id = await _identify(connection, key_fingerprint)
                store._announced = await feed.epoch(connection)
                store._head = await chain.head(connection)
                await store._database.commit(connection)
        except StoreUnavailable as error:
            await store.close()
            if database.location in str(error):
                raise
            raise StoreUnavailable(f"{error}: {database.location}") from error
        except BaseException:
            # Cancellations too: the error is raised again, and the connections' threads must end.
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Close every connection, the writer last. No call may be running any more."""
        await self._database.close()

    @asynccontextmanager
    async def change(self, actor: Actor, now: float | None = None) -> AsyncIterator[Change]:
        """One mutation by ``actor`` at ``now`` (unix seconds; by default the current time).

        Leaving the block commits and announces it; an exception undoes all of it.

        Raises Conflict and StoreUnavailable, with nothing changed; OutcomeUnknown if it may or may not be stored; and
        DataDirLost if the store's files are gone. Nothing is acknowledged then.
        """
        async with self._database.write() as connection:
            await self._catch_up(connection)
            change = Change(connection, actor, time.time() if now is None else now)
            yield change
            if change.empty:
                # What the caller read, and is about to report, only holds if the files are still in place.
                self._database.require_in_place()
            else:
                await undisturbed(self._finish(change), name="store-change")

    @property
    def in_doubt(self) -> frozenset[str]:
        """The keys that a change of unknown outcome has touched; usually none."""
        return frozenset() if self._doubt is None else self._doubt.keys

    def when_lost(self, call: Callable[[], None]) -> None:
        """Register a call for the moment when a change finds the store's files gone."""
        self._database.on_lost = call

    def is_in_place(self) -> bool:
        """Whether the store's files are still those that were opened (``Database.is_in_place``)."""
        return self._database.is_in_place()

    async def settle(self) -> None:
        """Settle a change of unknown outcome, if there is one and the disk permits. Raises as ``change`` does."""
        if self._doubt is not None or not self._database.settled:
            async with self._database.write() as connection:
                await self._catch_up(connection)

    async def skip_to(self, epoch: int) -> None:
        """Use up the numbers up to ``epoch``, at start: a change that was announced in doubt is not stored.

        Raises as ``change`` does.
        """
        async with self._database.write() as connection:
            voided = [
                await _void(connection, number, ()) for number in range(await feed.epoch(connection) + 1, epoch + 1)
            ]
            await self._database.commit(connection)
        for one in voided:
            self._logged(one)
        self._announced = max(self._announced, epoch)

    async def _catch_up(self, connection: AsyncConnection) -> None:
        """Announce what is stored but was not announced. The log is settled here: what is read is what is stored."""
        if self._doubt is not None:
            await undisturbed(self._end_doubt(connection, self._doubt), name="store-doubt")
        elif await feed.epoch(connection) != self._announced:
            # An earlier change could not be announced. Caches must learn of it before a retry is answered, even if
            # that answer is "nothing to do" or "not found".
            await undisturbed(self._announce(connection), name="store-announce")

    async def _end_doubt(self, connection: AsyncConnection, doubt: Doubt) -> None:
        keys = sorted(doubt.keys)
        after = await feed.epoch(connection) + 1
        voided = [await _void(connection, number, keys) for number in range(after, doubt.number + 2)]
        try:
            await self._database.commit(connection)
        except OutcomeUnknown as error:
            raise StoreUnavailable("the store cannot be used now because the disk fails") from error
        for one in voided:
            self._logged(one)
        await connection.begin()
        self._doubt = None
        self.on_doubt(0)
        await self._notify(doubt.number + 1, keys)

    async def _announce(self, connection: AsyncConnection) -> None:
        last = await feed.epoch(connection)
        await self.on_commit(last, (await feed.since(connection, self._announced, CHANGES_LIMIT)).keys)
        self._announced = last

    async def _finish(self, change: Change) -> None:
        epoch = self._announced + 1
        appended = await change.record(epoch)
        keys = tuple(change.keys)
        try:
            await self._database.commit(change.connection)
        except OutcomeUnknown:
            self._doubt = Doubt(number=epoch, keys=frozenset(keys))
            self.on_doubt(epoch)
            await self._notify(epoch, keys)
            raise
        except DBAPIError:
            # The log is settled. Its content decides, not the error that the commit raised.
            await change.connection.begin()
            if await feed.epoch(change.connection) != epoch:
                raise
        for one in appended:
            self._logged(one)
        await self._notify(epoch, keys)

    async def _notify(self, epoch: int, keys: Sequence[str]) -> None:
        try:
            await self.on_commit(epoch, keys)
        except Exception as error:
            raise OutcomeUnknown("the change is stored, but could not be announced yet") from error
        self._announced = epoch

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Rows]:
        """The repositories over one snapshot."""
        async with self._database.snapshot() as connection:
            yield Rows(connection)

    async def resolve(self, token_ids: Sequence[str]) -> GrantRows:
        """Everything that decides about these tokens (at least one), and the epoch it is as of.

        One statement, so one snapshot.
        """
        found = await grants.read(self._database, token_ids)
        return found if self._doubt is None else replace(found, as_of=self._as_announced(found.as_of))

    async def epoch(self) -> int:
        """The number of the last committed change."""
        ((epoch,),) = await self._database.rows(feed.EPOCH_QUERY, {})
        return int(epoch)

    async def changes_since(self, epoch: int, limit: int = CHANGES_LIMIT) -> Changes:
        """The keys touched after ``epoch``; ``complete`` is false if they cannot be listed."""
        async with self._database.snapshot() as connection:
            found = await feed.since(connection, min(epoch, await feed.epoch(connection)), limit)
            if (doubt := self._doubt) is None or self._as_announced(found.epoch) == found.epoch:
                return found if epoch <= found.epoch else replace(found, complete=False)
            return replace(found, epoch=doubt.number, keys=(*found.keys, *doubt.keys))

    def _as_announced(self, epoch: int) -> int:
        """The number to report for a state: while a change is in doubt, the state before it has its number."""
        doubt = self._doubt
        return doubt.number if doubt is not None and epoch == doubt.number - 1 else epoch

    async def token_hash(self, token_id: str) -> str | None:
        """The slow hash of a token's value; ``None`` for an unknown token."""
        async with self.read() as rows:
            return await rows.tokens.hash(token_id)

    async def write_digest(self, token_id: str, digest: bytes, *, expected_hash: str) -> bool:
        """Store the digest of a verified value; false if its hash has been replaced meanwhile.

        No change row: the digest is a cache of the hash, so it allows nothing that was not allowed before.
        """
        async with self._database.write() as connection:
            written = await Rows(connection).tokens.write_digest(token_id, digest, expected_hash)
            await self._database.commit(connection)
            return written

    async def add_uses(self, uses: Sequence[Use]) -> None:
        """Add to the usage of tokens, in one transaction; no change row, since no decision depends on it."""
        async with self._database.write() as connection:
            await usage.add(connection, uses)
            await self._database.commit(connection)

    async def add_reports(self, reports: Sequence[Report]) -> None:
        """Add to the counts of requests that report-only routes would have refused, in one transaction."""
        async with self._database.write() as connection:
            await ReportsTable(connection).add(reports)
            await self._database.commit(connection)

    async def append_requests(self, events: Sequence[RequestEvent], *, again: bool = False) -> None:
        """Append request events to the audit log, all or none; ``again`` repeats an attempt of unknown outcome."""
        async with self._database.write() as connection:
            if again and await request_events.holds(connection, events):
                return
            appended = await request_events.append(connection, events)
            await self._database.commit(connection)
            self._logged(appended)

    async def mark_notified(self, given: Sequence[tuple[str, float, int]]) -> None:
        """Record which expiry notices were sent (``ExpiringTokens.mark``). No decision depends on it."""
        async with self._database.write() as connection:
            await Rows(connection).expiring_tokens.mark(given)
            await self._database.commit(connection)

    async def prune(self, now: float) -> None:
        """Delete old change rows and list expired tokens as expired, a few rows in each transaction.

        No decision depends on either, so there is no change row. ``now`` in unix seconds.
        """
        steps: tuple[Callable[[Rows], Awaitable[int]], ...] = (
            lambda rows: feed.prune(rows.connection, _PRUNE_BATCH),
            lambda rows: rows.tokens.file_expired(now, _PRUNE_BATCH),
        )
        for step in steps:
            done = _PRUNE_BATCH
            while done >= _PRUNE_BATCH:
                async with self._database.write() as connection:
                    done = await step(Rows(connection))
                    await self._database.commit(connection)

    async def verify_audit(
        self, after: Mark | None = None, expected: Mark | None = None, limit: int | None = None
    ) -> ChainVerification:
        """Verify the chain of audit events after ``after``: at least ``limit`` of them, or all (``chain.verify``)."""
        events = 0
        while True:
            # Read before the snapshot begins, so that it contains them.
            written, change = self._written, self._acknowledged
            async with self._database.snapshot() as connection:
                found = await chain.verify(connection, after, expected, VERIFY_PAGE, written=written, change=change)
            events += found.events
            after = found.last
            if found.done or (limit is not None and events >= limit):
                return replace(found, events=events)

    @property
    def audit_head(self) -> Mark:
        """The newest event of the audit log that this process read at the start or has written since."""
        return self._head

    async def audit_tail_problem(self) -> str | None:
        """A problem with the end of the audit log, if any: a few reads, where ``verify_audit`` reads all of it."""
        written, change = self._written, self._acknowledged
        async with self._database.snapshot() as connection:
            return await chain.tail_problem(connection, written=written, change=change)

    @property
    def _acknowledged(self) -> int:
        """The number of the last change that is certainly stored: one in doubt may have no event."""
        return self._announced if self._doubt is None else min(self._announced, self._doubt.number - 1)

    @property
    def _written(self) -> Mark | None:
        return self._lost or (self._head if self._head.n else None)

    def _logged(self, appended: Appended | None) -> None:
        """Remember the newest event, now that it is committed, and an earlier one that turned out to be gone."""
        if appended is None:
            return
        before = appended.before
        # Another writer may have added events, and a failed commit may be stored after all; neither removes any.
        if self._lost is None and (before.n < self._head.n or (before.n == self._head.n and before != self._head)):
            self._lost = self._head
        self._head = appended.head

    async def outdated_audit(self, before: float, now: float) -> Outdated:
        """The events that are older than ``before``; both times in unix seconds."""
        async with self._database.snapshot() as connection:
            return await chain.outdated(connection, before, now)

    async def trim_audit(self, through: int, limit: int, record: Occurred | None = None) -> int:
        """Append ``record``, then remove the oldest events up to number ``through``, at most ``limit``.

        Returns how many were removed. No change row: no decision depends on the log. Raises Conflict if the chain is
        broken there.
        """
        async with self._database.write() as connection:
            appended = None if record is None else await chain.append_many(connection, (record,))
            removed = await chain.trim(connection, through, limit)
            await self._database.commit(connection)
            self._logged(appended)
            return removed


async def _void(connection: AsyncConnection, number: int, keys: Sequence[str]) -> Appended | None:
    """Store a change without effect under this number, which was announced for a change that is not stored."""
    at = time.time()
    await feed.append(connection, number, keys, at)
    event = Event(action=_VOID, target_kind="store", target_id="", details={"change": number})
    return await chain.append_many(connection, (Occurred(event=event, actor=_STORE, at=at),), epoch=number)


async def _identify(connection: AsyncConnection, key_fingerprint: str) -> str:
    """Check the key's fingerprint, or write it into a new store. Returns the store's id."""
    known = await store_info.read(connection, store_info.KEY_FINGERPRINT)
    if known is None:
        await store_info.write(connection, store_info.KEY_FINGERPRINT, key_fingerprint)
        await store_info.write(connection, store_info.STORE_ID, uuid.uuid4().hex)
    elif known != key_fingerprint:
        raise WrongKey(
            "the store was made with another secret key than this one (secret_key, or secret.key in data_dir)"
        )
    return await store_info.read(connection, store_info.STORE_ID) or ""
