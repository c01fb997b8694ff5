"""Pruning deletes old rows in small batches, and readers of the change feed still get correct answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.store import feed
from tests.contract.kit import ADMIN, START, Kit, opened

pytestmark = pytest.mark.usefixtures("dialect")


async def _changes(kit: Kit, count: int) -> None:
    for number in range(count):
        async with kit.store.change(ADMIN, START) as change:
            change.touched(f"token:{number}")
            change.audit("test", target_kind="test", target_id=str(number))


async def test_pruning_deletes_the_oldest_changes_and_keeps_the_newest(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await _changes(kit, 20)
        async with kit.store.change(ADMIN, START) as change:
            pruned = [await feed.prune(change.connection, 6, kept=8) for _ in range(3)]
            await change.connection.commit()
        assert pruned == [6, 6, 0]
        assert await kit.store.epoch() == 20
        assert (await kit.store.changes_since(12)).keys == tuple(f"token:{number}" for number in range(12, 20))
        assert not (await kit.store.changes_since(11)).complete, "change 12 is not stored any more"


async def test_a_store_with_few_changes_keeps_them_all(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await kit.store.prune(START)
        await _changes(kit, 3)
        await kit.store.prune(START)
        assert (await kit.store.changes_since(0)).complete
        assert await kit.intact() == 3


async def test_pruning_lists_every_expired_token_as_expired(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await kit.basics()
        await kit.mint("ann@example.org", "one", expires=10)
        epoch = await kit.store.epoch()
        await kit.store.prune(START + 11)
        async with kit.store.change(ADMIN, START) as change:
            assert await change.tokens.file_expired(START + 11, 10) == 0
        assert await kit.store.epoch() == epoch, "listing a token as expired is no change"
