"""CPU per authenticated request of each peer, in interleaved rounds.

A round drives every peer once, one after the other, each for the same few seconds; their order alternates from round to
round. The ratio is taken within a round, so that a machine that slows down slows both, and the median of the rounds is
reported with the smallest and the largest.
"""

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from bench.cpu import cpu_ns, waited_ns
from bench.errors import BenchError
from bench.load import CONNECTIONS, Driven, ask, drive
from bench.machine import Cores
from bench.origin import BODY, Origin, run_origin
from bench.peers import Peer, Serving, Site
from bench.peers.nginx import Nginx
from bench.peers.patgate import Patgate
from bench.workload import Workload, all_paths

PEERS: Final[Mapping[str, Peer]] = {"nginx": Nginx(), "patgate": Patgate()}
REFERENCE: Final = "nginx"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One peer in one round."""

    cpu_us: float
    """CPU of the worker per request, µs."""
    beside_us: Mapping[str, float]
    """CPU of the peer's other processes per request, µs."""
    busy: float
    """Share of the round that the worker was on its core: near 1, it was the limit and not the load generator."""
    waited: float
    """Share of the round that the worker stood ready while its core ran other programs."""
    driven: Driven


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """The median of the rounds, between the smallest and the largest."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(median=median(values), low=min(values), high=max(values))


@dataclass(kw_only=True, slots=True)
class Comparison:
    """The samples of every peer, in the order of the rounds."""

    seconds: float
    tokens: int
    together: bool
    """Whether the load generator and the backend ran on the subject's core."""
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def cost(self, name: str) -> Spread:
        """µs of CPU per request."""
        return spread([sample.cpu_us for sample in self.samples[name]])

    def ratio(self, name: str) -> Spread:
        """Cost over that of the reference, round by round."""
        pairs = zip(self.samples[name], self.samples[REFERENCE], strict=True)
        return spread([mine.cpu_us / reference.cpu_us for mine, reference in pairs])


def compare(
    directory: Path, workload: Workload, cores: Cores, peers: Sequence[Peer], *, rounds: int, seconds: float
) -> Comparison:
    """Run the whole comparison in ``directory``. Raises BenchError when any answer in any round was wrong."""
    result = Comparison(
        seconds=seconds,
        tokens=len(workload.tokens),
        together=cores.shared,
        samples={peer.name: [] for peer in peers},
    )
    with ExitStack() as stack:
        origin = stack.enter_context(run_origin(directory, cores))
        site = Site(directory=directory, origin_port=origin.port, workload=workload, cores=cores)
        serving = {peer.name: stack.enter_context(peer.serve(site)) for peer in peers}
        for name, running in serving.items():
            check_answers(name, running, workload)
            drive(running.port, workload, cores, seconds=seconds, seed=_seed())  # caches, JITs and connections warm
        for number in range(rounds):
            for name in list(serving)[:: 1 if number % 2 == 0 else -1]:
                result.samples[name].append(_sample(name, serving[name], origin, workload, cores, seconds))
    return result


def check_answers(name: str, running: Serving, workload: Workload, sample: int = 50) -> None:
    """A known token gets the backend's own answer; an unknown one and none at all get 401. Raises BenchError."""
    paths = all_paths()
    for number in range(sample):
        token = workload.tokens[number * len(workload.tokens) // sample]
        status, body = ask(running.port, paths[number * len(paths) // sample] + f"?n={number}", token)
        if (status, body) != (200, BODY):
            raise BenchError(f"{name} answered a known token with {status} or another body than the backend's.")
    last = workload.tokens[0][-1]
    wrong = workload.tokens[0][:-1] + ("1" if last == "0" else "0")
    for token_or_none in (wrong, None):
        status, _ = ask(running.port, paths[0], token_or_none)
        if status != 401:
            raise BenchError(f"{name} answered a request without a known token with {status}.")


def _sample(name: str, running: Serving, origin: Origin, workload: Workload, cores: Cores, seconds: float) -> Sample:
    served = origin.served()
    beside_before = {part: cpu_ns((pid,)) for part, pid in running.beside.items()}
    before, waited_before = cpu_ns(running.workers), waited_ns(running.workers)
    driven = drive(running.port, workload, cores, seconds=seconds, seed=_seed())
    used, waited = cpu_ns(running.workers) - before, waited_ns(running.workers) - waited_before
    beside = {
        part: (cpu_ns((pid,)) - beside_before[part]) / 1e3 / driven.requests for part, pid in running.beside.items()
    }
    # The second reading counts itself. Requests open when the generator stopped, now or the time before, arrive
    # without being answered.
    arrived = origin.served() - served - 1
    if not driven.requests <= arrived <= driven.requests + 2 * CONNECTIONS:
        raise BenchError(f"{name} gave {driven.requests} answers for {arrived} requests at the backend.")
    return Sample(
        cpu_us=used / 1e3 / driven.requests,
        beside_us=beside,
        busy=used / 1e9 / driven.seconds,
        waited=waited / 1e9 / driven.seconds,
        driven=driven,
    )


def _seed() -> int:
    return random.SystemRandom().randrange(1, 2**31 - 1)
