"""Which scenario finds which seeded bug of ``mutants.SCRIPTED``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tests.nemesis import doubts, failover, leases
from tests.nemesis.cluster import Cluster
from tests.support.gateway import ROOT

Step = Callable[[Cluster, int], None]
"""A scenario on a cluster of two nodes, the second of which is behind a proxy; and the number of the attempt."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """``run`` takes a directory and a ``tree``; with the bug it fails and says ``finds``."""

    run: Callable[..., None]
    finds: str = failover.ACCEPTED


def on_a_pair(step: Step, directory: Path, *, tree: Path = ROOT, attempts: int) -> None:
    """Run a step several times on one pair of nodes."""
    with Cluster(directory, nodes=2, proxied=1, tree=tree) as cluster:
        for number in range(attempts):
            step(cluster, number)


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "lease from the reply": Scenario(partial(on_a_pair, leases.late_reply, attempts=6)),
    "answer without the leases' end": Scenario(partial(on_a_pair, leases.silent_authority, attempts=6)),
    "doubt is success": Scenario(partial(on_a_pair, doubts.unsent, attempts=10)),
    "doubt is failure": Scenario(partial(on_a_pair, doubts.executed, attempts=3), finds=doubts.UNTRUE),
    "fence by number only": Scenario(failover.overtaken_standby),
    "no fence": Scenario(failover.lagging_standby),
}
