"""Of several nodes one does the periodic work: it keeps the claim while it lives, and another takes over afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from proxy.authority.claim import CLAIM_SECONDS, Claim
from proxy.authority.housekeeping import Housekeeping
from proxy.core.errors import StoreUnavailable
from proxy.services.tokens.expiry_notices import DAY
from tests.contract.kit import START, Kit, opened
from tests.support.dialects import ON_POSTGRESQL
from tests.unit.authority.test_housekeeping import ANN, Host, Receiver, listening
from tests.unit.authority.waiting import until


@dataclass
class Tasks:
    """The claims of a store in memory, with a clock that tests set; it can be set to fail."""

    now: float = 100.0
    owner: str = ""
    until: float = 0.0
    failing: bool = False
    given_up: list[str] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    async def claim(self, names: Sequence[str], node: str, seconds: float) -> frozenset[str]:
        if self.failing:
            raise StoreUnavailable("the store cannot be used now")
        if self.owner not in ("", node) and self.now < self.until:
            return frozenset()
        self.owner, self.until = node, self.now + seconds
        return frozenset(names)

    async def give_up(self, names: Sequence[str], node: str) -> None:
        self.given_up.append(node)
        self.owner = ""


async def test_one_node_has_the_claim_and_another_takes_over_when_it_has_died() -> None:
    tasks = Tasks()
    one, two = (Claim(tasks, "t", node, clock=tasks.clock) for node in ("1", "2"))
    await one.renew()
    await two.renew()
    assert (one.held, two.held) == (True, False)
    tasks.now += CLAIM_SECONDS - 2
    await one.renew()
    tasks.now += CLAIM_SECONDS - 2
    await two.renew()
    assert (one.held, two.held) == (True, False)
    tasks.now += 1.5
    assert not one.held, "it stops before another may begin"
    await two.renew()
    assert not two.held
    tasks.now += 0.5
    await two.renew()
    await one.renew()
    assert (one.held, two.held) == (False, True)


async def test_the_claim_ends_in_time_while_the_store_cannot_be_used() -> None:
    tasks = Tasks()
    claim = Claim(tasks, "t", "1", clock=tasks.clock)
    await claim.renew()
    tasks.failing = True
    await claim.renew()
    held = [claim.held]
    tasks.now += CLAIM_SECONDS
    await claim.renew()
    held.append(claim.held)
    tasks.failing = False
    await claim.renew()
    assert [*held, claim.held] == [True, False, True]


async def test_a_clean_stop_gives_the_claim_up_and_a_node_without_it_gives_nothing_up() -> None:
    tasks = Tasks()
    one, two = (Claim(tasks, "t", node, clock=tasks.clock) for node in ("1", "2"))
    await one.renew()
    await two.give_up()
    assert tasks.given_up == []
    await one.give_up()
    assert not one.held
    await two.renew()
    assert two.held


@pytest.fixture
async def kits(dialect: str, tmp_path: Path) -> AsyncIterator[tuple[Kit, Kit]]:
    """Two nodes with one store."""
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        await one.basics()
        yield one, two


@ON_POSTGRESQL
async def test_two_nodes_send_each_notice_once(kits: tuple[Kit, Kit]) -> None:
    for number in range(10):
        await kits[0].mint(ANN, f"t{number}", expires=20 * DAY)
    for kit in kits:
        kit.clock.now = START + 10 * DAY
    receiver = Receiver()
    async with listening(receiver) as endpoint:
        # At once, as when a frozen node wakes up beside its successor.
        await asyncio.gather(*(Housekeeping(Host(kit, endpoint)).send_notices() for kit in kits))
        for kit in kits:
            await Housekeeping(Host(kit, endpoint)).send_notices()
    assert receiver.names() == [f"t{number}" for number in range(10)]


@ON_POSTGRESQL
async def test_one_of_two_nodes_prunes_and_the_other_takes_over(
    kits: tuple[Kit, Kit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.authority.claim.CLAIM_SECONDS", 3.0)
    monkeypatch.setattr("proxy.authority.housekeeping.CLAIM_SECONDS", 1.0)
    monkeypatch.setattr("proxy.authority.housekeeping.TICK_SECONDS", 0.05)
    hosts = [Host(kit) for kit in kits]
    keepers = [Housekeeping(host) for host in hosts]
    running = [asyncio.create_task(keeper.run(), name="housekeeping") for keeper in keepers]
    try:
        await until(lambda: any(host.pruned for host in hosts))
        await until(lambda: all(keeper.expiring for keeper in keepers))
        assert sorted(host.pruned for host in hosts) == [0, 1], "each counts for itself, and one prunes"
        first = 0 if hosts[0].pruned else 1
        running[first].cancel()
        await until(lambda: hosts[1 - first].pruned == 1)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
