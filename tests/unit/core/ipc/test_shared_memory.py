"""The shared memory page in a real anonymous mapping."""

from __future__ import annotations

import mmap
import sys

import pytest

from proxy.core.errors import PageError
from proxy.core.ipc.shared_memory import MAGIC, PAGE_SIZE, SLOT_EPOCH, SLOT_LEASE, PageView


def mapping() -> memoryview:
    return memoryview(mmap.mmap(-1, PAGE_SIZE))


def test_a_formatted_page_has_no_lease_and_no_change() -> None:
    page = PageView.format(mapping(), incarnation=7)
    assert (page.epoch, page.lease_until_ns, page.incarnation) == (0, 0, 7)


def test_a_second_view_sees_what_the_first_writes_through_slots_too() -> None:
    memory = mapping()
    writer, reader = PageView.format(memory, incarnation=1), PageView(memory)
    writer.raise_epoch(3)
    writer.renew(2**63)
    assert (reader.epoch, reader.lease_until_ns) == (3, 2**63)
    assert (reader.words[SLOT_EPOCH], reader.words[SLOT_LEASE]) == (3, 2**63)


def test_the_slots_have_the_documented_offsets() -> None:
    memory = mapping()
    page = PageView.format(memory, incarnation=5)
    page.raise_epoch(9)
    words = [int.from_bytes(memory[at : at + 8], sys.byteorder) for at in range(0, PAGE_SIZE, 8)]
    assert words == [MAGIC, 9, 0, 5, 0, 0, 0, 0]


def test_a_new_start_keeps_the_epoch_and_ends_the_lease() -> None:
    memory = mapping()
    first = PageView.format(memory, incarnation=1)
    first.raise_epoch(12)
    first.renew(99)
    second = PageView.format(memory, incarnation=2)
    assert (second.epoch, second.lease_until_ns, second.incarnation) == (12, 0, 2)


def test_a_foreign_page_is_refused_and_cleared_when_formatted() -> None:
    memory = mapping()
    memory[:] = b"\xee" * PAGE_SIZE
    with pytest.raises(PageError):
        PageView(memory)
    assert PageView.format(memory, incarnation=1).epoch == 0


def test_a_short_page_is_refused() -> None:
    with pytest.raises(PageError):
        PageView(memoryview(bytearray(PAGE_SIZE - 1)), fresh=True)


def test_a_read_only_view_reads_and_does_not_write() -> None:
    memory = mapping()
    PageView.format(memory, incarnation=1).raise_epoch(4)
    reader = PageView(memory.toreadonly())
    assert reader.epoch == 4
    with pytest.raises(TypeError):
        reader.raise_epoch(5)


def test_an_epoch_that_does_not_fit_is_refused_and_release_frees_the_mapping() -> None:
    memory = mmap.mmap(-1, PAGE_SIZE)
    view = memoryview(memory)
    page = PageView.format(view, incarnation=1)
    with pytest.raises(PageError):
        page.raise_epoch(2**64)
    page.release()
    view.release()
    memory.close()


def test_the_clock_for_expiry_is_never_behind_and_a_new_start_forgets_it() -> None:
    view = memoryview(bytearray(PAGE_SIZE))
    page = PageView.format(view, 1)
    assert page.ahead == 0.0
    page.set_ahead(2.5)
    assert PageView(view).ahead == 2.5
    for wrong in (-3.0, float("1e30")):
        page.set_ahead(wrong)
        assert page.ahead == (0.0 if wrong < 0 else pytest.approx(2**64 / 1e9))
    assert PageView.format(view, 2).ahead == 0.0
