"""A testbed: patgate with a scenario's own configuration, metrics of its worker, and load processes beside it.

The peers of a comparison all run one configuration (``bench.peers.patgate``). Scenarios with idle, slow, hostile or
endless clients need other routes, timeouts and backends, so they pass their own.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from typing import Any, Concatenate, Final, ParamSpec

from bench.backends.origin import BODY
from bench.datasets.tokens import fill
from bench.errors import BenchError
from bench.load.open_loop import Job, Seen, run
from bench.load.workload import BRAND, Workload
from bench.load.wrk import CONNECTIONS, ask
from bench.peers.patgate import Installation, processes, running
from bench.system.machine import Cores, pin, until
from bench.system.nginx import free_port

MIB: Final = 1 << 20
_REPORT_SECONDS: Final = 0.7
LOOPBACK: Final = "127.0.0.1"
_FORK: Final = get_context("fork")
"""Forked, because a load process runs a function of the caller, which a new interpreter would have to import."""
P = ParamSpec("P")

_CONFIGURATION: Final = """\
brand: {brand}
data_dir: {data_dir}
workers: 1
listen:
  proxy: {{ bind: "127.0.0.1:{port}" }}
  control: {{ bind: "127.0.0.1:{control}" }}
roles: {{ admin: ["*:*"], editor: ["*:*"], viewer: ["*:*"] }}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Testbed:
    """A running node with one worker: its ports, its pids, and readings of its metrics and memory."""

    port: int
    control: int
    worker: int
    authority: int

    def metric(self, name: str, label: str = "") -> float:
        """The sum of one metric over all its series with ``label`` (``outcome="allowed"``), as of the last report.

        A counter that has counted nothing yet has no series. Raises BenchError if there is no such metric.
        """
        page = ask(self.control, "/metrics")[1].decode()
        values = re.findall(rf"^{name}(?:\{{.*{label}.*\}})? (\S+)$", page, re.MULTILINE)
        if not values and f"# TYPE {name} " not in page:
            raise BenchError(f"/metrics does not show {name}.")
        return sum(map(float, values))

    def settled(self, name: str, label: str = "") -> float:
        """The metric once the worker has reported everything counted before now; no requests may be running."""
        seen: list[float] = []
        until(lambda: self._unmoved(seen), "the worker's counts stay the same", 60)
        return self.metric(name, label)

    def _unmoved(self, seen: list[float]) -> bool:
        # A worker reports twice a second and the authority aggregates at once.
        time.sleep(_REPORT_SECONDS)
        seen.append(self.metric("patgate_requests_total"))
        return len(seen) > 2 and len(set(seen[-3:])) == 1

    def resident(self) -> int:
        """Resident memory of the worker, in bytes."""
        return resident(self.worker)

    def peak(self) -> int:
        """The peak resident memory of the worker since ``reset_peak``, in bytes."""
        return _status(self.worker, "VmHWM")

    def reset_peak(self) -> None:
        """Reset the peak of the resident memory (proc(5): clear_refs)."""
        Path(f"/proc/{self.worker}/clear_refs").write_text("5")

    def descriptors(self) -> int:
        """How many descriptors the worker has open."""
        return len(os.listdir(f"/proc/{self.worker}/fd"))


def resident(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    return _status(pid, "VmRSS")


def _status(pid: int, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if found is None:
        raise BenchError(f"The kernel does not report {field} of a process.")
    return int(found[1]) * 1024


@contextmanager
def run_testbed(directory: Path, cores: Cores, configuration: str, tokens: tuple[str, ...]) -> Iterator[Testbed]:
    """Run patgate with ``configuration`` (YAML: upstreams, routes and more) and a user for each of ``tokens``.

    Every user has every permission, but every fourth token is narrowed to reading (``bench.datasets.tokens``). Only the
    worker is on the subject's core. Raises BenchError if patgate does not become ready.
    """
    directory.mkdir(parents=True, exist_ok=True)
    data_dir, port, control = directory / "data", free_port(), free_port()
    config = directory / "patgate.yaml"
    config.write_text(_CONFIGURATION.format(brand=BRAND, data_dir=data_dir, port=port, control=control) + configuration)
    installation = Installation(config=config, data_dir=data_dir, port=port, control=control)
    fill(data_dir, tokens)
    with running(installation) as process:
        found = processes(process.pid)
        pin(found["gateway"], cores.subject)
        for pid in (found["authority"], process.pid):
            pin(pid, cores.rest)
        yield Testbed(port=port, control=control, worker=found["gateway"], authority=found["authority"])


@contextmanager
def beside(
    target: Callable[Concatenate[Connection, P], None], cores: frozenset[int], *args: P.args, **kwargs: P.kwargs
) -> Iterator[Connection]:
    """Run ``target(pipe, ...)`` in a process of its own on ``cores`` until the context ends; gives the other pipe end.

    ``target`` has to end when its pipe does (EOFError on reading); otherwise it is killed.
    """
    ours, theirs = _FORK.Pipe()

    def run() -> None:
        ours.close()
        os.sched_setaffinity(0, cores)
        target(theirs, *args, **kwargs)

    process = _FORK.Process(target=run, daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


def received(pipe: Connection, seconds: float, what: str) -> Any:
    """The next message from a process of ``beside``. Raises BenchError if it has ended or sends nothing in time."""
    try:
        if not pipe.poll(seconds):
            raise BenchError(f"Not within {seconds:g} s: {what}.")
        return pipe.recv()
    except EOFError:
        raise BenchError(f"A process of the benchmark ended before {what}.") from None


def _probe(pipe: Connection, job: Job) -> None:
    try:
        pipe.send(run(job))
    except BenchError as error:
        pipe.send(error)


def probe(
    testbed: Testbed,
    workload: Workload,
    cores: Cores,
    *,
    rate: float,
    seconds: float,
    seed: int,
    patience: float = 10.0,
) -> Seen:
    """Send requests of ``workload`` at a fixed rate, at random moments; the backend is that of ``run_origin``.

    Raises BenchError if an answer is wrong, or missing ``patience`` seconds after the last request was due.
    """
    job = Job(
        port=testbed.port,
        rate=rate,
        seconds=seconds,
        lead_in=1.0,
        connections=CONNECTIONS,
        bursts=True,
        seed=seed,
        tokens_file=str(workload.tokens_file),
        paths_file=str(workload.paths_file),
        body_hex=BODY.hex(),
        patience=patience,
    )
    with beside(_probe, cores.rest, job) as pipe:
        seen = received(pipe, seconds + patience + 60, "the probe ended")
    if isinstance(seen, BenchError):
        raise seen
    assert isinstance(seen, Seen)
    if seen.unanswered:
        raise BenchError(f"{seen.unanswered} of {seen.requests} requests at {rate:g}/s had no answer in time.")
    return seen


def lateness(seen: Sequence[Seen]) -> tuple[str, ...]:
    """A note for the reader if the generator itself delayed requests; otherwise none."""
    if all(one.late_p99_us < one.p99_us / 4 for one in seen):
        return ()
    return ("Requests were sent late, for want of a core: these latencies are the machine's and not the gateway's.",)


def raise_descriptor_limit(needed: int) -> None:
    """Raise the limit of this process and its children to ``needed`` descriptors. Raises BenchError if not allowed."""
    soft, hard = getrlimit(RLIMIT_NOFILE)
    if hard < needed:
        raise BenchError(f"A process may open {hard} descriptors here and the benchmark needs {needed}.")
    if soft < needed:
        setrlimit(RLIMIT_NOFILE, (needed, hard))


def warm_tokens(port: int, path: str, tokens: tuple[str, ...]) -> None:
    """Present every token once, so that all are cached when the measurement begins. Raises BenchError."""
    with ThreadPoolExecutor(8) as pool:
        statuses = set(pool.map(lambda token: ask(port, path, token)[0], tokens))
    if statuses != {200}:
        raise BenchError(f"Known tokens were answered with {statuses}.")
