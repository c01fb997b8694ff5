"""Memory of a worker's full grant cache: before and after it has cached every token of a full store.

RSS and USS are read from /proc/<pid>/smaps_rollup. USS (private pages only) is what one more worker costs; RSS also has
the pages that all processes of the machine share.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.backends.origin import run_origin
from bench.datasets.tokens import fill
from bench.errors import BenchError
from bench.load.workload import mint, write_workload
from bench.load.wrk import ask, drive
from bench.peers.patgate import Installation, install, processes, running
from bench.report.figures import Figure, Part, Run, Table, spread
from bench.system.machine import until

ENTRIES: Final = 100_000
BOUND_MB: Final = 200.0
_PIECE_SECONDS: Final = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Memory of a process, in MB (10^6 bytes)."""

    rss: float
    uss: float


def footprint(pid: int) -> Footprint:
    """The current memory of one process."""
    kib = {
        name: int(value)
        for name, value in re.findall(r"(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text())
    }
    return Footprint(rss=kib["Rss"] * 1024 / 1e6, uss=(kib["Private_Clean"] + kib["Private_Dirty"]) * 1024 / 1e6)


def measure(run: Run) -> Part:
    """Present many tokens, each of its own user, to one worker. Raises BenchError if any is refused."""
    entries = run.entries or ENTRIES
    workload = write_workload(run.directory, mint(entries))
    with run_origin(run.directory, run.cores) as origin:
        installation = install(run.directory / "patgate", origin.port)
        fill(installation.data_dir, workload.tokens)
        with running(installation) as process:
            found = processes(process.pid)
            empty = footprint(found["gateway"])
            met = 0
            while met < entries:
                met += drive(
                    installation.port, workload, run.cores, seconds=_PIECE_SECONDS, seed=1 + met, from_token=met
                ).requests
            until(lambda: _cached(installation) >= entries, f"the worker counts {entries} cached grants")
            full, authority = footprint(found["gateway"]), footprint(found["authority"])
    rows = [("a worker before its first request", empty), (f"with {entries:,} cached grants", full)]
    rows.append(("the authority then", authority))
    cells = tuple((what, f"{held.rss:.0f} MB", f"{held.uss:.0f} MB") for what, held in rows)
    what = f"memory (RSS) of a worker with {entries:,} cached grants"
    return Part(
        figures=(Figure(what=what, spread=spread([full.rss]), bound=BOUND_MB, unit=" MB"),),
        tables=(Table(head=("memory", "RSS", "USS"), rows=cells),),
        notes=(f"One cached grant: {(full.uss - empty.uss) * 1e6 / entries:,.0f} bytes.",),
    )


def _cached(installation: Installation) -> int:
    text = ask(installation.control, "/metrics")[1].decode()
    found = re.search(r"^patgate_cache_entries (\S+)$", text, re.MULTILINE)
    if found is None:
        raise BenchError("/metrics does not show patgate_cache_entries.")
    return int(float(found.group(1)))
