"""From executing `patgate serve` to /readyz answering 200, with a full store."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.nginx import free_port
from bench.peers.patgate import Installation, install, start, stop
from bench.seed import fill
from bench.workload import mint

ENTRIES: Final = 100_000
BOUND_SECONDS: Final = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Coldstart:
    """Seconds of each start, in their order. The first follows the filling of the store, so its pages are in memory."""

    entries: int
    seconds: Sequence[float]


def measure(directory: Path, *, entries: int, runs: int) -> Coldstart:
    """Fill a store and start patgate on it ``runs`` times. Raises BenchError when it does not get ready."""
    installation = install(directory / "patgate", free_port())
    fill(installation.data_dir, mint(entries))
    return Coldstart(entries=entries, seconds=[_start_once(installation) for _ in range(runs)])


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
