"""Copies an embedded store into PostgreSQL, or only looks whether that would work (the package's rules)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from proxy.core.errors import CopyRefused
from proxy.store import feed, store_info
from proxy.store.audit import chain
from proxy.store.audit.chain import ChainVerification, Mark
from proxy.store.copying.columns import COPIED, Misfit
from proxy.store.copying.fingerprint import Fingerprint
from proxy.store.copying.source import EmbeddedSource
from proxy.store.copying.target import Copying, PostgresqlTarget
from proxy.store.store import Store

SHOWN: Final = 100
"""Misfits that are listed; more are counted."""
_PAGE: Final = 1000

Progress = Callable[[str, int, int], None]
"""Called with what is done ("copying users"), the rows done so far and the rows of that table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Copied:
    """``rows`` by table. ``epoch`` is the number of the last change; ``audit`` the verification of the log."""

    rows: Mapping[str, int]
    epoch: int
    audit: ChainVerification


@dataclass(frozen=True, kw_only=True, slots=True)
class _Store:
    """The embedded store as its own version of patgate sees it."""

    id: str
    epoch: int
    audit: ChainVerification


@dataclass(slots=True)
class _Misfits:
    first: list[Misfit] = field(default_factory=list)
    count: int = 0

    def add(self, found: list[Misfit]) -> None:
        self.first += found[: SHOWN - len(self.first)]
        self.count += len(found)

    def refuse(self) -> None:
        """Raise CopyRefused if there are any."""
        if self.count:
            word = "value" if self.count == 1 else "values"
            raise CopyRefused(f"PostgreSQL does not take {self.count} {word} of the store", map(str, self.first))


async def copy_store(
    path: Path,
    target: PostgresqlTarget,
    *,
    key_fingerprint: str,
    dry_run: bool = False,
    progress: Progress = lambda *_: None,
) -> Copied:
    """Copy the embedded store in ``path`` into ``target``; with ``dry_run`` only read and check everything.

    The caller holds the lock of the data directory. Raises CopyRefused, with nothing copied, for a target that is not
    empty and for values that PostgreSQL does not take; StoreUnavailable; OutcomeUnknown if the commit's answer was lost
    and the database does not answer since; WrongKey.
    """
    store = await _verified(path, key_fingerprint)
    with EmbeddedSource.opened(path) as source:
        rows = await source.rows()
        async with target.opened(), target.writing() as copying:
            await copying.require_empty(store.id, key_fingerprint)
            if dry_run:
                await _transfer(source, None, rows, progress)
                return Copied(rows=rows, epoch=store.epoch, audit=store.audit)
            await copying.create()
            sent = await _transfer(source, copying, rows, progress)
            progress("creating indexes", 0, 0)
            await copying.index()
            await _compare(copying, sent, rows, progress)
            progress("verifying the audit log", 0, 0)
            audit = await _verify(copying, store.epoch)
            if (audit.events, audit.problem, audit.head) != (store.audit.events, store.audit.problem, store.audit.head):
                raise CopyRefused("the audit log of the copy is not that of the store, so nothing was copied")
            await copying.commit(target, store.id)
    return Copied(rows=rows, epoch=store.epoch, audit=audit)


async def _verified(path: Path, key_fingerprint: str) -> _Store:
    """Open the store as a node would, which migrates it and checks its key, and verify its audit log."""
    store = await Store.open(f"sqlite:///{path}", key_fingerprint=key_fingerprint)
    try:
        audit = await store.verify_audit()
        async with store.read() as rows:
            epoch, head = await feed.epoch(rows.connection), await feed.head(rows.connection)
            if head.n != epoch:
                raise CopyRefused("the store's last change has another number than its head: it is damaged")
            return _Store(
                id=await store_info.read(rows.connection, store_info.STORE_ID) or "", epoch=epoch, audit=audit
            )
    finally:
        await store.close()


async def _transfer(
    source: EmbeddedSource, copying: Copying | None, rows: Mapping[str, int], progress: Progress
) -> dict[str, Fingerprint]:
    """Read every table and write it, until the first value that does not fit: from there on only read."""
    misfits = _Misfits()
    misfits.add(await source.orphans(SHOWN))
    word = "reading" if copying is None else "copying"
    sent: dict[str, Fingerprint] = {}
    for table in COPIED:
        done, fingerprint = 0, sent.setdefault(table.name, Fingerprint())
        async for batch in source.batches(table):
            misfits.add(batch.misfits)
            if copying is not None and not misfits.count:
                await copying.add(table, batch.rows)
                fingerprint.add(batch.rows)
            done += batch.read
            progress(f"{word} {table.name}", done, rows[table.name])
    misfits.refuse()
    return sent


async def _compare(
    copying: Copying, sent: Mapping[str, Fingerprint], rows: Mapping[str, int], progress: Progress
) -> None:
    for table in COPIED:
        found = Fingerprint()
        async for batch in copying.batches(table):
            found.add(batch)
            progress(f"comparing {table.name}", found.rows, rows[table.name])
        if found != sent[table.name] or found.rows != rows[table.name]:
            raise CopyRefused(f"the table {table.name} was not read back as it was written, so nothing was copied")


async def _verify(copying: Copying, epoch: int) -> ChainVerification:
    """Verify the audit log of the copy, event by event."""
    events, after = 0, None
    while True:
        found = await chain.verify(copying.connection, after, None, _PAGE, change=epoch)
        events += found.events
        after = Mark(n=found.last.n, hash=found.last.hash)
        if found.done:
            return ChainVerification(events=events, problem=found.problem, last=found.last, head=found.head, done=True)
