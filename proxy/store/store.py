"""Opening the store and reading, changing and checking it: one database behind the repositories.

Rules:

1. Opening migrates an older schema, and refuses a newer one and a key other than the one the store was created with.
2. Every mutation goes through ``change``; the only other writes are ones that no decision depends on (``writing``).
3. How a change is numbered, committed and made known is the recording's: ``recording`` for a store with one writer,
   ``shared_recording`` for one with several.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.errors import StoreUnavailable, WrongKey
from proxy.core.model import Actor
from proxy.store import dialects, feed, migrate, store_info
from proxy.store.audit.chain import ChainVerification, Mark, Occurred, Outdated
from proxy.store.audit.log import AuditLog
from proxy.store.audit.reports import Report, ReportsTable
from proxy.store.audit.request_events import RequestEvent
from proxy.store.change import Change, Rows
from proxy.store.dialects.dialect import Database
from proxy.store.feed import Head
from proxy.store.migrate import BeforeMigration
from proxy.store.nodes import asking, history
from proxy.store.nodes.asking import Asking
from proxy.store.nodes.records import AcceptedBy
from proxy.store.recording import CHANGES_LIMIT, Admit, LocalRecording, OnCommit, Recording
from proxy.store.records import Changes, GrantRows
from proxy.store.shared_recording import SharedRecording
from proxy.store.tokens import usage
from proxy.store.tokens.expiring import NoticeKey
from proxy.store.tokens.usage import Use
from proxy.store.upkeep import batches, chores
from proxy.store.upkeep.batches import Batch
from proxy.store.upkeep.writing import written

_PRUNE_BATCH: Final = 500
"""Rows in one transaction of pruning: others wait some milliseconds for the writer."""
_WRITER_KEPT_SECONDS: Final = 7 * 86400.0
"""How long a writer may be without an answer about its last batch and still be recognised (``batches``)."""

_Result = TypeVar("_Result")


async def _announce_nothing(_epoch: int, _keys: Sequence[str]) -> None:
    return None


def _no_doubt(_number: int) -> None:
    return None


async def _known_at_once(_number: int, _since: int) -> None:
    return None


def _admit_all(_head: Head | None) -> None:
    return None


class Store:
    """An open store. Created by ``Store.open``; closed by ``close``."""

    def __init__(self, database: Database, *, notify: bool = True) -> None:
        self._database = database
        self.store_id = ""
        self.on_commit: OnCommit = _announce_nothing
        """Called with the new epoch and the keys touched since the last call, before a change is acknowledged.

        Never called for a shared store: there the one who follows the head announces.
        """
        self.on_doubt: Callable[[int], None] = _no_doubt
        """Called with the number of a change before it is announced in doubt, and with 0 once that has ended.

        Never called for a shared store.
        """
        self.known: Callable[[int, int], Awaitable[None]] = _known_at_once
        """Returns when every node knows the change with this number, or can no longer serve without it.

        The second argument is CLOCK_BOOTTIME in nanoseconds after the end of the transaction that saw the number.
        Called for a shared store only, after each change, also one that had nothing to do or was refused, and after
        each ``read``: the answer waits for it, and nothing is locked meanwhile.
        """
        self.admit: Callable[[Head | None], None] = _admit_all
        """Called before a change of a shared store, with the head when it has the lock, and again after the commit.

        Raises StoreUnavailable.
        """
        self.ask: Asking = asking.ask_anything
        """Called before each question to a shared store, and before each write that is no change (``nodes.asking``)."""
        self._audit = AuditLog(database, lambda: self._recording.acknowledged, lambda: self.ask())
        self._recording: Recording = (
            SharedRecording(database, self._audit, self, notify=notify)
            if database.shared
            else LocalRecording(database, self._audit, self)
        )

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        key_fingerprint: str,
        on_commit: OnCommit | None = None,
        readers: int = 4,
        notify: bool = True,
        session: str | None = None,
        before_migration: BeforeMigration | None = None,
    ) -> Store:
        """Open the database at ``url`` (``address.store_url``); create or migrate it if needed.

        ``notify``: changes wake those who listen for them, if the database can do that. ``session`` is the address
        without the transaction pooler that stands at ``url``, if there is one. ``before_migration`` is called in the
        transaction that would create or migrate the tables, and may refuse that by an exception.

        Raises StoreUnavailable, StoreNewerSchema, and WrongKey if ``key_fingerprint`` (``services.derived_secrets``) is
        not the one that the store was created with.
        """
        database = dialects.of_url(url).database(url, readers=readers, session=session)
        store = cls(database, notify=notify)
        if on_commit is not None:
            store.on_commit = on_commit
        try:
            await store._database.open()
            async with store._database.write() as connection:
                await migrate.run(connection, before_migration)
                store.store_id = await _identify(connection, key_fingerprint)
                await store._recording.begin(connection)
                await store._audit.begin(connection)
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

    @property
    def shared(self) -> bool:
        """Whether other processes may change the store too."""
        return self._database.shared

    def change(
        self, actor: Actor, now: float | None = None, *, admit: Admit | None = None
    ) -> AbstractAsyncContextManager[Change]:
        """One mutation by ``actor`` at ``now`` (unix seconds; by default the current time).

        ``admit`` is called instead of ``Store.admit``, for this change only. Leaving the block commits and announces
        the change; an exception undoes all of it.

        Raises Conflict and StoreUnavailable, with nothing changed; OutcomeUnknown if it may or may not be stored; and
        DataDirLost if the store's files are gone. Nothing is acknowledged then.
        """
        return self._recording.change(actor, time.time() if now is None else now, admit)

    @property
    def in_doubt(self) -> frozenset[str]:
        """The keys that a change of unknown outcome has touched; usually none."""
        return self._recording.in_doubt

    def when_lost(self, call: Callable[[], None]) -> None:
        """Register a call for the moment when a change finds the store's files gone."""
        self._database.on_lost = call

    def is_in_place(self) -> bool:
        """Whether the store's files are still those that were opened (``Database.is_in_place``)."""
        return self._database.is_in_place()

    async def settle(self) -> None:
        """Settle a change of unknown outcome, if there is one and the disk permits. Raises as ``change`` does."""
        await self._recording.settle()

    async def skip_to(self, epoch: int) -> None:
        """Use up the numbers up to ``epoch``, at start: a change that was announced in doubt is not stored.

        Raises as ``change`` does.
        """
        await self._recording.skip_to(epoch)

    async def begin_history(self, connection: AsyncConnection) -> None:
        """Forget what this process remembers of the store: another history of it is accepted, in this transaction.

        Raises StoreUnavailable.
        """
        await self._recording.begin(connection)
        await self._audit.begin(connection)

    async def record_creation(self, place: str) -> None:
        """Record the history that a new store is in. Raises StoreUnavailable, and Conflict if another node does it."""
        await self._write(lambda connection: history.accept(connection, place, AcceptedBy.CREATION))

    def read(self) -> AbstractAsyncContextManager[Rows]:
        """The repositories over one snapshot, for an answer to somebody: waits for ``known`` at the end."""
        return self._recording.read()

    async def resolve(self, token_ids: Sequence[str]) -> GrantRows:
        """Everything that decides about these tokens (at least one), and the epoch it is as of.

        One statement, so one snapshot.
        """
        return await self._recording.resolve(token_ids)

    async def epoch(self) -> int:
        """The number of the last committed change."""
        ((epoch,),) = await self._database.rows(feed.EPOCH_QUERY, {})
        return int(epoch)

    async def changes_since(self, epoch: int, limit: int = CHANGES_LIMIT) -> Changes:
        """The keys touched after ``epoch``; ``complete`` is false if they cannot be listed."""
        return await self._recording.changes_since(epoch, limit)

    async def token_hash(self, token_id: str) -> str | None:
        """The slow hash of a token's value; ``None`` for an unknown token."""
        async with asking.snapshot(self._database, self.ask) as connection:
            return await Rows(connection).tokens.hash(token_id)

    async def write_digest(self, token_id: str, digest: bytes, *, expected_hash: str) -> bool:
        """Store the digest of a verified value; false if its hash has been replaced meanwhile.

        No change row: the digest is a cache of the hash, so it allows nothing that was not allowed before.
        """
        return await self._write(
            lambda connection: Rows(connection).tokens.write_digest(token_id, digest, expected_hash)
        )

    async def add_uses(self, uses: Sequence[Use], batch: Batch | None = None) -> None:
        """Add to the usage of tokens, in one transaction; nothing if ``batch`` is stored already.

        No change row, since no decision depends on it.
        """
        await self._add(batch, lambda connection: usage.add(connection, uses))

    async def add_reports(self, reports: Sequence[Report], batch: Batch | None = None) -> None:
        """Add to the counts of requests that report-only routes would have refused; nothing if stored already."""
        await self._add(batch, lambda connection: ReportsTable(connection).add(reports))

    async def _add(self, batch: Batch | None, add: Callable[[AsyncConnection], Awaitable[None]]) -> None:
        async def work(connection: AsyncConnection) -> None:
            if batch is None or await batches.begin(connection, batch, time.time()):
                await add(connection)

        await self._write(work)

    async def _write(self, work: Callable[[AsyncConnection], Awaitable[_Result]]) -> _Result:
        return await written(self._database, work, self.ask)

    async def append_requests(self, events: Sequence[RequestEvent], batch: Batch | None = None) -> None:
        """Append request events to the audit log, all or none; nothing if ``batch`` is stored already."""
        await self._audit.append_requests(events, batch, time.time())

    async def claim_notices(self, notices: Sequence[NoticeKey], node: str, seconds: float) -> list[NoticeKey]:
        """Claim expiry notices for ``node``, for so many seconds; returns those that it has now and nobody has sent."""
        alone = not self._database.shared

        async def work(connection: AsyncConnection) -> list[NoticeKey]:
            names = [notice.claim for notice in notices]
            mine = await chores.claim(connection, names, node, seconds, alone=alone)
            # Read after the claim: the one who had it before has marked what it sent.
            return await Rows(connection).expiring_tokens.unsent([one for one in notices if one.claim in mine])

        return await self._write(work)

    async def mark_notified(self, given: Sequence[NoticeKey], node: str) -> None:
        """Record which expiry notices ``node`` has sent, and end its claims on them. No decision depends on it."""

        async def work(connection: AsyncConnection) -> None:
            await Rows(connection).expiring_tokens.mark(given)
            await chores.give_up(connection, [notice.claim for notice in given], node)

        await self._write(work)

    async def claim(self, names: Sequence[str], node: str, seconds: float) -> frozenset[str]:
        """Claim these tasks for ``node`` for so many seconds; returns those that it has now (``chores.claim``)."""
        alone = not self._database.shared
        return await self._write(lambda connection: chores.claim(connection, names, node, seconds, alone=alone))

    async def give_up(self, names: Sequence[str], node: str) -> None:
        """End the claims of ``node`` on these tasks."""
        await self._write(lambda connection: chores.give_up(connection, names, node))

    async def prune(self, now: float) -> None:
        """Delete old change rows and list expired tokens as expired, a few rows in each transaction.

        No decision depends on either, so there is no change row. ``now`` in unix seconds.
        """
        steps: tuple[Callable[[AsyncConnection], Awaitable[int]], ...] = (
            lambda connection: feed.prune(connection, _PRUNE_BATCH),
            lambda connection: Rows(connection).tokens.file_expired(now, _PRUNE_BATCH),
            lambda connection: batches.forget(connection, now - _WRITER_KEPT_SECONDS, _PRUNE_BATCH),
            lambda connection: chores.forget(connection, _PRUNE_BATCH),
        )
        for step in steps:
            while await self._write(step) >= _PRUNE_BATCH:
                pass

    async def verify_audit(
        self, after: Mark | None = None, expected: Mark | None = None, limit: int | None = None
    ) -> ChainVerification:
        """Verify the chain of audit events after ``after``: at least ``limit`` of them, or all (``chain.verify``)."""
        return await self._audit.verify(after, expected, limit)

    @property
    def audit_head(self) -> Mark:
        """The newest event of the audit log that this process knows (``AuditLog.head``)."""
        return self._audit.head

    async def audit_tail_problem(self) -> str | None:
        """A problem with the end of the audit log, if any: a few reads, where ``verify_audit`` reads all of it."""
        return await self._audit.tail_problem()

    async def outdated_audit(self, before: float, now: float) -> Outdated:
        """The events that are older than ``before``; both times in unix seconds."""
        return await self._audit.outdated(before, now)

    async def trim_audit(self, through: int, limit: int, record: Occurred | None = None) -> int:
        """Append ``record``, then remove the oldest events up to number ``through``, at most ``limit``.

        Returns how many were removed. No change row: no decision depends on the log. Raises Conflict if the chain is
        broken there.
        """
        return await self._audit.trim(through, limit, record)


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
