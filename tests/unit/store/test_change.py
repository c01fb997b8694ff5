"""A commit that raised and was durable all the same: a retry is answered only after the announcement."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.dependency_keys import token_key, user_key
from proxy.core.errors import Conflict, NotFound, OutcomeUnknown, StoreUnavailable
from proxy.store.dialects import sqlite_wal
from tests.contract.kit import ADMIN, Kit, opened

ANN = "ann@example.org"


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    async with opened(tmp_path) as kit:
        await kit.basics()
        kit.announced.clear()
        yield kit


@contextmanager
def reported_as_failed() -> Iterator[pytest.MonkeyPatch]:
    """Commits reach the disk and are then reported as failed."""
    commit = AsyncConnection.commit

    async def durable_and_raises(self: AsyncConnection) -> None:
        await commit(self)
        raise sa.exc.OperationalError("COMMIT", {}, sqlite3.OperationalError("disk I/O error"))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(AsyncConnection, "commit", durable_and_raises)
        yield patched


async def in_doubt(operation: Callable[[], Awaitable[object]]) -> None:
    """Run an operation whose commit is stored and reported as failed, while the log cannot be read either."""

    def unreadable(_position: sqlite_wal.WalPosition) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    with reported_as_failed() as patched:
        patched.setattr(sqlite_wal.WalPosition, "has_tail", unreadable)
        with pytest.raises(OutcomeUnknown):
            await operation()


async def test_a_stored_commit_is_acknowledged_although_it_was_reported_as_failed(kit: Kit) -> None:
    made = await kit.mint(ANN, "t")
    kit.announced.clear()
    with reported_as_failed():
        view = (await kit.tokens.revoke(ADMIN, made.view.id)).view
    assert view.status.value == "revoked"
    assert kit.announced == [(await kit.intact(), (token_key(made.view.id),))]


async def test_a_retry_with_nothing_to_do_is_answered_after_the_announcement(kit: Kit) -> None:
    made = await kit.mint(ANN, "t")
    kit.announced.clear()
    await in_doubt(lambda: kit.tokens.revoke(ADMIN, made.view.id))
    epoch = await kit.store.epoch()
    assert kit.announced == [(epoch, (token_key(made.view.id),))], "announced at once, so that it is refused meanwhile"
    view = (await kit.tokens.revoke(ADMIN, made.view.id)).view
    assert view.status.value == "revoked"
    assert kit.announced[1:] == [(epoch + 1, (token_key(made.view.id),))]
    await kit.tokens.revoke(ADMIN, made.view.id)
    assert len(kit.announced) == 2
    assert await kit.intact() == epoch + 1


async def test_a_retry_that_finds_nothing_is_answered_after_the_announcement(kit: Kit) -> None:
    made = await kit.mint(ANN, "t")
    kit.announced.clear()
    await in_doubt(lambda: kit.tokens.delete(ADMIN, made.view.id))
    with pytest.raises(NotFound):
        await kit.tokens.delete(ADMIN, made.view.id)
    assert kit.announced[-1] == (await kit.store.epoch(), (token_key(made.view.id),))


async def test_a_retry_that_conflicts_with_itself_is_answered_after_the_announcement(kit: Kit) -> None:
    await in_doubt(lambda: kit.users.add(ADMIN, "bob@example.org", "viewer"))
    with pytest.raises(Conflict):
        await kit.users.add(ADMIN, "bob@example.org", "viewer")
    bob = await kit.users.show(ADMIN, "bob@example.org")
    assert kit.announced[-1] == (await kit.store.epoch(), (user_key(bob.id),))


async def test_a_change_in_doubt_is_announced_before_the_next_and_under_its_own_number(kit: Kit) -> None:
    ann = await kit.users.show(ADMIN, ANN)
    await in_doubt(lambda: kit.users.suspend(ADMIN, ANN))
    made = await kit.users.add(ADMIN, "bob@example.org", "viewer")
    epoch = await kit.store.epoch()
    assert [epoch for epoch, _ in kit.announced] == [epoch - 2, epoch - 1, epoch]
    assert [keys for _, keys in kit.announced] == [(user_key(ann.id),), (user_key(ann.id),), (user_key(made.id),)]
    assert await kit.intact() == epoch


@contextmanager
def failing_and_unreadable() -> Iterator[None]:
    """Commits do not reach the disk, and the log cannot be read either."""

    def unreadable(_position: sqlite_wal.WalPosition) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    async def raises(_connection: AsyncConnection) -> None:
        raise sa.exc.OperationalError("COMMIT", {}, sqlite3.OperationalError("disk I/O error"))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(AsyncConnection, "commit", raises)
        patched.setattr(sqlite_wal.WalPosition, "has_tail", unreadable)
        yield


async def test_the_audit_log_is_valid_while_a_change_is_in_doubt_and_afterwards(kit: Kit) -> None:
    with failing_and_unreadable():
        with pytest.raises(OutcomeUnknown):
            await kit.users.suspend(ADMIN, ANN)
        assert kit.store.in_doubt
        assert await kit.store.audit_tail_problem() is None
        assert (await kit.store.verify_audit()).problem is None
    await kit.store.settle()
    assert await kit.store.audit_tail_problem() is None
    await kit.intact()


async def test_no_retry_is_answered_while_the_change_cannot_be_announced(kit: Kit) -> None:
    ann = await kit.users.show(ADMIN, ANN)
    announce = kit.store.on_commit

    async def unavailable(_epoch: int, _keys: Sequence[str]) -> None:
        raise StoreUnavailable("the page cannot be written")

    kit.store.on_commit = unavailable
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await kit.users.suspend(ADMIN, ANN)
    kit.store.on_commit = announce
    assert (await kit.users.suspend(ADMIN, ANN)).status.value == "suspended"
    assert kit.announced == [(await kit.store.epoch(), (user_key(ann.id),))]
    await kit.intact()
