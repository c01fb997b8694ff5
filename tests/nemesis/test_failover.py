"""Another database takes the place of the nodes' own: no node accepts what was revoked before an operator says so.

A standby that is promoted, with and without lag, and a dump that is restored under running nodes.
``python -m tests.nemesis --mutants`` runs the same scenarios with bugs, which they must find.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nemesis import failover, promotion

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


def test_a_lagging_standby_takes_over_under_load_and_what_it_had_is_kept(tmp_path: Path) -> None:
    found = promotion.asynchronous_under_load(tmp_path, SEED)
    assert found.passed(), found
    assert found.report.faults == {"promotion": 1}
    # The run was one: something was there before, something was lost, and something was changed afterwards.
    assert found.report.changed_before(found.moments.complete), found
    assert found.gone, found
    assert found.report.changed_after(found.moments.accepted), found
