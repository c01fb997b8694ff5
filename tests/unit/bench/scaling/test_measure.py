"""A small measuring on a real PostgreSQL."""

from __future__ import annotations

from bench.scaling.measure import Sizes, measure
from bench.scaling.measurements import QUANTITIES


def test_a_short_measuring_on_a_real_postgresql_gives_every_quantity() -> None:
    """Every statement runs, and no cost is implausible; how precise they are is not tested here."""
    sizes = Sizes(
        tokens=400, events=800, rounds=1, seconds=0.02, rows=(3, 10, 50), listeners=(1, 17), fleets=((2, 20.0),),
        fleet_seconds=0.3, fleet_runs=1,
    )  # fmt: skip
    measured = measure(sizes, check=False)
    assert set(measured.quantities) == set(QUANTITIES)
    assert all(held.median >= 0 for held in measured.quantities.values())
    (fleet,) = measured.fleets
    assert fleet.nodes == 2
    assert fleet.changes > 0
    assert 0 < fleet.acknowledged_p50 <= fleet.acknowledged_p99
    assert measured["token_bytes"] > 300
    assert measured["poll_server"] > 0
