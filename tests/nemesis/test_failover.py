"""Another database takes the place of the nodes' own: no node accepts what was revoked before an operator says so.

A standby that is promoted, with and without lag, and a dump that is restored under running nodes.
``python -m tests.nemesis --mutants`` runs the same scenarios with bugs, which they must find.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nemesis import failover

SEED = 5


@pytest.mark.parametrize(
    "scenario",
    [
        failover.lagging_standby,
        failover.complete_standby,
        failover.overtaken_standby,
        failover.yesterdays_dump,
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_an_operator_must_accept_another_database(scenario: Callable[[Path], None], tmp_path: Path) -> None:
    scenario(tmp_path)


def test_a_synchronous_standby_takes_over_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    report = failover.synchronous_under_load(tmp_path, SEED)
    assert report.passed(), report
    assert report.faults == {"promotion": 1}
    # Something was acknowledged before and after it.
    promoted = next(begin for begin, _, what in report.log if "promotion" in what)
    assert report.changed_before(promoted) and report.changed_after(promoted), report
