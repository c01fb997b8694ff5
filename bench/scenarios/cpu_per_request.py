"""CPU per authenticated request of each peer, in interleaved rounds.

A round drives every peer once, one after the other, each for the same few seconds; their order alternates from round to
round. The ratio is taken within a round, so that a machine that slows down slows both, and the median of the rounds is
reported with the smallest and the largest.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from bench.backends.origin import BODY, WHOAMI, Origin, run_origin
from bench.errors import BenchError
from bench.load.workload import PATHS, Workload, all_paths, mint, write_workload
from bench.load.wrk import CONNECTIONS, Driven, ask, drive
from bench.peers import Peer, Serving, Site
from bench.peers.caddy import Caddy
from bench.peers.envoy import Envoy
from bench.peers.haproxy import Haproxy
from bench.peers.naive import Naive
from bench.peers.nginx import Nginx
from bench.peers.patgate import Patgate
from bench.peers.traefik import Traefik
from bench.report.figures import Figure, Part, Run, Spread, Table, spread
from bench.system import build
from bench.system.cpu_time import cpu_ns, ticks, waited_ns
from bench.system.machine import Cores

_EVERY: Final[Sequence[Peer]] = (Nginx(), Haproxy(), Envoy(), Traefik(), Caddy(), Naive(), Patgate())
PEERS: Final[Mapping[str, Peer]] = {peer.name: peer for peer in _EVERY}
REFERENCE: Final = "nginx"
OURS: Final = "patgate"
TOKENS: Final = 1000

#: The bound and the aim of our cost over a peer's (nginx: issue 8; the others: issue 3).
PROMISED: Final[Mapping[str, tuple[float, float]]] = {
    "nginx": (1.25, 1.1),
    "envoy": (0.65, 0.5),
    "traefik": (0.4, 0.3),
    "caddy": (0.3, 0.25),
    "aiohttp": (0.2, 0.15),
}
#: The bound of our cost over that of another commit (issue 8).
AGAINST: Final = 1.03


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One peer in one round."""

    cpu_us: float
    """CPU of the worker per request, µs."""
    beside_us: Mapping[str, float]
    """CPU of the peer's other processes per request, µs."""
    system: float
    """Share of the CPU time that the kernel spent for the worker."""
    busy: float
    """Share of the round in which the worker ran: near 1, it was the limit and not the load generator."""
    waited: float
    """Share of the round in which the worker was runnable while its core ran other programs."""
    driven: Driven


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

    def ratio(self, name: str, to: str = REFERENCE) -> Spread:
        """Cost of one over that of another, round by round."""
        pairs = zip(self.samples[name], self.samples[to], strict=True)
        return spread([one.cpu_us / other.cpu_us for one, other in pairs])


def measure(run: Run) -> Part:
    """The comparison of every peer, and the promised ratios. Raises BenchError."""
    workload = write_workload(run.directory, mint(run.tokens or TOKENS))
    peers = list(chosen(run.peers))
    other = Patgate(f"{OURS} of {run.against.resolve().name}", build=build.of(run.against)) if run.against else None
    if other:
        peers.append(other)
    result = compare(run.directory, workload, run.cores, peers, rounds=run.rounds or 5, seconds=run.seconds or 2)
    figures = [
        Figure(
            what=f"CPU per authenticated request, ratio to {name}",
            spread=result.ratio(OURS, name),
            bound=bound,
            aim=aim,
        )
        for name, (bound, aim) in PROMISED.items()
        if OURS in result.samples and name in result.samples
    ]
    if other and OURS in result.samples:
        what = f"CPU per authenticated request, ratio to {other.name}"
        figures.append(Figure(what=what, spread=result.ratio(OURS, other.name), bound=AGAINST))
    return Part(figures=tuple(figures), tables=(_table(result),), notes=_notes(result))


def chosen(names: Sequence[str] | None) -> Sequence[Peer]:
    """The peers with these names and the reference; by default all. Raises BenchError for an unknown name."""
    wanted = dict.fromkeys([REFERENCE, *(names or PEERS)])
    if not set(wanted) <= set(PEERS):
        raise BenchError(f"No such peer; there are {', '.join(PEERS)}.")
    return [PEERS[name] for name in wanted]


def compare(
    directory: Path, workload: Workload, cores: Cores, peers: Sequence[Peer], *, rounds: int, seconds: float
) -> Comparison:
    """Run the whole comparison in ``directory``. Raises BenchError if any answer in any round was wrong."""
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
            sent = running.workload or workload
            check_answers(name, running, sent)
            warm(running.port, sent, cores)
        for number in range(rounds):
            for name in list(serving)[:: 1 if number % 2 == 0 else -1]:
                running = serving[name]
                sent = running.workload or workload
                once = partial(drive, running.port, sent, cores, seconds=seconds, seed=new_seed())
                result.samples[name].append(sample(name, running, origin, once))
    return result


def warm(port: int, workload: Workload, cores: Cores, *, tls: bool = False) -> None:
    """Open connections, fill caches and present every token, so that no round is the first to use one."""
    met = 0
    while met < len(workload.tokens):
        met += drive(port, workload, cores, seconds=1, seed=new_seed(), from_token=met, tls=tls).requests


def check_answers(name: str, running: Serving, workload: Workload, sample: int = 50) -> None:
    """Check that the peer does the work that is compared. Raises BenchError if it does not.

    A known token gets the backend's own answer, an unknown one and none at all get 401, and the backend gets the
    caller's identity but not the token.
    """
    paths = all_paths()
    for number in range(sample):
        token = workload.tokens[number * len(workload.tokens) // sample]
        path = paths[number * len(paths) // sample] + f"?n={number}"
        status, body = ask(running.port, path, token, tls=running.tls)
        if (status, body) != (200, BODY):
            raise BenchError(f"{name} answered a known token with {status} or another body than the backend's.")
    status, headers = ask(running.port, WHOAMI, workload.tokens[0], tls=running.tls)
    user, _, credential = headers.partition(b"|")
    if status != 200 or not user or credential:
        raise BenchError(f"{name} does not replace the token by one identity header.")
    last = workload.tokens[0][-1]
    wrong = workload.tokens[0][:-1] + ("1" if last == "0" else "0")
    for token_or_none in (wrong, None):
        status, _ = ask(running.port, paths[0], token_or_none, tls=running.tls)
        if status != 401:
            raise BenchError(f"{name} answered a request without a known token with {status}.")


def sample(
    name: str, running: Serving, origin: Origin, driver: Callable[[], Driven], *, reached: bool = True
) -> Sample:
    """Drive one peer once by ``driver`` and read what it cost. Raises BenchError if a request was lost or repeated.

    ``reached`` says whether the requests reach the backend.
    """
    opened, served = origin.counts()
    beside_before = {part: cpu_ns((pid,)) for part, pid in running.beside.items()}
    before, waited_before, ticks_before = cpu_ns(running.workers), waited_ns(running.workers), ticks(running.workers)
    driven = driver()
    used, waited = cpu_ns(running.workers) - before, waited_ns(running.workers) - waited_before
    user, system = (now - then for now, then in zip(ticks(running.workers), ticks_before, strict=True))
    beside = {
        part: (cpu_ns((pid,)) - beside_before[part]) / 1e3 / driven.requests for part, pid in running.beside.items()
    }
    # The second reading counts itself. Requests open when the generator stopped, now or the time before, arrive
    # without being answered.
    opened, arrived = (after - before - 1 for after, before in zip(origin.counts(), (opened, served), strict=True))
    expected = driven.requests if reached else 0
    if not expected <= arrived <= expected + 2 * CONNECTIONS:
        raise BenchError(f"{name} gave {driven.requests} answers for {arrived} requests at the backend.")
    if opened > CONNECTIONS + driven.requests // 20:
        raise BenchError(f"{name} opened {opened} connections to the backend for {driven.requests} requests.")
    return Sample(
        cpu_us=used / 1e3 / driven.requests,
        beside_us=beside,
        system=system / max(1, user + system),
        busy=used / 1e9 / driven.seconds,
        waited=waited / 1e9 / driven.seconds,
        driven=driven,
    )


def new_seed() -> int:
    return random.SystemRandom().randrange(1, 2**31 - 1)


def _table(result: Comparison) -> Table:
    rows = []
    for name, samples in result.samples.items():
        cost, ratio = result.cost(name), result.ratio(name)
        rate = median(sample.driven.rate for sample in samples)
        busy = median(sample.busy for sample in samples)
        waited = median(sample.waited for sample in samples)
        costs = f"{cost.median:.1f} ({cost.low:.1f}–{cost.high:.1f})"
        ratios = f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
        rows.append((name, costs, ratios, f"{rate:,.0f}", f"{busy:.0%}", f"{waited:.0%}"))
    ratio_to = f"ratio to {REFERENCE}"
    head = ("one worker, one core", "CPU per request, µs", ratio_to, "requests/s", "on its core", "waited for it")
    return Table(head=head, rows=tuple(rows))


def _notes(result: Comparison) -> tuple[str, ...]:
    beside = [
        f"{name}'s {part}, beside it: {median(one.beside_us[part] for one in samples):.2f} µs of CPU per request."
        for name, samples in result.samples.items()
        for part in samples[0].beside_us
    ]
    where = "the same core" if result.together else "another core"
    rounds = len(result.samples[REFERENCE])
    return (
        f"{rounds} interleaved rounds of {result.seconds:g} s each; ratios are taken within a round.",
        f"Every request is different: {PATHS:,} paths, varied queries, a `traceparent` of its own, {result.tokens:,} "
        f"tokens; {CONNECTIONS} kept-alive connections, no pipelining. A round with one wrong answer gives no figure.",
        "CPU is the worker's own, user and kernel, from `/proc/<pid>/task/*/schedstat`; the load generator (wrk) "
        f"and the backend (nginx `return 200`, HTTP/1.1 kept alive) run on {where}.",
        *[PEERS[name].does[0].upper() + PEERS[name].does[1:] for name in result.samples if name in PEERS],
        *beside,
    )
