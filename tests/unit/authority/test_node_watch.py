"""Watching the nodes of a shared store: metrics, and one warning for each thing that an operator should know."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from proxy.authority.node_watch import NodeWatch
from proxy.core.errors import StoreUnavailable
from proxy.observe import metrics
from proxy.services.nodes import NodeView

OURS = NodeView(
    id="a" * 32,
    name="ours",
    version="1",
    schema="0006",
    applied=7,
    lease=2.0,
    lease_seconds=1.5,
    started_at=0.0,
    config_hash="h",
    config_matches=True,
    self=True,
)
OTHER = replace(OURS, id="b" * 32, name="theirs", config_hash="i", config_matches=False, self=False)


class Fleet:
    """What a store with several nodes would answer, and a watch of it."""

    def __init__(self) -> None:
        self.listed, self.superseded, self.offset, self.away = [OURS], False, 0.0, False
        self.watch = NodeWatch(self.nodes, self.reads_superseded, offset=lambda: self.offset)

    async def nodes(self) -> list[NodeView]:
        if self.away:
            raise StoreUnavailable("the store does not answer")
        return self.listed

    async def reads_superseded(self) -> bool:
        return self.superseded

    def values(self) -> dict[str, float]:
        return {name: series[()] for name, series in self.watch.snapshot(fenced=False).gauges.items()}


async def test_metrics_count_the_nodes_and_those_with_another_configuration() -> None:
    fleet = Fleet()
    assert fleet.values() == {
        "patgate_nodes": 1,
        "patgate_config_mismatch": 0,
        "patgate_store_fenced": 0,
        "patgate_roles_superseded": 0,
        "patgate_clock_offset_seconds": 0.0,
    }
    fleet.listed, fleet.superseded, fleet.offset = [OURS, OTHER, replace(OTHER, config_matches=True)], True, -0.25
    await fleet.watch.look()
    assert list(fleet.values().values()) == [3, 1, 0, 1, -0.25]
    assert fleet.watch.snapshot(fenced=True).gauge(metrics.STORE_FENCED) == 1
    fleet.away = True
    with pytest.raises(StoreUnavailable):
        await fleet.watch.look()
    assert fleet.values()["patgate_nodes"] == 3, "what was last seen stays"


async def test_each_problem_is_logged_once_until_it_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet()
    caplog.set_level(logging.INFO, "patgate")

    async def said() -> list[str]:
        caplog.clear()
        await fleet.watch.look()
        return [f"{record.getMessage()} {record.__dict__['patgate_fields']}" for record in caplog.records]

    assert await said() == []
    fleet.listed, fleet.superseded, fleet.offset = [OURS, OTHER], True, 2.5
    first = await said()
    assert len(first) == 3
    assert "theirs (bbbbbbbb)" in first[0]
    assert "2.5" in first[1]
    assert "patgate role apply" in first[2]
    assert await said() == []
    fleet.listed, fleet.superseded, fleet.offset = [OURS], False, 0.0
    assert len(await said()) == 1
    fleet.listed, fleet.superseded, fleet.offset = [OURS, OTHER], True, -2.5
    assert len(await said()) == 3


async def test_waits_for_acknowledgements_are_a_histogram() -> None:
    fleet = Fleet()
    for seconds in (0.0005, 0.004, 11.0):
        fleet.watch.acknowledged(seconds)
    tally = fleet.watch.snapshot(fenced=False).histograms[metrics.ACKNOWLEDGEMENT_SECONDS.name][()]
    found = [bound for bound, count in zip((*metrics.SECONDS, None), tally.counts, strict=True) if count]
    assert found == [0.0005, 0.005, None]
    assert tally.sum == pytest.approx(11.0045)
