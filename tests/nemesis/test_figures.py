"""The figures of ``tests.nemesis.acknowledgement``: percentiles of buckets, and the time that the machine withholds."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from tests.nemesis.acknowledgement import Histogram, Result
from tests.nemesis.probe import PERIOD_SECONDS, Lateness
from tests.support.process import wait_until

INFINITE = float("inf")


@pytest.mark.parametrize(
    ("counts", "median", "p99", "within"),
    [
        ({0.005: 99, 0.01: 1}, (0.0, 0.005), (0.0, 0.005), 1.0),
        ({0.005: 98, 0.01: 2}, (0.0, 0.005), (0.005, 0.01), 1.0),
        ({0.005: 10, 0.01: 88, INFINITE: 2}, (0.005, 0.01), (0.01, INFINITE), 0.98),
        ({}, (0.0, 0.0), (0.0, 0.0), 0.0),
    ],
)
def test_a_percentile_lies_in_the_bucket_that_reaches_its_share(
    counts: dict[float, int], median: tuple[float, float], p99: tuple[float, float], within: float
) -> None:
    histogram = Histogram(Counter(counts))
    assert (histogram.percentile(0.5), histogram.percentile(0.99)) == (median, p99)
    assert histogram.share_within(0.01) == within


def test_what_was_observed_before_does_not_count() -> None:
    before, after = Histogram(Counter({0.005: 5, 0.01: 2})), Histogram(Counter({0.005: 5, 0.01: 3, 0.025: 1}))
    assert after.since(before).counts == {0.005: 0, 0.01: 1, 0.025: 1}


@pytest.mark.parametrize(
    ("counts", "calls", "late", "kept"),
    [
        ({0.01: 100}, [0.015] * 100, 0.0002, True),
        ({0.01: 100}, [0.021] * 100, 0.0002, False),
        ({0.01: 99, 0.05: 1}, [0.015] * 100, 0.0002, True),
        ({0.01: 98, 0.025: 2}, [0.015] * 100, 0.0002, False),
        # The machine is not quiet: the whole call is not judged, and the acknowledgement by less.
        ({0.01: 100}, [0.5] * 100, 0.020, True),
        ({0.01: 98, 0.05: 2}, [0.5] * 100, 0.020, True),
        ({0.01: 98, 0.1: 2}, [0.5] * 100, 0.020, False),
    ],
)
def test_the_promises_are_judged_beside_the_machine(
    counts: dict[float, int], calls: list[float], late: float, kept: bool
) -> None:
    probe = Lateness()
    probe.note(due=1.0, woken=1.0 + late)
    buckets = dict.fromkeys((0.005, 0.01, 0.025, 0.05, 0.1), 0) | counts
    result = Result(calls=calls, acknowledged=Histogram(Counter(buckets)), late=[], probe=probe)
    assert result.kept is kept, str(result)


def test_only_what_was_withheld_in_the_interval_counts() -> None:
    probe = Lateness()
    for due, woken in ((1.0, 1.1), (2.0, 2.0005), (3.0, 3.2), (4.0, 4.4)):
        probe.note(due=due, woken=woken)
    assert probe.withheld(1.5, 4.0) == pytest.approx(0.2)
    assert probe.withheld(0.0, 5.0) == pytest.approx(0.7)


def test_a_thread_is_seen_to_be_late() -> None:
    with Lateness() as probe:
        begin = time.monotonic()
        wait_until(lambda: probe.count >= 20, "some wake-ups")
        assert time.monotonic() - begin >= 20 * PERIOD_SECONDS
