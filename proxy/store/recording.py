"""How a change becomes durable and known: the contract, and the way of the embedded store, which has one writer.

``shared_recording`` is the other way, for a store with several writers. Rules of this one:

1. ``on_commit`` is called once a change is durable, in the order of the epochs, while the writer is still held: it must
   not start a change itself. A change whose announcement failed is announced before the next begins.
2. A change whose outcome is unknown is announced too, under its number: everything that depends on a key it touched is
   ``in_doubt`` until the log is settled, and must be refused. Then rows without effect take its number, so that no
   number ever means two changes, and the next number, which tells caches to drop what was refused in doubt.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final, Protocol

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.errors import OutcomeUnknown, StoreUnavailable
from proxy.core.model import Actor, ActorKind
from proxy.store import feed, grants
from proxy.store.audit.chain import Appended, Event, Occurred
from proxy.store.audit.log import AuditLog
from proxy.store.change import Change, Rows
from proxy.store.dialects.dialect import Database
from proxy.store.engine import undisturbed
from proxy.store.feed import Head
from proxy.store.nodes.asking import Asking
from proxy.store.records import Changes, GrantRows

OnCommit = Callable[[int, Sequence[str]], Awaitable[None]]
OnDoubt = Callable[[int], None]
Known = Callable[[int, int], Awaitable[None]]
Admit = Callable[[Head | None], None]

CHANGES_LIMIT: Final = 10_000
"""A reader further behind than this gets no list of changes: dropping its whole cache is cheaper."""

_VOID: Final = "account.store.void"
_STORE: Final = (ActorKind.SYSTEM.value, "store", "store")


class Listeners(Protocol):
    """Who is told of changes (``store.Store``, which says what each call means)."""

    on_commit: OnCommit
    on_doubt: OnDoubt
    known: Known
    admit: Admit
    ask: Asking


class Recording(Protocol):
    """How changes of one kind of store are numbered, committed and made known."""

    @property
    def acknowledged(self) -> int:
        """The number of the last change that is certainly stored, as far as this process knows."""
        ...

    @property
    def in_doubt(self) -> frozenset[str]:
        """The keys that a change of unknown outcome has touched; usually none."""
        ...

    async def begin(self, connection: AsyncConnection) -> None:
        """Read where the store stands, when it is opened."""
        ...

    def change(self, actor: Actor, now: float, admit: Admit | None = None) -> AbstractAsyncContextManager[Change]:
        """One mutation (``Store.change``)."""
        ...

    def read(self) -> AbstractAsyncContextManager[Rows]:
        """The repositories over one snapshot (``Store.read``)."""
        ...

    async def settle(self) -> None:
        """Settle a change of unknown outcome, if there is one and the disk permits. Raises as ``change`` does."""
        ...

    async def skip_to(self, epoch: int) -> None:
        """Use up the numbers up to ``epoch`` (``Store.skip_to``)."""
        ...

    async def resolve(self, token_ids: Sequence[str]) -> GrantRows:
        """Everything that decides about these tokens (``Store.resolve``)."""
        ...

    async def changes_since(self, epoch: int, limit: int) -> Changes:
        """The keys touched after ``epoch``; ``complete`` is false if they cannot be listed."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Doubt:
    """A change that may or may not be stored: the number that it was announced under, and the keys it touched."""

    number: int
    keys: frozenset[str]


class LocalRecording:
    """Changes of a store that this process alone writes."""

    def __init__(self, database: Database, log: AuditLog, listeners: Listeners) -> None:
        self._database = database
        self._log = log
        self._listeners = listeners
        self._announced = 0
        self._doubt: Doubt | None = None

    @property
    def acknowledged(self) -> int:
        """The number of the last change that is certainly stored: one in doubt may have no event."""
        return self._announced if self._doubt is None else min(self._announced, self._doubt.number - 1)

    @property
    def in_doubt(self) -> frozenset[str]:
        """The keys that a change of unknown outcome has touched; usually none."""
        return frozenset() if self._doubt is None else self._doubt.keys

    async def begin(self, connection: AsyncConnection) -> None:
        """Read the number of the last change."""
        self._announced = await feed.epoch(connection)

    @asynccontextmanager
    async def change(self, actor: Actor, now: float, admit: Admit | None = None) -> AsyncIterator[Change]:
        """One mutation (``Store.change``); nothing has to be admitted here."""
        async with self._database.write() as connection:
            await self._catch_up(connection)
            change = Change(connection, actor, now)
            yield change
            if change.empty:
                # What the caller read, and is about to report, only holds if the files are still in place.
                self._database.require_in_place()
            else:
                await undisturbed(self._finish(change), name="store-change")

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Rows]:
        """The repositories over one snapshot. What it contains was announced before the writer was free."""
        async with self._database.snapshot() as connection:
            yield Rows(connection)

    async def settle(self) -> None:
        """Settle a change of unknown outcome, if there is one and the disk permits. Raises as ``change`` does."""
        if self._doubt is not None or not self._database.settled:
            async with self._database.write() as connection:
                await self._catch_up(connection)

    async def skip_to(self, epoch: int) -> None:
        """Use up the numbers up to ``epoch`` (``Store.skip_to``)."""
        async with self._database.write() as connection:
            voided = [
                await self._void(connection, number, ())
                for number in range(await feed.epoch(connection) + 1, epoch + 1)
            ]
            await self._database.commit(connection)
        for one in voided:
            self._log.logged(one)
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
        voided = [await self._void(connection, number, keys) for number in range(after, doubt.number + 2)]
        try:
            await self._database.commit(connection)
        except OutcomeUnknown as error:
            raise StoreUnavailable("the store cannot be used now because the disk fails") from error
        for one in voided:
            self._log.logged(one)
        await connection.begin()
        self._doubt = None
        self._listeners.on_doubt(0)
        await self._notify(doubt.number + 1, keys)

    async def _announce(self, connection: AsyncConnection) -> None:
        last = await feed.epoch(connection)
        keys = (await feed.since(connection, self._announced, CHANGES_LIMIT)).keys
        await self._listeners.on_commit(last, keys)
        self._announced = last

    async def _finish(self, change: Change) -> None:
        epoch = self._announced + 1
        appended = await change.record(epoch, feed.new_mark(), self._log)
        keys = tuple(change.keys)
        try:
            await self._database.commit(change.connection)
        except OutcomeUnknown:
            self._doubt = Doubt(number=epoch, keys=frozenset(keys))
            self._listeners.on_doubt(epoch)
            await self._notify(epoch, keys)
            raise
        except DBAPIError:
            # The log is settled. Its content decides, not the error that the commit raised.
            await change.connection.begin()
            if await feed.epoch(change.connection) != epoch:
                raise
        for one in appended:
            self._log.logged(one)
        await self._notify(epoch, keys)

    async def _notify(self, epoch: int, keys: Sequence[str]) -> None:
        try:
            await self._listeners.on_commit(epoch, keys)
        except Exception as error:
            raise OutcomeUnknown("the change is stored, but could not be announced yet") from error
        self._announced = epoch

    async def _void(self, connection: AsyncConnection, number: int, keys: Sequence[str]) -> Appended | None:
        """Store a change without effect under this number, which was announced for a change that is not stored."""
        at = time.time()
        await feed.append(connection, number, feed.new_mark(), keys, at)
        event = Event(action=_VOID, target_kind="store", target_id="", details={"change": number})
        return await self._log.append(connection, (Occurred(event=event, actor=_STORE, at=at),), epoch=number)

    async def resolve(self, token_ids: Sequence[str]) -> GrantRows:
        """What decides about these tokens. While a change is in doubt, the state before it has its number."""
        found = await grants.read(self._database, token_ids)
        return found if self._doubt is None else replace(found, as_of=self._as_announced(found.as_of))

    async def changes_since(self, epoch: int, limit: int) -> Changes:
        """The keys touched after ``epoch``; ``complete`` is false if they cannot be listed."""
        async with self._database.snapshot() as connection:
            found = await feed.since(connection, min(epoch, await feed.epoch(connection)), limit)
            if (doubt := self._doubt) is None or self._as_announced(found.epoch) == found.epoch:
                return found if epoch <= found.epoch else replace(found, complete=False)
            return replace(found, epoch=doubt.number, keys=(*found.keys, *doubt.keys))

    def _as_announced(self, epoch: int) -> int:
        doubt = self._doubt
        return doubt.number if doubt is not None and epoch == doubt.number - 1 else epoch
