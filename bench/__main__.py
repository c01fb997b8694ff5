"""The command line of the benchmarks; see the package's docstring."""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import build, coldstart, compare, memory, report
from bench.errors import BenchError
from bench.machine import divide_cores, facts, require_linux
from bench.peers import Peer
from bench.workload import mint, write_workload


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure what a request, a start and a cached grant cost."
    )
    parser.add_argument("what", nargs="?", choices=report.SECTIONS, default="compare")
    parser.add_argument("--write", action="store_true", help="also write the result into docs/benchmarks.md")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument(
        "--rounds", type=int, default=7, help="compare: interleaved rounds; coldstart: starts (default 7)"
    )
    parser.add_argument("--seconds", type=int, default=3, help="compare: seconds for each peer in a round (default 3)")
    parser.add_argument("--tokens", type=int, default=1000, help="compare: tokens in use (default 1000)")
    parser.add_argument(
        "--entries", type=int, default=100_000, help="coldstart, memory: users and tokens (default 100000)"
    )
    parser.add_argument(
        "--peers", default=",".join(compare.PEERS), help="compare: which ones, nginx among them (default all)"
    )
    parser.add_argument("--pure", action="store_true", help="measure the sources and not the compiled package")
    parser.add_argument("--together", action="store_true", help="load generator and backend on the measured core too")
    parser.add_argument("--bound", type=float, help="exit 1 when the ratio, the seconds or the MB are above this")
    return parser


def _peers(text: str) -> list[Peer]:
    names = list(dict.fromkeys([compare.REFERENCE, *text.split(",")]))
    unknown = [name for name in names if name not in compare.PEERS]
    if unknown:
        raise BenchError(f"No such peer; there are {', '.join(compare.PEERS)}.")
    return [compare.PEERS[name] for name in names]


def _measure(options: argparse.Namespace, directory: Path) -> tuple[object, str, float]:
    """Run what was asked for: the result, its text, and the figure that a bound applies to."""
    cores = divide_cores(together=options.together)
    if options.what == "coldstart":
        started = coldstart.measure(directory, entries=options.entries, runs=options.rounds)
        return started, report.coldstart_text(started), max(started.seconds)
    if options.what == "memory":
        weighed = memory.measure(directory, cores, entries=options.entries)
        return weighed, report.memory_text(weighed), weighed.full.rss
    peers = _peers(options.peers)
    workload = write_workload(directory, mint(options.tokens))
    result = compare.compare(directory, workload, cores, peers, rounds=options.rounds, seconds=options.seconds)
    worst = max((result.ratio(peer.name).median for peer in peers if peer.name == "patgate"), default=0.0)
    return result, report.comparison_text(result), worst


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark. Returns 0, or 1 when there is no figure or it is above ``--bound``."""
    options = _parser().parse_args(arguments)
    try:
        require_linux()
        about = facts(build.choose(pure=options.pure))
        with tempfile.TemporaryDirectory(prefix="patgate-bench-") as directory:
            result, text, figure = _measure(options, Path(directory))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    text = f"{text}\n\n{report.machine_lines(about)}"
    if options.json:
        assert dataclasses.is_dataclass(result) and not isinstance(result, type)
        print(json.dumps({"machine": about, "figure": figure, "result": dataclasses.asdict(result)}))
    else:
        print(text)
    if options.write:
        report.write(options.what, text)
    return 1 if options.bound is not None and figure > options.bound else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
