"""Cold start: the time from executing ``patgate serve`` until /readyz answers 200, with a full store."""

import time
from typing import Final

from bench.datasets.tokens import fill
from bench.errors import BenchError
from bench.load.workload import mint
from bench.peers.patgate import Installation, install, start, stop
from bench.report.figures import Figure, Part, Run, spread
from bench.system.nginx import free_port

ENTRIES: Final = 100_000
BOUND_SECONDS: Final = 3.0


def measure(run: Run) -> Part:
    """Fill a store and start patgate on it a few times. Raises BenchError if it does not become ready."""
    entries, starts = run.entries or ENTRIES, run.rounds or 3
    installation = install(run.directory / "patgate", free_port())
    fill(installation.data_dir, mint(entries))
    what = f"from executing `patgate serve` to /readyz 200 with {entries:,} users and {entries:,} tokens"
    seconds = spread([_start_once(installation) for _ in range(starts)])
    return Part(
        figures=(Figure(what=what, spread=seconds, bound=BOUND_SECONDS, unit=" s"),),
        notes=(f"{starts} starts; the first follows the filling of the store, so its pages are in memory.",),
    )


def _start_once(installation: Installation, deadline: float = 60.0) -> float:
    began = time.monotonic()
    process = start(installation)
    try:
        while not installation.ready():
            if process.poll() is not None or time.monotonic() - began > deadline:
                raise BenchError(f"patgate was not ready within {deadline:g} s, or ended before.")
            time.sleep(0.005)
        return time.monotonic() - began
    finally:
        stop(process)
