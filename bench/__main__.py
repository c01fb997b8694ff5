"""The command line of the benchmarks; see the package's docstring."""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.report import markdown, plot, results
from bench.report.figures import Part, Run, Verdict
from bench.scenarios import (
    access_log,
    cache_memory,
    changes,
    cold_start,
    cpu_per_request,
    forward_auth,
    full_store,
    idle_connections,
    large_bodies,
    latency,
    new_connections,
    random_tokens,
    slow_clients,
    soak,
    wrong_secrets,
)
from bench.system import build, interpreter
from bench.system.machine import divide_cores, facts, require_linux


@dataclass(frozen=True, kw_only=True, slots=True)
class Subcommand:
    """One part of the benchmarks."""

    title: str
    """The heading of its section in docs/benchmarks.md."""
    measure: Callable[[Run], Part]
    """Raises BenchError if there is no valid figure."""
    whole: bool = True
    """Whether ``python -m bench`` without a name runs it: false for parts that take longer than a minute or two."""


#: In the order of the document. A new scenario is one more line here.
SUBCOMMANDS: Final[Mapping[str, Subcommand]] = {
    "cpu": Subcommand(title="CPU per request", measure=cpu_per_request.measure),
    "connections": Subcommand(title="A connection for each request", measure=new_connections.measure),
    "forwardauth": Subcommand(title="Forward auth", measure=forward_auth.measure),
    "accesslog": Subcommand(title="The access log", measure=access_log.measure),
    "latency": Subcommand(title="Latency at a fixed rate", measure=latency.measure),
    "coldstart": Subcommand(title="Cold start", measure=cold_start.measure),
    "memory": Subcommand(title="Memory of a full cache", measure=cache_memory.measure),
    "bulk": Subcommand(title="Large bodies", measure=large_bodies.measure),
    "idle": Subcommand(title="Idle connections", measure=idle_connections.measure),
    "slow": Subcommand(title="Slow clients", measure=slow_clients.measure),
    "flood": Subcommand(title="Wrong secrets", measure=wrong_secrets.measure),
    "strangers": Subcommand(title="Random tokens", measure=random_tokens.measure, whole=False),
    "store": Subcommand(title="A full store", measure=full_store.measure, whole=False),
    "changes": Subcommand(title="A stream of changes", measure=changes.measure, whole=False),
    "soak": Subcommand(title="Soak", measure=soak.measure, whole=False),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure what patgate costs, beside other proxies and its own promises."
    )
    whole = [name for name, one in SUBCOMMANDS.items() if one.whole]
    parser.add_argument(
        "what", nargs="*", default=whole, help=f"of {', '.join(SUBCOMMANDS)} (default {', '.join(whole)})"
    )
    parser.add_argument("--write", action="store_true", help="also write bench/results.json and what --render writes")
    parser.add_argument("--render", action="store_true", help="measure nothing, write docs/benchmarks.md and the plot")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bound is missed")
    parser.add_argument("--rounds", type=int, help="interleaved rounds, or starts")
    parser.add_argument("--seconds", type=float, help="seconds for each peer in a round")
    parser.add_argument("--tokens", type=int, help="tokens in use")
    parser.add_argument("--entries", type=int, help="users, connections or requests, by the part")
    parser.add_argument("--events", type=int, help="store: events in the audit log")
    parser.add_argument("--peers", help="cpu, latency: which ones, separated by commas; nginx is always among them")
    parser.add_argument("--pure", action="store_true", help="measure the sources and not the compiled package")
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="cpu, connections: also the patgate of another checkout, built"
    )
    parser.add_argument("--together", action="store_true", help="load generator and backend on the measured core too")
    return parser


def _measure(name: str, options: argparse.Namespace) -> Part:
    with tempfile.TemporaryDirectory(prefix="patgate-bench-") as directory:
        return SUBCOMMANDS[name].measure(
            Run(
                directory=Path(directory),
                cores=divide_cores(together=options.together),
                rounds=options.rounds,
                seconds=options.seconds,
                tokens=options.tokens,
                entries=options.entries,
                events=options.events,
                peers=tuple(options.peers.split(",")) if options.peers else None,
                against=options.against,
            )
        )


def _publish(every: Mapping[str, results.Result]) -> None:
    """Write docs/benchmarks.md and the plot from every part's last result."""
    markdown.write(every, {name: one.title for name, one in SUBCOMMANDS.items()})
    plot.write(every)


def main(arguments: Sequence[str]) -> int:
    """Run one part after the other. Returns 0, or 1 if a part has no figure or, with ``--check``, misses a bound."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := set(options.what) - set(SUBCOMMANDS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    if options.render:
        _publish(results.load())
        return 0
    status = 0
    for name in options.what:
        print(f"bench {name} …", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            require_linux()
            if options.write:
                interpreter.require_optimised(interpreter.running())
            machine = facts(build.choose(pure=options.pure).name)
            part = _measure(name, options)
        except (BenchError, OSError) as error:
            print(f"bench {name}: {error}", file=sys.stderr)
            status = 1
            continue
        print(f"bench {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        if warning := markdown.warning([name], machine):
            print(f"bench {name}: {warning}", file=sys.stderr, flush=True)
        if options.json:
            print(json.dumps({"name": name, "machine": machine, "part": dataclasses.asdict(part)}), flush=True)
        else:
            print(
                f"## {SUBCOMMANDS[name].title}\n\n{markdown.part_text(part)}\n\n{markdown.machine_text(machine)}\n",
                flush=True,
            )
        if options.write:
            result = results.Result(taken=f"{datetime.now(UTC):%Y-%m-%d}", machine=machine, part=part)
            _publish(results.save(name, result))
        if options.check and any(figure.verdict is Verdict.MISSED for figure in part.figures):
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
