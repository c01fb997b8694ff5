"""The stored costs are plausible, the page is rendered from them, and a small measuring on a real PostgreSQL works."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.report.figures import Spread
from bench.scaling import measurements, page
from bench.scaling.__main__ import main
from bench.scaling.measure import Sizes, measure
from bench.scaling.measurements import QUANTITIES
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
    assert replace(good, quantities=quantities).implausible() == [
        "head_server is missing.",
        "other is not known.",
        "disk_sync is 0.5 µs, not 5 to 30000.",
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


def test_the_published_page_is_what_the_stored_measurements_give() -> None:
    assert page.DOCUMENT.read_text("utf-8") == page.render(measurements.load())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.012"), (3.04, "3"), (9.96, "10"), (54.4, "54"), (8133, "8,100"), (float("inf"), "never")],
)
def test_what_is_simulated_has_two_digits(value: float, text: str) -> None:
    assert page.significant(value) == text


def test_a_short_measuring_on_a_real_postgresql_gives_every_quantity() -> None:
    """Every statement runs, and no cost is implausible; how precise they are is not tested here."""
    sizes = Sizes(
        tokens=400, events=800, rounds=1, seconds=0.02, listeners=(1, 17), fleets=((2, 20.0),), fleet_seconds=0.3,
        fleet_runs=1,
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


def test_a_deployment_is_simulated_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--nodes", "5", "--seconds", "1", "--changes", "20", "--cores", "2"]) == 0
    printed = capsys.readouterr().out
    assert "| acknowledged p50 |" in printed
    assert "| keeps up | yes |" in printed
