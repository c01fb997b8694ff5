"""Costs for the tests of the simulation: round numbers instead of measured ones."""

from __future__ import annotations

from bench.report.figures import Spread
from bench.scaling.fleet import Observed
from bench.scaling.measurements import QUANTITIES, Measurements

FLEET = Observed(
    nodes=3,
    changes_per_second=10.0,
    changes=30,
    commit_p50=1.0,
    commit_p99=2.0,
    acknowledged_p50=3.0,
    acknowledged_p99=4.0,
)


def measurements(**costs: float) -> Measurements:
    """Every quantity in the middle of its range, except for these."""
    values = {name: costs.get(name, (quantity.low * quantity.high) ** 0.5) for name, quantity in QUANTITIES.items()}
    return Measurements(
        taken="2026-01-02",
        machine={"processor": "one"},
        quantities={name: Spread(median=value, low=value, high=value) for name, value in values.items()},
        fleets=(FLEET,),
    )


def free(**costs: float) -> Measurements:
    """Costs of which all are 0, except for these."""
    return measurements(**{**dict.fromkeys(QUANTITIES, 0.0), **costs})
