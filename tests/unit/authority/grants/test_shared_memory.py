"""The page's writer keeps the epoch, ends old leases and refuses an older store."""

from __future__ import annotations

import asyncio
import mmap
import stat
from pathlib import Path

import pytest

from proxy.authority.grants.lease import LeaseKeeper
from proxy.authority.grants.shared_memory import PAGE_FILE, open_page
from proxy.core.errors import StoreBehind, StoreUnavailable
from proxy.core.ipc.shared_memory import PAGE_SIZE, PageView
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


def test_a_successor_leaves_a_running_lease_alone_and_changes_the_rest(tmp_path: Path) -> None:
    first = open_page(tmp_path, store_epoch=7)
    first.renew(123)
    second = open_page(tmp_path, store_epoch=9, successor=True)
    assert (first.epoch, first.lease_until_ns) == (9, 123)
    assert first.incarnation == second.incarnation != 0
    with pytest.raises(StoreBehind):
        open_page(tmp_path, store_epoch=8, successor=True)
    assert first.lease_until_ns == 0, "a successor that must not serve takes the promise back"
    second.close()
    first.close()


def test_a_successor_finds_no_lease_in_what_was_no_page(tmp_path: Path) -> None:
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


def test_what_is_not_a_page_is_made_one_and_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / PAGE_FILE).write_bytes(b"\xff" * 3)
    page = open_page(tmp_path, store_epoch=1)
    assert page.epoch == 1
    page.close()
    (tmp_path / PAGE_FILE).unlink()
    (tmp_path / PAGE_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailable):
        open_page(tmp_path, store_epoch=1)
    assert not (tmp_path / "elsewhere").exists()


def test_a_lease_ends_when_another_page_is_in_its_place(tmp_path: Path) -> None:
    page = open_page(tmp_path, store_epoch=1)
    keeper = LeaseKeeper(page, 5.0, owned=page.is_in_place)
    assert keeper.renew()
    assert 4.0 < keeper.remaining() <= 5.0
    (tmp_path / PAGE_FILE).unlink()
    assert not keeper.renew()
    assert (keeper.lost, keeper.remaining(), page.lease_until_ns) == (True, 0.0, 0)
    open_page(tmp_path, store_epoch=1).close()
    assert not keeper.renew(), "ownership that was lost does not come back"
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


async def test_an_end_at_the_moment_of_another_lease_is_not_overlooked(tmp_path: Path) -> None:
    page = open_page(tmp_path, store_epoch=1)
    keeper = LeaseKeeper(page, 60.0, owned=page.is_in_place)
    running = asyncio.create_task(keeper.run())
    await until(lambda: page.lease_until_ns > 0)
    keeper.last(30.0)
    await asyncio.sleep(0)  # the keeper is about to be woken, and has not been yet
    running.cancel()
    done, _ = await asyncio.wait((running,), timeout=10)
    page.close()
    assert done and running.cancelled()


async def test_a_shorter_lease_is_renewed_in_its_own_time_from_the_first(tmp_path: Path) -> None:
    page = open_page(tmp_path, store_epoch=1)
    keeper = LeaseKeeper(page, 60.0, owned=page.is_in_place)
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


def test_a_number_announced_in_doubt_is_none_that_the_store_must_have(tmp_path: Path) -> None:
    page = open_page(tmp_path, store_epoch=4)
    page.doubt(5)
    page.raise_epoch(5)
    page.close()
    page = open_page(tmp_path, store_epoch=4)
    assert (page.epoch, page.in_doubt) == (5, 5), "numbers only rise: the store is to skip this one"
    page.close()
    with pytest.raises(StoreBehind, match="number 3, but this node has already seen number 4"):
        open_page(tmp_path, store_epoch=3)


def test_once_the_doubt_has_ended_every_number_counts(tmp_path: Path) -> None:
    page = open_page(tmp_path, store_epoch=4)
    page.doubt(5)
    page.raise_epoch(5)
    page.doubt(0)
    page.close()
    with pytest.raises(StoreBehind):
        open_page(tmp_path, store_epoch=4)
