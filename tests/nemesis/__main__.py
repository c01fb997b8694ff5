"""``make nemesis``: four nodes under faults, at least a million decisions and ten thousand changes, and the verdict.

The last lines are the report, with a figure for each promise. The exit status is 1 if there is a violation, a lost
change, or a broken audit log. ``--mutants`` runs the seeded bugs instead, each of which must be found.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.nemesis import mutants
from tests.nemesis.cluster import Cluster
from tests.nemesis.run import Options, Report, run
from tests.nemesis.scenarios import SCENARIOS

MOST_SECONDS: Final = 300.0
"""How long the changes of a seeded bug's run may take; far less on a machine with nothing else to do."""
LONGEST_SECONDS: Final = 3.0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.nemesis", description=__doc__)
    made.add_argument("--seed", type=int, help="repeats the order of changes and faults; printed at the beginning")
    made.add_argument("--decisions", type=int, default=1_000_000)
    made.add_argument("--changes", type=int, default=10_000)
    made.add_argument("--seconds", type=float, default=0.0, help="the least duration")
    made.add_argument("--most-seconds", type=float, default=7200.0, help="end then, even if there is not enough")
    made.add_argument("--nodes", type=int, default=4)
    made.add_argument("--clients", type=int, default=4)
    made.add_argument("--changers", type=int, default=8, help="of each client")
    made.add_argument("--longest", type=float, default=10.0, help="seconds of the longest freeze and the longest cut")
    made.add_argument("--only", action="append", metavar="FAULT", help="only this kind of fault; may be repeated")
    made.add_argument("--calm", action="store_true", help="no faults at all")
    made.add_argument("--keep", type=Path, metavar="DIRECTORY", help="where logs and records are written and kept")
    made.add_argument("--mutants", action="store_true", help="run the seeded bugs, each of which must be found")
    made.add_argument("--mutant", action="append", metavar="NAME", help="only this seeded bug; may be repeated")
    return made


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    # Whoever is terminated ends what they have started, as with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    with tempfile.TemporaryDirectory(prefix="patgate-nemesis-") as name:
        directory = options.keep or Path(name)
        directory.mkdir(parents=True, exist_ok=True)
        if options.mutants or options.mutant:
            return seeded(directory, seed, options.mutant)
        print(f"nemesis: --seed {seed}", flush=True)
        wanted = Options(
            seed=seed, clients=options.clients, changers=options.changers, decisions=options.decisions,
            changes=options.changes, seconds=options.seconds, most_seconds=options.most_seconds, progress=True,
            every_fault=not options.calm and not options.only,
        )  # fmt: skip
        with Cluster(directory, nodes=options.nodes, proxied=options.nodes // 2) as cluster:
            makers = cluster.makers(options.longest)
            if options.calm or options.only:
                makers = {kind: makers[kind] for kind in options.only or ()}
            report = run(wanted, cluster.nodes, makers, directory)
        print(report)
        enough = report.verdict.decisions >= options.decisions and report.verdict.changes >= options.changes
        if not enough:
            print("not enough decisions or changes in the time")
        return int(not (report.passed() and enough))


def seeded(directory: Path, seed: int, only: Sequence[str] | None) -> int:
    """Run each seeded bug until it is found."""
    missed = []
    for mutant in mutants.MUTANTS:
        if only and mutant.name not in only:
            continue
        began = time.monotonic()
        report = find(mutant, directory / mutant.name.replace(" ", "-"), seed)
        found = not report.passed()
        verdict = report.verdict
        print(
            f"{'found' if found else 'MISSED'}: {mutant.name} (step {mutant.step}), "
            f"in {time.monotonic() - began:.0f} s: {verdict.decisions} decisions, {verdict.changes} changes, "
            f"{len(verdict.violations)} violations, {len(verdict.lost)} lost, {len(verdict.twice)} twice",
            flush=True,
        )
        if not found:
            missed.append(mutant.name)
            print(report, flush=True)
    for mutant in mutants.SCRIPTED:
        if only and mutant.name not in only:
            continue
        began, outcome, scenario = time.monotonic(), "MISSED", SCENARIOS[mutant.name]
        with mutants.tree(mutant) as tree:
            try:
                scenario.run(directory / mutant.name.replace(" ", "-"), tree=tree)
            except AssertionError as error:
                outcome = "found" if scenario.finds in str(error) else f"MISSED ({error})"
        print(f"{outcome}: {mutant.name} (step {mutant.step}), in {time.monotonic() - began:.0f} s", flush=True)
        if outcome != "found":
            missed.append(mutant.name)
    return int(bool(missed))


def find(mutant: mutants.Mutant, directory: Path, seed: int, *, changes: int = 250, nodes: int = 3) -> Report:
    """The report of a run of a mutant with at least so many changes, as far as they can be made in ``MOST_SECONDS``."""
    directory.mkdir(parents=True)
    options = Options(
        seed=seed, clients=2, changers=6, connections=3, rate=500.0, decisions=0, changes=changes,
        most_seconds=MOST_SECONDS, every_fault=False, every_change=False, at_once=1, gap=(0.5, 2.5),
        kinds=mutant.kinds,
    )  # fmt: skip
    with mutants.tree(mutant) as tree, Cluster(directory, nodes=nodes, proxied=1, tree=tree) as cluster:
        makers = cluster.makers(LONGEST_SECONDS)
        return run(options, cluster.nodes, {kind: makers[kind] for kind in mutant.faults}, directory)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
