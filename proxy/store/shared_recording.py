"""How a change becomes durable and known in a store with several writers (docs/consistency.md, rules 8 to 12).

Rules of this module:

1. A change locks the head first, so it reads and validates the state that it changes, and its number follows from the
   one before in the order of the commits. All that is slow, such as argon2, comes before the lock.
2. An answer that reveals the state waits, through ``Listeners.known``, for the greatest number that its transaction
   saw: that of a change which was made, which had nothing to do, or which was refused, and that of a read. Otherwise a
   retried revocation could answer "already revoked" before the other nodes know it. Nothing is locked meanwhile.
3. A change is announced by the one who follows the head (``authority.consistency.follower``), never from here.
4. If the outcome of a commit is unknown, a new connection locks the head, which waits for the former transaction to
   end, and looks for the change's mark. Only if there is no answer, or another database answers, the caller is told
   ``InDoubt``; with the same idempotency key it may try again.
5. A commit that has begun is finished also for a caller that has gone; every wait after it ends for that caller. A
   commit has a deadline (``Database.commit``), so the connection is free again.
6. What is answered is from the store that this node follows: its history is read in the same snapshot and judged
   (``nodes.asking``), again at the end, because the wait raises the page to the number. A change that is stored in a
   store that was replaced meanwhile is in doubt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.errors import InDoubt, OutcomeUnknown, StoreError, StoreUnavailable
from proxy.core.ipc.clock import boottime_ns
from proxy.core.model import Actor
from proxy.store import feed, grants
from proxy.store.audit.chain import Appended
from proxy.store.audit.log import AuditLog
from proxy.store.change import Change, Rows
from proxy.store.dialects.dialect import Database
from proxy.store.engine import undisturbed
from proxy.store.feed import Head
from proxy.store.nodes.asking import Judge
from proxy.store.recording import Admit, Listeners
from proxy.store.records import Changes, GrantRows

RESOLVE_SECONDS: Final = 5.0
"""How long the outcome of a commit in doubt is looked for: a frozen transaction ends in one second (rule 18)."""
_RETRY_SECONDS: Final = 0.1

_IN_DOUBT: Final = (
    "it is unknown whether the change is stored (in_doubt): repeat it with the same Idempotency-Key, or look whether it"
    " is in force"
)


@dataclass(kw_only=True, slots=True)
class _Attempt:
    """A change as it was committed: its number and mark, in which history, and the events that it appended."""

    number: int
    mark: bytes
    history: str
    appended: tuple[Appended, ...] = ()


class SharedRecording:
    """Changes of a store that other processes write too. ``notify`` wakes those who listen for changes."""

    def __init__(self, database: Database, log: AuditLog, listeners: Listeners, *, notify: bool = True) -> None:
        self._database = database
        self._log = log
        self._listeners = listeners
        self._wake = sa.text(database.wake) if notify and database.wake else None
        self._acknowledged = 0

    @property
    def acknowledged(self) -> int:
        """The greatest number of a change that this process has seen committed."""
        return self._acknowledged

    @property
    def in_doubt(self) -> frozenset[str]:
        """None, ever: a cache of the state before a change in doubt is valid until the follower sees the change."""
        return frozenset()

    async def begin(self, connection: AsyncConnection) -> None:
        """Read the number of the last change."""
        self._acknowledged = await feed.epoch(connection)

    @asynccontextmanager
    async def change(self, actor: Actor, now: float, admit: Admit | None = None) -> AsyncIterator[Change]:
        """One mutation (``Store.change``)."""
        admit = admit or self._listeners.admit
        admit(None)
        number = 0
        head: Head | None = None
        attempt: _Attempt | None = None
        try:
            async with self._database.write() as connection:
                head = await feed.lock_head(connection)
                number = head.n
                # What has to be refused may have become known while the lock was waited for.
                admit(head)
                change = Change(connection, actor, now)
                yield change
                if not change.empty:
                    attempt = _Attempt(number=_next(head, change), mark=feed.new_mark(), history=head.history)
                    await undisturbed(self._record(change, attempt), name="store-change")
        except OutcomeUnknown as error:
            # Here the connection is free: looking for the outcome takes another one of the same few.
            if attempt is None:
                raise
            await self._resolve(attempt, error)
        except StoreError:
            raise  # this reveals nothing
        except Exception:
            # Raised again: a refusal reveals the state, too (rule 2), if it is that of the right store (rule 6).
            admit(head)
            await self._revealed(number)
            raise
        self._require_admitted(admit, head, attempt)
        if attempt is not None:
            number = attempt.number
            self._recorded(attempt)
        await self._revealed(number)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Rows]:
        """The repositories over one snapshot (``Store.read``)."""
        judge = self._listeners.ask()
        head: Head | None = None
        try:
            async with self._database.snapshot() as connection:
                head = await feed.located_head(connection)
                judge(head.n, head.history)
                yield Rows(connection)
        except StoreError:
            raise
        except Exception:
            # Raised again: a refusal reveals the state, too (rule 2).
            await self._read(head, judge)
            raise
        await self._read(head, judge)

    async def _read(self, head: Head | None, judge: Judge) -> None:
        """Return when an answer may reveal what was read from the store with this head."""
        if head is not None:
            judge(head.n, head.history)  # it may have been replaced meanwhile (rule 6)
            await self._revealed(head.n)

    def _require_admitted(self, admit: Admit, head: Head | None, attempt: _Attempt | None) -> None:
        """Raise the reason if the store was refused or replaced while a change was made (rule 6)."""
        try:
            admit(head)
        except StoreUnavailable as error:
            if attempt is None:
                raise
            raise InDoubt(_IN_DOUBT) from error

    async def _revealed(self, number: int) -> None:
        """Return when an answer may reveal the state as of this change (rule 2)."""
        await self._listeners.known(number, boottime_ns())

    async def _record(self, change: Change, attempt: _Attempt) -> None:
        """Write the change under its number and commit it."""
        attempt.appended = await change.record(attempt.number, attempt.mark, self._log)
        if self._wake is not None:
            await change.connection.execute(self._wake)
        await self._database.commit(change.connection)

    def _recorded(self, attempt: _Attempt) -> None:
        """Remember a change that is stored."""
        for one in attempt.appended:
            self._log.logged(one)
        self._acknowledged = max(self._acknowledged, attempt.number)

    async def _resolve(self, attempt: _Attempt, error: OutcomeUnknown) -> None:
        """Return if the change is stored. Raises StoreUnavailable if it is not, InDoubt if that cannot be found out."""
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                stored = await self._look(attempt)
        except (TimeoutError, StoreError) as failed:
            raise InDoubt(_IN_DOUBT) from failed
        if stored is None:
            raise InDoubt(_IN_DOUBT) from error
        if not stored:
            raise StoreUnavailable("the connection to the store was lost, and nothing was changed") from error

    async def _look(self, attempt: _Attempt) -> bool | None:
        """Whether the change is stored (rule 4); None if nobody can know it. Tries until it is cancelled.

        Nobody can if another history answers, or if the changes of that time were forgotten.
        """
        while True:
            try:
                async with self._database.write() as connection:
                    head = await feed.lock_head(connection)
                    if head.history != attempt.history:
                        return None
                    stored = await feed.has(connection, attempt.number, attempt.mark)
                    # The row of a smaller number is gone only if changes were forgotten (``Change.start_over``).
                    return False if stored is None and head.n < attempt.number else stored
            except StoreUnavailable:
                await asyncio.sleep(_RETRY_SECONDS)

    async def settle(self) -> None:
        """Nothing to do: the outcome of each change is found out, or its caller told, before it ends."""

    async def skip_to(self, epoch: int) -> None:
        """Nothing to do: a number that is not in the store was announced by nobody."""

    async def resolve(self, token_ids: Sequence[str]) -> GrantRows:
        """Everything that decides about these tokens (``Store.resolve``)."""
        judge = self._listeners.ask()
        found = await grants.read(self._database, token_ids)
        judge(found.as_of, found.history)
        return found

    async def changes_since(self, epoch: int, limit: int) -> Changes:
        """The keys touched after ``epoch``; ``complete`` is false if they cannot be listed."""
        judge = self._listeners.ask()
        async with self._database.snapshot() as connection:
            found = await feed.since(connection, epoch, limit)
        # The last step, so that the caller has it before anything else is judged.
        judge(found.epoch, found.history)
        return found


def _next(head: Head, change: Change) -> int:
    """The change's number: the next, or, where it starts over, two above, so that the changes since then have a gap."""
    return head.n + 1 if change.above is None else max(head.n, change.above) + 2
