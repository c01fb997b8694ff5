"""How soon a revocation is answered on healthy nodes: ``python -m tests.nemesis.acknowledgement``.

It revokes tokens at a gentle rate, at random moments, each at a node drawn by lot. It prints the whole call and what it
takes after its COMMIT until every node has acknowledged it (``patgate_acknowledgement_seconds``), beside a probe of the
machine's scheduling.

Two promises. Acknowledgement after COMMIT: p99 at most 10 ms; on a machine that is not quiet, by the probe's own p99
later, and up to the next bound of a bucket. The whole call: p99 at most 20 ms, judged on a quiet machine only. The exit
status is 1 if one is not kept.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.nemesis.cluster import Cluster
from tests.nemesis.failover import OWNER
from tests.nemesis.node import Node
from tests.nemesis.probe import Lateness
from tests.nemesis.verdict import percentile
from tests.support.gateway import ControlClient, Token

METRIC: Final = "patgate_acknowledgement_seconds"
ACKNOWLEDGED_SECONDS: Final = 0.010
CALL_SECONDS: Final = 0.020
SHARE: Final = 0.99
QUIET_SECONDS: Final = 0.001
"""A machine is quiet if the probe's p99 is at most this late."""


class Histogram:
    """Observations by the upper bounds of their buckets, of all nodes together; seconds."""

    def __init__(self, counts: Counter[float]) -> None:
        self.counts = counts

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> Histogram:
        """The metric as all nodes report it now."""
        counts: Counter[float] = Counter()
        for node in nodes:
            with node.control_socket() as control:
                page = control.metrics()
            below = 0.0
            for bound, count in re.findall(rf'^{METRIC}_bucket{{le="([^"]+)"}} (\S+)$', page, re.MULTILINE):
                counts[float(bound)] += int(float(count) - below)
                below = float(count)
        return cls(counts)

    def since(self, before: Histogram) -> Histogram:
        return Histogram(Counter({bound: count - before.counts[bound] for bound, count in self.counts.items()}))

    @property
    def total(self) -> int:
        return self.counts.total()

    def percentile(self, share: float) -> tuple[float, float]:
        """The bounds of the bucket with the value below which this share of the observations lies."""
        rest, low = share * self.total, 0.0
        for bound in sorted(self.counts):
            rest -= self.counts[bound]
            if rest <= 0:
                return low, bound
            low = bound
        return low, low

    def share_within(self, seconds: float) -> float:
        """Which share is certainly at most so long; ``seconds`` should be the bound of a bucket."""
        within = sum(count for bound, count in self.counts.items() if bound <= seconds)
        return within / self.total if self.total else 0.0


@dataclass(kw_only=True, slots=True)
class Result:
    """The figures; ``str()`` prints them."""

    calls: list[float]
    """Seconds of each whole call, sorted."""
    acknowledged: Histogram
    late: list[float]
    """How late each call was begun, in seconds: it waited for one that was slow, or for the machine."""
    probe: Lateness

    @property
    def quiet(self) -> bool:
        return self.probe.percentile(0.99) <= QUIET_SECONDS

    @property
    def limit(self) -> float:
        """Seconds after COMMIT: the bound of a bucket, and a later one if the machine is not quiet."""
        if self.quiet:
            return ACKNOWLEDGED_SECONDS
        least = ACKNOWLEDGED_SECONDS + self.probe.percentile(0.99)
        return min((bound for bound in self.acknowledged.counts if bound >= least), default=least)

    @property
    def kept(self) -> bool:
        """Whether both promises were kept, as far as this machine lets them be judged."""
        acknowledged = self.acknowledged.share_within(self.limit) >= SHARE
        return acknowledged and (not self.quiet or percentile(self.calls, SHARE) <= CALL_SECONDS)

    def __str__(self) -> str:
        def ms(seconds: float) -> str:
            return f"{seconds * 1e3:.1f} ms"

        buckets = ", ".join(
            "p{:g} between {} and {}".format(share * 100, *map(ms, self.acknowledged.percentile(share)))
            for share in (0.5, 0.99)
        )
        within = self.acknowledged.share_within(self.limit)
        return "\n".join(
            (
                f"{len(self.calls)} revocations on three nodes",
                f"  whole call: p50 {ms(percentile(self.calls, 0.5))}, p99 {ms(percentile(self.calls, 0.99))}, "
                f"longest {ms(self.calls[-1])}; p99 at most {ms(CALL_SECONDS)} on a quiet machine",
                f"  acknowledged after COMMIT ({self.acknowledged.total} observations): {buckets}; "
                f"{within:.2%} within {ms(self.limit)}, and 99 % must be",
                f"  begun late: p99 {ms(percentile(sorted(self.late), 0.99))}",
                f"  {self.probe}: {'quiet' if self.quiet else 'NOT quiet, so the whole call is not judged'}",
                f"  {'kept' if self.kept else 'NOT KEPT'}",
            )
        )


def measure(directory: Path, *, changes: int, rate: float, seed: int, nodes: int = 3) -> Result:
    """Revoke ``changes`` tokens, ``rate`` a second."""
    chance = random.Random(seed)
    with Cluster(directory, nodes=nodes, proxied=0) as cluster, ExitStack() as stack:
        cluster.nodes[0].add_user(OWNER, "editor")
        controls = [stack.enter_context(node.control_socket()) for node in cluster.nodes]
        tokens = [_mint(controls[number % nodes], number) for number in range(changes)]
        before = Histogram.of(cluster.nodes)
        probe = stack.enter_context(Lateness())
        calls, late = [], []
        due = time.monotonic()
        for token in tokens:
            due += chance.expovariate(rate)
            time.sleep(max(0.0, due - time.monotonic()))
            control = chance.choice(controls)
            begin = time.monotonic()
            control.revoke(token)
            calls.append(time.monotonic() - begin)
            late.append(max(0.0, begin - due))
        return Result(
            calls=sorted(calls), acknowledged=Histogram.of(cluster.nodes).since(before), late=late, probe=probe
        )


def _mint(control: ControlClient, number: int) -> Token:
    return control.create_token(OWNER, name=f"t{number}")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nemesis.acknowledgement", description=__doc__)
    parser.add_argument("--changes", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=20.0, help="changes a second")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="patgate-nemesis-") as name:
        result = measure(Path(name), changes=options.changes, rate=options.rate, seed=options.seed)
    print(result)
    return int(not result.kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
