"""What chance finds seldom, provoked step by step on two nodes: a lease at its limits, and a COMMIT in doubt.

``python -m tests.nemesis --mutants`` runs the same scenarios with bugs, which they must find.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.nemesis import doubts, leases
from tests.nemesis.cluster import Cluster
from tests.nemesis.scenarios import Step


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("steps"), nodes=2, proxied=1) as cluster:
        yield cluster


@pytest.mark.parametrize(
    "step",
    [leases.late_reply, leases.silent_authority, leases.silent_network, doubts.unsent, doubts.executed],
    ids=lambda step: step.__name__,
)
def test_nothing_revoked_is_accepted_and_no_caller_is_deceived(step: Step, pair: Cluster) -> None:
    step(pair, 0)
