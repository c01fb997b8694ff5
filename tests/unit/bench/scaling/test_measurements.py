"""The stored costs: complete, plausible, and read back as they were written."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.report.figures import Spread
from bench.scaling import measurements
from tests.unit.bench.scaling.kit import measurements as made


def test_every_stored_cost_is_plausible_and_has_a_spread_around_it() -> None:
    stored = measurements.load()
    assert stored.implausible() == []
    for name, held in stored.quantities.items():
        assert held.low <= held.median <= held.high, name


def test_a_missing_unknown_or_implausible_quantity_is_named() -> None:
    good = made()
    assert good.implausible() == []
    quantities = {name: held for name, held in good.quantities.items() if name != "head_server"}
    quantities["other"] = Spread(median=1, low=1, high=1)
    quantities["disk_sync"] = Spread(median=0.5, low=0.5, high=0.5)
    quantities["round_trip"] = Spread(median=6000, low=1, high=1)
    assert replace(good, quantities=quantities).implausible() == [
        "head_server is missing.",
        "other is not known.",
        "disk_sync is 0.5 µs, not 5 to 30000.",
        "round_trip is 6000 µs, not 10 to 5000.",
    ]


def test_what_is_stored_is_read_back_with_four_digits(tmp_path: Path) -> None:
    file = tmp_path / "scaling.json"
    with pytest.raises(BenchError, match="measure --write"):
        measurements.load(file)
    measurements.save(made(disk_sync=123.456789), file)
    again = measurements.load(file)
    assert again["disk_sync"] == 123.5
    assert again.fleets == made().fleets
    measurements.save(again, file)
    assert asdict(measurements.load(file)) == asdict(again)
