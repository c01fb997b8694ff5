"""What a connection costs: CPU per request of patgate and nginx when connections are kept, and when each is new.

Clients such as curl and git, and many ingresses, open a connection for each request. Five shapes, with and without TLS,
each in interleaved rounds of both peers as in ``cpu_per_request``. The same clients drive both.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final

from bench.backends.origin import run_origin
from bench.load.handshakes import CLIENTS, drive_handshakes
from bench.load.workload import mint, write_workload
from bench.load.wrk import CONNECTIONS, Driven, drive
from bench.peers import Peer, Site
from bench.peers.nginx import Nginx
from bench.peers.patgate import Patgate
from bench.report.figures import Figure, Part, Run, Spread, Table, spread
from bench.scenarios.cpu_per_request import (
    AGAINST,
    OURS,
    REFERENCE,
    TOKENS,
    Sample,
    check_answers,
    new_seed,
    sample,
    warm,
)
from bench.system import build
from bench.system.certificate import self_signed


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One way in which clients use connections."""

    name: str
    tls: bool
    driver: Callable[..., Driven]
    bound: float | None = None
    aim: float | None = None


#: Bounds and aims: issue 10. Kept-alive connections without TLS have theirs in ``cpu_per_request``.
SHAPES: Final = (
    Shape(name="kept alive", tls=False, driver=drive),
    Shape(name="a connection for each request", tls=False, driver=partial(drive, close=True), bound=1.5, aim=1.3),
    Shape(name="TLS, kept alive", tls=True, driver=partial(drive, tls=True)),
    Shape(
        name="a TLS handshake for each request",
        tls=True,
        driver=partial(drive_handshakes, resume=False),
        bound=2.0,
        aim=1.5,
    ),
    # Python's clients take so much of their core that the peers are idle most of the time; wrk keeps them busy.
    Shape(name="a resumed TLS handshake for each request", tls=True, driver=partial(drive, tls=True, close=True)),
)


def measure(run: Run) -> Part:
    """Measure every shape. Raises BenchError if any answer or handshake was wrong."""
    workload = write_workload(run.directory, mint(run.tokens or TOKENS))
    pair = self_signed(run.directory)
    rounds, seconds = run.rounds or 5, run.seconds or 2
    samples: dict[tuple[str, str], list[Sample]] = {}
    with ExitStack() as stack:
        origin = stack.enter_context(run_origin(run.directory, run.cores))
        site = Site(directory=run.directory, origin_port=origin.port, workload=workload, cores=run.cores)
        peers: dict[bool, list[Peer]] = {
            False: [Nginx(), Patgate(OURS)],
            True: [Nginx(pair), Patgate(f"{OURS}-tls", pair=pair)],
        }
        names = [REFERENCE, OURS]
        if run.against:
            other, built = f"{OURS} of {run.against.resolve().name}", build.of(run.against)
            peers[False].append(Patgate(other, build=built))
            peers[True].append(Patgate(f"{other}-tls", build=built, pair=pair))
            names.append(other)
        serving = {
            (name, tls): stack.enter_context(peer.serve(site))
            for tls, each in peers.items()
            for name, peer in zip(names, each, strict=True)
        }
        for (name, tls), one in serving.items():
            check_answers(name, one, workload)
            warm(one.port, workload, run.cores, tls=tls)
            if tls:
                # What wrk sends cannot be asked for its handshakes, so each kind is checked by a client that can.
                for resume in (False, True):
                    drive_handshakes(one.port, workload, run.cores, seconds=1, seed=new_seed(), resume=resume)
        for number in range(rounds):
            for shape in SHAPES:
                for name in names[:: 1 if number % 2 == 0 else -1]:
                    one = serving[name, shape.tls]
                    driver = partial(shape.driver, one.port, workload, run.cores, seconds=seconds, seed=new_seed())
                    samples.setdefault((shape.name, name), []).append(sample(name, one, origin, driver))
    figures = [
        Figure(
            what=f"CPU per request, {shape.name}: ratio to {REFERENCE}",
            spread=_ratio(samples[shape.name, OURS], samples[shape.name, REFERENCE]),
            bound=shape.bound,
            aim=shape.aim,
        )
        for shape in SHAPES
    ]
    for name in names[2:]:
        figures += [
            Figure(
                what=f"CPU per request, {shape.name}: ratio to {name}",
                spread=_ratio(samples[shape.name, OURS], samples[shape.name, name]),
                bound=AGAINST,
            )
            for shape in SHAPES
        ]
    return Part(figures=tuple(figures), tables=(_table(samples, names),), notes=_notes(rounds, seconds))


def _ratio(ours: list[Sample], theirs: list[Sample]) -> Spread:
    return spread([one.cpu_us / other.cpu_us for one, other in zip(ours, theirs, strict=True)])


def _table(samples: dict[tuple[str, str], list[Sample]], names: list[str]) -> Table:
    rows = []
    for shape in SHAPES:
        for name in names:
            own = samples[shape.name, name]
            cost, ratio = spread([each.cpu_us for each in own]), _ratio(own, samples[shape.name, REFERENCE])
            kernel = median(each.cpu_us * each.system for each in own)
            rows.append(
                (
                    f"{shape.name}, {name}",
                    f"{cost.median:.1f} ({cost.low:.1f}–{cost.high:.1f})",
                    f"{cost.median - kernel:.0f} + {kernel:.0f}",
                    f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})",
                    f"{median(each.driven.rate for each in own):,.0f}",
                    f"{median(each.busy for each in own):.0%}",
                )
            )
    head = ("one worker, one core", "CPU per request, µs", "user + kernel", f"ratio to {REFERENCE}", "requests/s",
            "on its core")  # fmt: skip
    return Table(head=head, rows=tuple(rows))


def _notes(rounds: int, seconds: float) -> tuple[str, ...]:
    return (
        f"{rounds} interleaved rounds of {seconds:g} s each, the requests and the backend of `cpu`, whose connections "
        "are kept; ratios are taken within a round.",
        f"A connection for each request: {CONNECTIONS} at a time by wrk, with `Connection: close`; the server closes.",
        f"A TLS handshake for each request: {CLIENTS} clients (`bench/load/handshakes.py`) at a time, TLS 1.3, a "
        "certificate on P-256. They drive both peers and check of each handshake that it resumed no session. What they "
        "take of the other core keeps the peers from being busy all the time, and a worker that wakes for each event "
        "finds its caches cold.",
        f"A resumed TLS handshake for each request: {CONNECTIONS} at a time by wrk, which presents the session of its "
        "connection before. That both peers resume sessions is checked by the clients of full handshakes.",
    )
