"""The lease: never longer than from before its renewal, and never again once the store was another's."""

from __future__ import annotations

import time
from pathlib import Path

from proxy.authority.grants.lease import LeaseKeeper
from proxy.authority.grants.shared_memory import open_page

LEASE = 5.0


def test_a_renewal_that_takes_long_gives_a_shorter_lease(tmp_path: Path) -> None:
    """Whoever is stopped between the look at the store and the page must not promise the time that passed."""
    page = open_page(tmp_path, store_epoch=1)
    looked: list[int] = []

    def owned() -> bool:
        looked.append(time.monotonic_ns())
        while time.monotonic_ns() <= looked[-1]:
            pass
        return True

    keeper = LeaseKeeper(page, LEASE, owned=owned)
    for _ in range(3):
        before = time.monotonic_ns()
        assert keeper.renew()
        assert before + LEASE * 1e9 <= page.lease_until_ns <= looked[-1] + LEASE * 1e9
    page.close()


def test_ownership_that_was_lost_does_not_come_back_though_the_store_is_ours_again(tmp_path: Path) -> None:
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


def test_nothing_is_lost_before_it_was_looked_for(tmp_path: Path) -> None:
    page = open_page(tmp_path, store_epoch=1)
    keeper = LeaseKeeper(page, LEASE, owned=lambda: True)
    assert (keeper.lost, keeper.remaining()) == (False, 0.0)
    page.close()
