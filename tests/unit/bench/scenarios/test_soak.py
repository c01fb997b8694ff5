"""The line that is fitted through a soak's samples."""

from __future__ import annotations

import pytest

from bench.scenarios.soak import Sample, slope


def samples(*memory: int) -> list[Sample]:
    return [
        Sample(requests=1000 * number, memory=bytes_held, descriptors=20) for number, bytes_held in enumerate(memory, 1)
    ]


def test_constant_memory_has_no_slope() -> None:
    assert slope(samples(5_000_000, 5_000_000, 5_000_000)) == 0


def test_a_steady_leak_is_found_as_bytes_a_request() -> None:
    assert slope(samples(5_000_000, 5_003_000, 5_006_000)) == pytest.approx(3)


def test_memory_that_rises_and_falls_again_has_no_slope() -> None:
    assert slope(samples(5_000_000, 6_000_000, 5_000_000)) == pytest.approx(0)


def test_one_sample_has_no_slope() -> None:
    assert slope(samples(5_000_000)) == 0
