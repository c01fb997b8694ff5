"""What a stream of changes costs the requests: two nodes on one PostgreSQL, and 100 changes a second at one of them.

The worker of the other node answers requests at a fixed rate, in interleaved rounds with and without the changes. Each
change gives another role to a user whose token is among those that are presented, so the worker also has to ask for it
again. What the worker needs more of its core's time in a round with changes, for each change, is what they cost; its
throughput falls by this share.

The throughput itself is not compared: on two cores the load generator would share its core with PostgreSQL and both
authorities, which the changes keep busy.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Final

from bench.backends.origin import run_origin
from bench.datasets.tokens import ROLES, fill
from bench.errors import BenchError
from bench.load.control_client import Control
from bench.load.open_loop import Seen
from bench.load.workload import Workload, mint, write_workload
from bench.peers.patgate import Installation, install, processes, running
from bench.report.figures import Figure, Part, Run, Table, percentile, spread
from bench.scenarios.cpu_per_request import TOKENS, new_seed, warm
from bench.system.build import chosen
from bench.system.cpu_time import cpu_ns
from bench.system.machine import Cores, pin
from bench.system.postgres import USER, Server, run_server
from bench.testbed import Testbed, beside, probe, received
from proxy.settings.sources.secret import KEY_FILE

RATE: Final = 100.0
"""Changes a second."""
FALL: Final = 5.0
"""Bound, in percent: issue 11."""
REQUESTS: Final = 500.0
"""Requests a second."""
_CALLERS: Final = 6
_PRIORITY: Final = -5
_SECONDS: Final = 5
_ROUNDS: Final = 7
_ROLES: Final = ("admin", "editor")
"""What a change gives, in turn. Both may do all that is asked for."""
_DATABASE: Final = "postgres"
_WITHOUT, _WITH = "no changes", "changes at the other node"


def measure(run: Run) -> Part:
    """Measure in interleaved rounds. Raises BenchError if an answer was wrong."""
    workload = write_workload(run.directory, mint(run.tokens or TOKENS))
    rounds, seconds = run.rounds or _ROUNDS, run.seconds or _SECONDS
    # Those with the role that they have after each second change.
    users = [
        f"user{number}@example.org" for number in range(len(workload.tokens)) if ROLES[number % len(ROLES)] == _ROLES[1]
    ]
    rows: dict[str, list[_Round]] = {_WITHOUT: [], _WITH: []}
    with ExitStack() as stack:
        origin = stack.enter_context(run_origin(run.directory, run.cores))
        server = stack.enter_context(run_server())
        pin(server.postmaster, run.cores.rest)
        _prefer(server.postmaster)
        measured, other = _install(run.directory, origin.port, server, workload.tokens)
        asked = stack.enter_context(_serve(measured, run.cores, subject=True))
        changed = stack.enter_context(_serve(other, run.cores, subject=False))
        warm(asked.port, workload, run.cores)
        for number in range(rounds):
            for name in list(rows)[:: 1 if number % 2 == 0 else -1]:
                before = cpu_ns((asked.worker,))
                made: list[float] = []
                if name == _WITH:
                    with beside(_change, run.cores.rest, other.data_dir, changed.authority, users) as pipe:
                        seen = _ask(asked, workload, run.cores, seconds)
                        pipe.send("stop")
                        found = received(pipe, 60, "the changes ended")
                    if isinstance(found, BenchError):
                        raise found
                    made = found
                else:
                    seen = _ask(asked, workload, run.cores, seconds)
                cpu = (cpu_ns((asked.worker,)) - before) / 1e9
                rows[name].append(_Round(cpu=cpu, seen=seen, made=made))
    return _part(rows, rounds, seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Round:
    cpu: float
    """CPU seconds of the worker."""
    seen: Seen
    made: list[float]
    """Milliseconds of each change."""


def _ask(testbed: Testbed, workload: Workload, cores: Cores, seconds: float) -> Seen:
    return probe(testbed, workload, cores, rate=REQUESTS, seconds=seconds, seed=new_seed())


def _part(rows: dict[str, list[_Round]], rounds: int, seconds: float) -> Part:
    pairs = list(zip(rows[_WITH], rows[_WITHOUT], strict=True))
    costs = [(one.cpu - other.cpu) / max(1, len(one.made)) for one, other in pairs]
    figure = Figure(
        what="Share of its core that 100 changes a second at another node take from a worker",
        spread=spread([cost * RATE * 100 for cost in costs]),
        bound=FALL,
        unit=" %",
    )
    table = Table(
        head=("one worker, one core", "CPU of a round, s", "p50, µs", "p99, µs"),
        rows=tuple(
            (
                name,
                f"{median(each.cpu for each in own):.2f}",
                f"{median(each.seen.p50_us for each in own):,.0f}",
                f"{median(each.seen.p99_us for each in own):,.0f}",
            )
            for name, own in rows.items()
        ),
    )
    calls = [milliseconds for one in rows[_WITH] for milliseconds in one.made]
    notes = (
        f"{rounds} interleaved rounds with {REQUESTS:g} requests a second for {seconds:g} s; differences are taken "
        "within a round. PostgreSQL with durable commits, the authorities, the other node, the load generator and the "
        "backend are on the other cores.",
        f"{len(calls)} changes were made, at most {RATE:g} a second; a call took {percentile(calls, 0.5):.1f} ms "
        f"at the median and {percentile(calls, 0.99):.1f} ms at p99, among all this. A change cost the worker "
        f"{median(costs) * 1e6:.0f} µs of CPU, with the question for the token that it concerned.",
    )
    return Part(figures=(figure,), tables=(table,), notes=notes)


def _install(directory: Path, origin: int, server: Server, tokens: Sequence[str]) -> tuple[Installation, Installation]:
    """Two nodes on a store that was copied from an embedded one."""
    first, second = (install(directory / name, origin) for name in ("measured", "other"))
    fill(first.data_dir, tokens)
    url = f"postgresql://{USER}@/{_DATABASE}?host={server.sockets}"
    key = (first.data_dir / KEY_FILE).read_text().strip()
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "store", "copy", "--config", str(first.config), "--to", url],
        cwd=directory, env=chosen().environ(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"The store could not be copied: {done.stderr.strip()[-500:]}")
    for one in (first, second):
        one.data_dir.mkdir(mode=0o700, exist_ok=True)
        with one.config.open("a") as file:
            file.write(f'store: "{url}"\nsecret_key: "{key}"\n')
    return first, second


@contextmanager
def _serve(installation: Installation, cores: Cores, *, subject: bool) -> Iterator[Testbed]:
    """Run a node, whose worker is on the subject's core if it is the ``subject``, and everything else on the others."""
    with running(installation) as process:
        found = processes(process.pid)
        for pid in (process.pid, found["authority"], found["gateway"]):
            pin(pid, cores.rest)
        _prefer(found["authority"])
        if subject:
            pin(found["gateway"], cores.subject)
        yield Testbed(
            port=installation.port, control=installation.control, worker=found["gateway"], authority=found["authority"]
        )


def _prefer(pid: int) -> None:
    """Let a process, and those that it starts later, run before the load generator, which takes all that is left.

    Otherwise the changes are not made in time where they share one core. Only root may do that.
    """
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, _PRIORITY)


def _change(pipe: Connection, data_dir: Path, authority: int, users: list[str]) -> None:
    """Make ``RATE`` changes a second until anything is received; send the milliseconds of each."""
    _prefer(os.getpid())
    stopping = threading.Event()
    taken: list[float] = []
    failed: list[BenchError] = []

    def call(number: int) -> None:
        place = 0
        own = users[number::_CALLERS]
        random.Random(new_seed()).shuffle(own)
        due = time.monotonic() + number / RATE
        try:
            with Control(data_dir, authority) as control:
                while not stopping.wait(max(0.0, due - time.monotonic())):
                    due += _CALLERS / RATE
                    # To and fro: one that has the role already would be no change.
                    email, role = own[place // 2 % len(own)], _ROLES[place % 2]
                    place += 1
                    _, milliseconds = control.timed("POST", f"/users/{email}/role", {"role": role})
                    taken.append(milliseconds)
        except (BenchError, OSError) as error:
            failed.append(BenchError(f"A change failed: {error}"))

    callers = [threading.Thread(target=call, args=(number,)) for number in range(_CALLERS)]
    for caller in callers:
        caller.start()
    try:
        pipe.recv()
    except EOFError:
        pass
    finally:
        stopping.set()
    for caller in callers:
        caller.join()
    # The round may have failed meanwhile, and then nobody reads it.
    with suppress(BrokenPipeError):
        pipe.send(failed[0] if failed else taken)
