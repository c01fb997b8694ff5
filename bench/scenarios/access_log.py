"""CPU cost of the access log: two patgates, with ``log.access`` set to off and to all, in the same rounds."""

from statistics import median
from typing import Final

from bench.load.workload import mint, write_workload
from bench.peers.patgate import Patgate
from bench.report.figures import Better, Figure, Part, Run, Spread, Table
from bench.scenarios.cpu_per_request import TOKENS, Comparison, compare

BOUND_PERCENT: Final = 15.0
AIM_PERCENT: Final = 8.0
_OFF: Final = Patgate("off", access="off")
_ALL: Final = Patgate("all", access="all")


def measure(run: Run) -> Part:
    """Measure both in interleaved rounds. Raises BenchError if any answer was wrong."""
    workload = write_workload(run.directory, mint(run.tokens or TOKENS))
    rounds, seconds = run.rounds or 7, run.seconds or 2
    result = compare(run.directory, workload, run.cores, [_OFF, _ALL], rounds=rounds, seconds=seconds)
    return Part(
        figures=(
            Figure(
                what="access log on: added CPU per request",
                spread=added(result.ratio(_ALL.name, _OFF.name)),
                bound=BOUND_PERCENT,
                aim=AIM_PERCENT,
                unit=" %",
                better=Better.LOWER,
            ),
        ),
        tables=(_table(result),),
        notes=(
            f"{rounds} interleaved rounds of {seconds:g} s each, the requests of `cpu`; what is added is taken within "
            "a round. The lines are JSON, written to a file.",
        ),
    )


def added(ratio: Spread) -> Spread:
    """The part of a ratio above one, in percent."""
    return Spread(median=(ratio.median - 1) * 100, low=(ratio.low - 1) * 100, high=(ratio.high - 1) * 100)


def _table(result: Comparison) -> Table:
    rows = []
    for name, samples in result.samples.items():
        cost = result.cost(name)
        beside = sum(median(one.beside_us[part] for one in samples) for part in samples[0].beside_us)
        rate = median(one.driven.rate for one in samples)
        cells = (f"{cost.median:.1f} ({cost.low:.1f}–{cost.high:.1f})", f"{beside:.2f}", f"{rate:,.0f}")
        rows.append((f"`log.access: {name}`", *cells))
    return Table(head=("", "worker's CPU per request, µs", "other processes', µs", "requests/s"), rows=tuple(rows))
