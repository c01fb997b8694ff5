"""The lease: its length counts from before the renewal, and it is never renewed after the store was lost."""

from __future__ import annotations

from pathlib import Path

from proxy.authority.grants.lease import LeaseKeeper
from proxy.authority.grants.page_writer import open_page
from proxy.core.ipc.clock import boottime_ns

LEASE = 5.0


def test_a_slow_renewal_gives_a_shorter_lease(tmp_path: Path) -> None:
    """A process that is stopped between checking the store and writing the page must not extend the lease."""
    page = open_page(tmp_path, store_epoch=1)
    looked: list[int] = []

    def owned() -> bool:
        looked.append(boottime_ns())
        while boottime_ns() <= looked[-1]:
            pass
        return True

    keeper = LeaseKeeper(page, LEASE, owned=owned)
    for _ in range(3):
        before = boottime_ns()
        assert keeper.renew()
        assert before + LEASE * 1e9 <= page.lease_until_ns <= looked[-1] + LEASE * 1e9
    page.close()


def test_lost_ownership_does_not_return_when_the_store_is_ours_again(tmp_path: Path) -> None:
    page = open_page(tmp_path, store_epoch=1)
    answers = iter([True, False, True, True])
    keeper = LeaseKeeper(page, LEASE, owned=lambda: next(answers))
    assert keeper.renew()
    assert not keeper.renew()
    assert (keeper.lost, page.lease_until_ns) == (True, 0)
    for again in (keeper.renew, lambda: keeper.last(LEASE)):
        again()
        assert (keeper.lost, page.lease_until_ns, keeper.remaining()) == (True, 0, 0.0)
    page.close()


def test_ownership_is_not_lost_before_the_first_check(tmp_path: Path) -> None:
    page = open_page(tmp_path, store_epoch=1)
    keeper = LeaseKeeper(page, LEASE, owned=lambda: True)
    assert (keeper.lost, keeper.remaining()) == (False, 0.0)
    page.close()
