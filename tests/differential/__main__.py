"""``make soak``: the differential test of paths with a million targets, or until its time is over."""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.differential.campaign import ROUND, campaign
from tests.differential.targets import corpus, mutations


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--targets", type=int, default=1_000_000, help="how many, each to every server")
    parser.add_argument("--seconds", type=float, default=7200.0, help="when to stop at the latest")
    parser.add_argument("--seed", type=int, default=None, help="repeats a run; printed at its beginning")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"path differential: {options.targets} targets, --seed {seed}", flush=True)
    stream = itertools.islice(itertools.chain(corpus(), mutations(seed)), options.targets)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="patgate-soak-") as directory, campaign(Path(directory)) as running:
        while batch := list(itertools.islice(stream, ROUND)):
            findings = running.run(batch)
            if findings:
                print(running.report(findings))
                return 1
            seconds = time.monotonic() - began
            print(f"{running.targets} targets, {seconds:.0f} s, no disagreement", flush=True)
            if seconds > options.seconds:
                break
        print(running.figures())
    if running.targets < options.targets:
        print(
            f"the time of {options.seconds:g} s was over before all {options.targets} targets were sent",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
