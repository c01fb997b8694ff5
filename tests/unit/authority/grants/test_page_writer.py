"""The writer of the shared page keeps the epoch, ends old leases and refuses an older store."""

from __future__ import annotations

import asyncio
import mmap
import stat
import time
from pathlib import Path

import pytest

from proxy.authority.grants.lease import LeaseKeeper
from proxy.authority.grants.page_writer import PAGE_FILE, open_page
from proxy.core.errors import StoreBehind, StoreUnavailable
from proxy.core.ipc.shared_memory import PAGE_SIZE, PageView
from tests.support.process import HANGS_SECONDS
from tests.unit.authority.waiting import until


def test_a_new_page_is_private_has_the_stores_epoch_and_no_lease(tmp_path: Path) -> None:
    page = open_page(tmp_path, store_epoch=7)
    status = (tmp_path / PAGE_FILE).stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == PAGE_SIZE
    assert (page.epoch, page.lease_until_ns) == (7, 0)
    page.close()


def test_a_restart_ends_the_lease_keeps_the_file_and_changes_the_incarnation(tmp_path: Path) -> None:
    first = open_page(tmp_path, store_epoch=7)
    first.renew(123)
    second = open_page(tmp_path, store_epoch=9)  # the first died without closing
    assert (first.epoch, first.lease_until_ns) == (9, 0)
    assert first.incarnation == second.incarnation != 0
    assert first.is_in_place()
    second.close()
    first.close()


def test_a_successor_keeps_a_running_lease_and_changes_the_rest(tmp_path: Path) -> None:
    first = open_page(tmp_path, store_epoch=7)
    first.renew(123)
    second = open_page(tmp_path, store_epoch=9, successor=True)
    assert (first.epoch, first.lease_until_ns) == (9, 123)
    assert first.incarnation == second.incarnation != 0
    with pytest.raises(StoreBehind):
        open_page(tmp_path, store_epoch=8, successor=True)
    assert first.lease_until_ns == 0, "a successor that must not serve ends the lease"
    second.close()
    first.close()


def test_a_successor_finds_no_lease_in_an_invalid_page(tmp_path: Path) -> None:
    (tmp_path / PAGE_FILE).write_bytes(b"\xff" * PAGE_SIZE)
    page = open_page(tmp_path, store_epoch=1, successor=True)
    assert (page.epoch, page.lease_until_ns) == (1, 0)
    page.close()


def test_an_older_store_is_refused_and_no_lease_is_left(tmp_path: Path) -> None:
    before = open_page(tmp_path, store_epoch=9)
    before.renew(123)
    with pytest.raises(StoreBehind, match=r"number 8.*number 9"):
        open_page(tmp_path, store_epoch=8)
    assert (before.epoch, before.lease_until_ns) == (9, 0)
    before.close()


def test_an_accepted_older_store_gets_a_new_page_and_the_old_one_no_lease(tmp_path: Path) -> None:
    before = open_page(tmp_path, store_epoch=9)
    after = open_page(tmp_path, store_epoch=8, accept_older=True)
    after.renew(456)
    assert (after.epoch, after.is_in_place()) == (8, True)
    assert (before.lease_until_ns, before.is_in_place()) == (0, False)
    before.close()
    after.close()


def test_an_invalid_page_is_formatted_and_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / PAGE_FILE).write_bytes(b"\xff" * 3)
    page = open_page(tmp_path, store_epoch=1)
    assert page.epoch == 1
    page.close()
    (tmp_path / PAGE_FILE).unlink()
    (tmp_path / PAGE_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailable):
        open_page(tmp_path, store_epoch=1)
    assert not (tmp_path / "elsewhere").exists()


def test_the_lease_ends_when_the_page_is_replaced(tmp_path: Path) -> None:
    page = open_page(tmp_path, store_epoch=1)
    keeper = LeaseKeeper(page, 5.0, owned=page.is_in_place)
    before = time.monotonic()
    assert keeper.renew()
    left = keeper.remaining()
    assert 5.0 - (time.monotonic() - before) <= left <= 5.0
    (tmp_path / PAGE_FILE).unlink()
    assert not keeper.renew()
    assert (keeper.lost, keeper.remaining(), page.lease_until_ns) == (True, 0.0, 0)
    open_page(tmp_path, store_epoch=1).close()
    assert not keeper.renew(), "lost ownership does not return"
    page.close()


async def test_the_keeper_renews_until_ownership_is_lost_and_then_returns(tmp_path: Path) -> None:
    page = open_page(tmp_path, store_epoch=1)
    seen: list[int] = []

    def owned() -> bool:
        seen.append(page.lease_until_ns)
        return len(seen) < 4

    await LeaseKeeper(page, 0.05, owned=owned).run()
    assert seen == sorted(set(seen))
    assert page.lease_until_ns == 0
    page.close()


def test_a_worker_maps_what_the_authority_writes(tmp_path: Path) -> None:
    page = open_page(tmp_path, store_epoch=3)
    with (tmp_path / PAGE_FILE).open("rb") as file:
        view = PageView(memoryview(mmap.mmap(file.fileno(), PAGE_SIZE, access=mmap.ACCESS_READ)))
    page.raise_epoch(4)
    page.renew(99)
    assert (view.epoch, view.lease_until_ns, view.incarnation) == (4, 99, page.incarnation)
    page.close()


async def test_a_cancellation_together_with_a_change_of_the_lease_is_not_lost(tmp_path: Path) -> None:
    page = open_page(tmp_path, store_epoch=1)
    keeper = LeaseKeeper(page, 60.0, owned=page.is_in_place)
    running = asyncio.create_task(keeper.run())
    await until(lambda: page.lease_until_ns > 0)
    keeper.last(30.0)
    await asyncio.sleep(0)  # the keeper is about to be woken, and has not been yet
    running.cancel()
    done, _ = await asyncio.wait((running,), timeout=HANGS_SECONDS)
    page.close()
    assert done and running.cancelled()


async def test_a_shorter_lease_is_renewed_at_its_own_interval_from_the_start(tmp_path: Path) -> None:
    page = open_page(tmp_path, store_epoch=1)
    # The interval of the first lease is longer than ``until`` waits.
    keeper = LeaseKeeper(page, 86_400.0, owned=page.is_in_place)
    running = asyncio.create_task(keeper.run())
    try:
        await until(lambda: page.lease_until_ns > 0)
        keeper.last(0.5)
        first = page.lease_until_ns
        await until(lambda: page.lease_until_ns > first)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        page.close()


def test_the_store_may_lack_a_change_that_was_announced_in_doubt(tmp_path: Path) -> None:
    page = open_page(tmp_path, store_epoch=4)
    page.doubt(5)
    page.raise_epoch(5)
    page.close()
    page = open_page(tmp_path, store_epoch=4)
    assert (page.epoch, page.in_doubt) == (5, 5), "numbers only rise: the store is to skip this one"
    page.close()
    with pytest.raises(StoreBehind, match="number 3, but this node has already seen number 4"):
        open_page(tmp_path, store_epoch=3)


def test_after_the_doubt_has_ended_the_store_must_have_every_change(tmp_path: Path) -> None:
    page = open_page(tmp_path, store_epoch=4)
    page.doubt(5)
    page.raise_epoch(5)
    page.doubt(0)
    page.close()
    with pytest.raises(StoreBehind):
        open_page(tmp_path, store_epoch=4)
