"""The command line of the sizing; see the package's docstring."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields

from bench.errors import BenchError
from bench.report.markdown import table_text
from bench.scaling import measurements, page
from bench.scaling.measure import Sizes, measure
from bench.scaling.protocol import Deployment, Outcome, simulate


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description="Size many nodes on one PostgreSQL.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure", help="measure every cost on a private PostgreSQL")
    one.add_argument("--write", action="store_true", help="store the result and write docs/scaling.md")
    one.add_argument("--rounds", type=int, default=Sizes().rounds, help="rounds of each measurement")
    one.add_argument("--seconds", type=float, default=Sizes().seconds, help="seconds of each round")
    two = commands.add_parser("simulate", help="simulate the acknowledgements of one deployment")
    two.add_argument("--nodes", type=int, default=50)
    two.add_argument("--changes", type=float, default=10.0, help="changes a second")
    two.add_argument("--lease", type=float, default=2.0, help="seconds")
    two.add_argument("--cores", type=int, default=page.CORES, help="cores of the database")
    two.add_argument("--network", type=float, default=0.3, help="milliseconds of a round trip")
    two.add_argument("--sync", type=float, help="milliseconds of a sync of the disk; default: as measured")
    two.add_argument("--seconds", type=float, default=10.0, help="simulated seconds")
    two.add_argument("--seed", type=int, default=1)
    three = commands.add_parser("page", help="print docs/scaling.md from the stored measurements")
    three.add_argument("--write", action="store_true", help="write it instead")
    return parser


def _outcome_text(outcome: Outcome) -> str:
    rows = []
    for field in fields(outcome):
        value = getattr(outcome, field.name)
        rows.append([field.name.replace("_", " "), "none" if value is None else page.significant(float(value))])
    return table_text(["simulated (times in ms)", "value"], [*rows, ["keeps up", "yes" if outcome.steady else "no"]])


def main(arguments: Sequence[str]) -> int:
    """Run one command. Returns 0, or 1 if there is no valid result."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "measure":
            measured = measure(Sizes(rounds=options.rounds, seconds=options.seconds))
            print(page.costs_text(measured), page.Tables.fleets_text(measured), sep="\n\n")
            if options.write:
                measurements.save(measured)
                page.write(measurements.load())
        elif options.command == "simulate":
            deployment = Deployment(
                nodes=options.nodes, changes_per_second=options.changes, lease=options.lease, cores=options.cores,
                network=options.network / 1e3, sync=None if options.sync is None else options.sync / 1e3,
            )  # fmt: skip
            costs = measurements.load()
            print(_outcome_text(simulate(costs, deployment, seconds=options.seconds, seed=options.seed)))
        elif options.write:
            page.write(measurements.load())
        else:
            print(page.render(measurements.load()), end="")
    except BenchError as error:
        print(f"bench.scaling: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
