"""Revoked means revoked, on three nodes that fail in every way: the short form of ``make nemesis``.

It waits for no time limit of the product, so it may run beside other tests and on a machine that stands still at times:
what is late is not judged, only what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nemesis import mutants
from tests.nemesis.__main__ import find
from tests.nemesis.cluster import Cluster
from tests.nemesis.plan import Plan
from tests.nemesis.run import Options, Report, run
from tests.nemesis.scenarios import SCENARIOS

SEED = 11
NODES = 3
DECISIONS = 3000
CHANGES = 60
MOST_SECONDS = 500.0
LONGEST_SECONDS = 3.0


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    directory = tmp_path_factory.mktemp("nemesis")
    options = Options(
        seed=SEED, clients=2, changers=3, connections=3, rate=200.0, decisions=DECISIONS, changes=CHANGES,
        most_seconds=MOST_SECONDS, gap=(0.2, 1.2),
    )  # fmt: skip
    with Cluster(directory, nodes=NODES, proxied=1) as cluster:
        yield run(options, cluster.nodes, cluster.makers(LONGEST_SECONDS), directory)


def test_what_was_revoked_is_accepted_nowhere(report: Report) -> None:
    assert not report.verdict.violations, report
    assert not report.verdict.problems, report


def test_no_acknowledged_change_is_lost(report: Report) -> None:
    assert not report.verdict.lost, report
    assert not report.verdict.twice, report
    assert not report.chain, report


def test_the_run_was_one(report: Report) -> None:
    """A run in which nothing was asked, changed or broken would prove nothing."""
    assert report.verdict.decisions >= DECISIONS, report
    assert report.verdict.changes >= CHANGES, report
    assert all(report.verdict.allowed[f"n{number}"] > 100 for number in range(NODES)), report
    changed = {"revoke", "rotate", "scope", "suspend", "role"}
    assert changed <= set(Plan(name="", directory="", nodes=[], seed=0).kinds)
    assert changed <= set(report.verdict.kinds), report
    assert len(report.faults) >= 20, report
    assert {"freeze node", "kill node", "kill authority", "kill gateway", "link cut", "link mute", "link deafen",
            "proxy notify off", "restart immediate", "terminate backends"} <= set(report.faults)  # fmt: skip


@pytest.mark.parametrize("name", ["answer at once"])
def test_a_seeded_bug_is_found(name: str, tmp_path: Path) -> None:
    """docs/consistency.md, step 14; ``python -m tests.nemesis --mutants`` runs the others."""
    mutant = next(one for one in mutants.MUTANTS if one.name == name)
    found = find(mutant, tmp_path / "run", SEED, changes=60, nodes=2)
    assert found.verdict.violations, found


@pytest.mark.parametrize("mutant", [*mutants.MUTANTS, *mutants.SCRIPTED], ids=lambda mutant: mutant.name)
def test_every_seeded_bug_fits_the_product(mutant: mutants.Mutant) -> None:
    for module, source in mutants.edited(mutant).items():
        compile(source, module, "exec")


def test_every_bug_that_chance_does_not_find_has_a_scenario() -> None:
    assert {mutant.name for mutant in mutants.SCRIPTED} == set(SCENARIOS)
