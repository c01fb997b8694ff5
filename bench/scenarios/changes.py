"""What a stream of changes costs the requests: two nodes on one PostgreSQL, and 100 changes a second at one of them.

The other node's worker is measured, in interleaved rounds with and without the changes. Each change gives another role
to a user whose token is among those that are presented, so the worker also has to ask for it again.

On two cores, the load generator shares its core with PostgreSQL and both authorities, which the changes keep busy. The
requests per second of the whole machine then say little about the worker; its CPU time for a request does.
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
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Final

from bench.backends.origin import run_origin
from bench.datasets.tokens import ROLES, fill
from bench.errors import BenchError
from bench.load.control_client import Control
from bench.load.workload import mint, write_workload
from bench.load.wrk import drive
from bench.peers import Serving
from bench.peers.patgate import Installation, install, processes, running
from bench.report.figures import Better, Figure, Part, Run, Table, percentile, spread
from bench.scaling.postgres import USER, Server, run_server
from bench.scenarios.cpu_per_request import TOKENS, Sample, check_answers, new_seed, sample, warm
from bench.system.build import chosen
from bench.system.machine import Cores, pin
from bench.testbed import beside, received
from proxy.settings.sources.secret import KEY_FILE

RATE: Final = 100.0
"""Changes a second."""
LEAST: Final = 0.9
"""The share of them that has to be made, or the round gives no figure."""
FALL: Final = 0.95
"""Bound: issue 11."""
_CALLERS: Final = 6
_PRIORITY: Final = -5
_LEAD_IN_SECONDS: Final = 0.5
_SECONDS: Final = 3
_ROUNDS: Final = 7
_ROLES: Final = ("admin", "editor")
"""What a change gives, in turn. Both may do all that is asked for."""
_DATABASE: Final = "postgres"
_WITHOUT, _WITH = "no changes", "changes at the other node"


def measure(run: Run) -> Part:
    """Measure in interleaved rounds. Raises BenchError if an answer was wrong or there were too few changes."""
    workload = write_workload(run.directory, mint(run.tokens or TOKENS))
    rounds, seconds = run.rounds or _ROUNDS, run.seconds or _SECONDS
    # Those with the role that they have after each second change.
    users = [
        f"user{number}@example.org" for number in range(len(workload.tokens)) if ROLES[number % len(ROLES)] == _ROLES[1]
    ]
    samples: dict[str, list[Sample]] = {_WITHOUT: [], _WITH: []}
    calls: list[float] = []
    made: list[float] = []
    with ExitStack() as stack:
        origin = stack.enter_context(run_origin(run.directory, run.cores))
        server = stack.enter_context(run_server())
        pin(server.postmaster, run.cores.rest)
        _prefer(server.postmaster)
        measured, other = _install(run.directory, origin.port, server, workload.tokens)
        serving = stack.enter_context(_serve(measured, run.cores, subject=True))
        changing = stack.enter_context(_serve(other, run.cores, subject=False))
        check_answers("patgate", serving, workload)
        warm(serving.port, workload, run.cores)
        for number in range(rounds):
            for name in list(samples)[:: 1 if number % 2 == 0 else -1]:
                driver = partial(drive, serving.port, workload, run.cores, seconds=seconds, seed=new_seed())
                if name == _WITHOUT:
                    samples[name].append(sample("patgate", serving, origin, driver))
                    continue
                with beside(_change, run.cores.rest, other.data_dir, changing.beside["authority"], users) as pipe:
                    time.sleep(_LEAD_IN_SECONDS)
                    samples[name].append(sample("patgate", serving, origin, driver))
                    pipe.send("stop")
                    found = received(pipe, 60, "the changes ended")
                if isinstance(found, BenchError):
                    raise found
                taken, rate = found
                calls += taken
                made.append(rate)
                if rate < LEAST * RATE:
                    raise BenchError(f"Only {rate:.0f} of {RATE:g} changes a second could be made.")
    return _part(samples, calls, made, rounds, seconds)


def _part(samples: dict[str, list[Sample]], calls: list[float], made: list[float], rounds: int, seconds: float) -> Part:
    pairs = list(zip(samples[_WITH], samples[_WITHOUT], strict=True))
    figures = (
        Figure(
            what="Requests for a second of the worker's CPU under 100 changes a second, ratio to none",
            spread=spread([without.cpu_us / beside.cpu_us for beside, without in pairs]),
            bound=FALL,
            better=Better.HIGHER,
        ),
        Figure(
            what="Requests a second under 100 changes a second, ratio to none",
            spread=spread([beside.driven.rate / without.driven.rate for beside, without in pairs]),
            better=Better.HIGHER,
        ),
    )
    rows = tuple(
        (
            name,
            f"{median(each.cpu_us for each in own):.1f}",
            f"{median(each.driven.rate for each in own):,.0f}",
            f"{median(each.driven.p50_ms for each in own):.2f}",
            f"{median(each.driven.p99_ms for each in own):.2f}",
            f"{median(each.busy for each in own):.0%}",
        )
        for name, own in samples.items()
    )
    head = ("one worker, one core", "CPU per request, µs", "requests/s", "p50, ms", "p99, ms", "on its core")
    notes = (
        f"{rounds} interleaved rounds of {seconds:g} s each; ratios are taken within a round. PostgreSQL with durable "
        "commits, the authorities, the other node, the load generator and the backend are on the other cores.",
        f"{median(made):.0f} changes a second were made; a call took {percentile(calls, 0.5):.1f} ms at the median and "
        f"{percentile(calls, 0.99):.1f} ms at p99, among all this.",
        "The ratio of requests a second has no bound: where the load generator shares its core with all that the "
        "changes keep busy, it is that core's.",
    )
    return Part(figures=figures, tables=(Table(head=head, rows=rows),), notes=notes)


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
def _serve(installation: Installation, cores: Cores, *, subject: bool) -> Iterator[Serving]:
    """Run a node, whose worker is on the subject's core if it is the ``subject``, and everything else on the others."""
    with running(installation) as process:
        found = processes(process.pid)
        for pid in (process.pid, found["authority"], found["gateway"]):
            pin(pid, cores.rest)
        _prefer(found["authority"])
        if subject:
            pin(found["gateway"], cores.subject)
        yield Serving(port=installation.port, workers=(found["gateway"],), beside={"authority": found["authority"]})


def _prefer(pid: int) -> None:
    """Let a process, and those that it starts later, run before the load generator, which takes all that is left.

    Otherwise the changes are not made in time where they share one core. Only root may do that.
    """
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, _PRIORITY)


def _change(pipe: Connection, data_dir: Path, authority: int, users: list[str]) -> None:
    """Make ``RATE`` changes a second until anything is received; send the milliseconds of each, and the rate."""
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

    began = time.monotonic()
    callers = [threading.Thread(target=call, args=(number,)) for number in range(_CALLERS)]
    for caller in callers:
        caller.start()
    try:
        pipe.recv()
    except EOFError:
        pass
    finally:
        seconds = time.monotonic() - began
        stopping.set()
    for caller in callers:
        caller.join()
    # The round may have failed meanwhile, and then nobody reads it.
    with suppress(BrokenPipeError):
        pipe.send(failed[0] if failed else (taken, len(taken) / seconds))
