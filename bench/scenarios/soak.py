"""A soak test for leaks: a million requests, one in ten of which ends badly.

In pieces of 50,000: wrk drives ordinary requests (``load.wrk``) while ``load.aborting_clients`` end theirs badly in
every way, in front of an ordinary backend and of a faulty one (``backends.faulty``). After each piece all clients
disconnect, connections that are still open meet their deadlines, and then the worker's memory and descriptors are read.
The first pieces are warm-up; a line is fitted through the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from bench.backends.faulty import faulty_backend
from bench.backends.origin import run_origin
from bench.errors import BenchError
from bench.load.aborting_clients import aborting_clients
from bench.load.workload import Workload, mint, write_workload
from bench.load.wrk import drive
from bench.report.figures import Figure, Part, Run, Table, spread
from bench.system.machine import Cores, until
from bench.testbed import MIB, Testbed, beside, raise_descriptor_limit, received, run_testbed, warm_tokens

COUNT: Final = 1_000_000
PIECE: Final = 50_000
TOKENS: Final = 1000
_BAD_SHARE: Final = 0.1
_WARM_SHARE: Final = 0.2
_DRIVE_SECONDS: Final = 2.0
_PER: Final = 100_000
_ABSENT: Final = 500
"""Refusals that the worker may cache: so few that this cache is full before the fitted line begins."""
_CONFIGURATION: Final = """\
upstreams:
  origin: {{ servers: ["http://127.0.0.1:{origin}"], idle_timeout: 2s }}
  faulty: {{ servers: ["http://127.0.0.1:{faulty}"], idle_timeout: 2s }}
  mute: {{ servers: ["http://127.0.0.1:{faulty}"], idle_timeout: 2s, response_timeout: 2s }}
routes:
  - {{ path: "/v1/faulty/silent", upstream: mute, entity: faulty }}
  - {{ path: "/v1/faulty/{{id}}", upstream: faulty, entity: faulty }}
  - {{ path: "/v1/{{entity}}", upstream: origin }}
  - {{ path: "/v1/{{entity}}/{{id}}", upstream: origin }}
cache: {{ absent: {absent} }}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """The worker at rest, after this many requests."""

    requests: int
    memory: int
    descriptors: int


def measure(run: Run) -> Part:
    """Make ``run.entries`` requests. Raises BenchError if an ordinary one was refused or a bad one never ended."""
    count = run.entries or COUNT
    raise_descriptor_limit(4000)
    made: Counter[str] = Counter()
    samples: list[Sample] = []
    workload = write_workload(run.directory, mint(run.tokens or TOKENS))
    with soaked(run.directory, run.cores, workload.tokens) as (testbed, bad):
        base = testbed.descriptors()
        warm_tokens(testbed.port, "/v1/things/1", workload.tokens)
        requests = 0
        while requests < count:
            requests += _piece(testbed, workload, run.cores, bad, min(PIECE, count - requests), made, len(samples))
            samples.append(_rest(testbed, requests, base))
    return _part(samples, made, base)


@contextmanager
def soaked(directory: Path, cores: Cores, tokens: tuple[str, ...]) -> Iterator[tuple[Testbed, Connection]]:
    """A patgate in front of both backends, and the pipe to the aborting clients."""
    with ExitStack() as stack:
        origin = stack.enter_context(run_origin(directory, cores))
        behind = received(stack.enter_context(beside(faulty_backend, cores.rest)), 10, "the faulty backend listens")
        text = _CONFIGURATION.format(origin=origin.port, faulty=behind["port"], absent=_ABSENT)
        testbed = stack.enter_context(run_testbed(directory / "patgate", cores, text, tokens))
        # Every fourth token may only read.
        able = tuple(token for number, token in enumerate(tokens) if number % 4 != 3)
        yield testbed, stack.enter_context(beside(aborting_clients, cores.rest, testbed.port, able, 1))


def _piece(
    testbed: Testbed, workload: Workload, cores: Cores, bad: Connection, size: int, made: Counter[str], seed: int
) -> int:
    """Make ``size`` requests or a few more. Returns how many."""
    bad.send(round(size * _BAD_SHARE))
    good = 0
    answer: Mapping[str, int] | None = None
    while good < size * (1 - _BAD_SHARE) or answer is None:
        good += drive(testbed.port, workload, cores, seconds=_DRIVE_SECONDS, seed=seed + 1).requests
        if answer is None and bad.poll():
            report = received(bad, 0, "the aborting clients finished")
            if isinstance(report, BenchError):
                raise report
            answer = report
            made.update(report)
    return good + sum(answer.values())


def _rest(testbed: Testbed, requests: int, base: int) -> Sample:
    """Wait until every connection has ended, for a limited time, and read the worker."""
    with suppress(BenchError):  # descriptors that stay open are the result
        until(lambda: testbed.descriptors() <= base, "the worker gave back its descriptors", 30)
    return Sample(requests=requests, memory=testbed.resident(), descriptors=testbed.descriptors())


def slope(samples: Sequence[Sample]) -> float:
    """Bytes of memory per request, by least squares; 0 for fewer than two samples."""
    if len(samples) < 2:
        return 0.0
    middle = sum(one.requests for one in samples) / len(samples)
    level = sum(one.memory for one in samples) / len(samples)
    rise = sum((one.requests - middle) * (one.memory - level) for one in samples)
    return rise / sum((one.requests - middle) ** 2 for one in samples)


def _part(samples: Sequence[Sample], made: Mapping[str, int], base: int) -> Part:
    total = samples[-1].requests
    warm = [one for one in samples if one.requests > total * _WARM_SHARE] or list(samples)
    left = [float(one.descriptors - base) for one in samples]
    what = f"{total:,} requests, {sum(made.values()):,} of which ended badly"
    return Part(
        figures=(
            Figure(what=f"{what}: slope of the worker's memory for 100,000", spread=spread([slope(warm) * _PER / MIB]),
                   bound=1, unit=" MiB"),
            Figure(what=f"{what}: descriptors left open at rest", spread=spread([max(left)]), bound=0),
        ),
        tables=(
            Table(head=("the worker at rest, after", "memory, MiB", "descriptors"),
                  rows=tuple((f"{one.requests:,} requests", f"{one.memory / MIB:.2f}", f"{one.descriptors}")
                             for one in samples)),
            Table(head=("an exchange that", "times"),
                  rows=tuple((name.replace("_", " "), f"{times:,}") for name, times in sorted(made.items()))),
        ),
        notes=(
            f"The line is laid through the samples after the first {_WARM_SHARE:.0%} of the requests. Before the first "
            f"request the worker had {base} descriptors open.",
        ),
    )  # fmt: skip
