"""Latency at a fixed rate: p50 and p99 at half of patgate's peak, beside other proxies at the same rate.

The peak is what wrk's closed loop gets through patgate; the rate is half of it for every peer, offered by the open loop
(``load.open_loop``) in interleaved rounds. Twice: evenly, as the promise says (a fixed rate), and at random, as
independent clients send; then requests overlap and queue.
"""

import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Final

from bench.backends.origin import BODY, run_origin
from bench.errors import BenchError
from bench.load.open_loop import Job, Seen
from bench.load.workload import Workload, mint, write_workload
from bench.load.wrk import drive
from bench.peers import Serving, Site
from bench.report.figures import Figure, Part, Run, Spread, Table, spread
from bench.scenarios.cpu_per_request import OURS, REFERENCE, TOKENS, check_answers, chosen, warm
from bench.system.machine import Cores, pin

CONNECTIONS: Final = 64
BOUND: Final = 2.0
AIM: Final = 1.3
#: The other peers' peak may be lower than half of ours.
DEFAULT_PEERS: Final = ("nginx", "haproxy", "envoy", "patgate")
_PEAK_ROUNDS: Final = 3
_LEAD_IN: Final = 0.5
_PATIENCE: Final = 5.0
_ARRIVALS: Final = {False: "evenly", True: "at random"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Offer:
    """The load offered to one peer in one round."""

    serving: Serving
    workload: Workload
    cores: Cores
    rate: float
    seconds: float


def measure(run: Run) -> Part:
    """Find the peak and offer half of it to each peer. Raises BenchError."""
    rounds, seconds = run.rounds or 5, run.seconds or 2
    workload = write_workload(run.directory, mint(run.tokens or TOKENS))
    peers = chosen((*(run.peers or DEFAULT_PEERS), OURS))
    seen: dict[tuple[str, bool], list[Seen]] = {(peer.name, bursts): [] for peer in peers for bursts in _ARRIVALS}
    with ExitStack() as stack:
        origin = stack.enter_context(run_origin(run.directory, run.cores))
        site = Site(directory=run.directory, origin_port=origin.port, workload=workload, cores=run.cores)
        offers: dict[str, _Offer] = {}
        serving = {peer.name: stack.enter_context(peer.serve(site)) for peer in peers}
        for name, one in serving.items():
            sent = one.workload or workload
            check_answers(name, one, sent)
            warm(one.port, sent, run.cores)
        peak = _peak(serving[OURS].port, workload, run.cores)
        for name, one in serving.items():
            offers[name] = _Offer(
                serving=one, workload=one.workload or workload, cores=run.cores, rate=round(peak / 2), seconds=seconds
            )
        for number in range(rounds):
            for name in list(offers)[:: 1 if number % 2 == 0 else -1]:
                for bursts in _ARRIVALS:
                    seen[name, bursts].append(_offer(offers[name], bursts=bursts))
    for name in (REFERENCE, OURS):
        if any(one.unanswered for bursts in _ARRIVALS for one in seen[name, bursts]):
            raise BenchError(f"{name} does not keep up with {peak / 2:,.0f} requests a second, half of patgate's peak.")
    return Part(
        figures=(
            Figure(
                what=f"p99 at half of the peak rate, ratio to {REFERENCE} at the same rate",
                spread=_ratio(seen[OURS, False], seen[REFERENCE, False]),
                bound=BOUND,
                aim=AIM,
            ),
            Figure(
                what=f"p99 at half of the peak rate with arrivals at random, ratio to {REFERENCE}",
                spread=_ratio(seen[OURS, True], seen[REFERENCE, True]),
            ),
        ),
        tables=(_table(seen),),
        notes=_notes(peak, rounds, seconds),
    )


def _peak(port: int, workload: Workload, cores: Cores) -> float:
    """Requests per second in a closed loop, the median of a few seconds."""
    return median(drive(port, workload, cores, seconds=1, seed=1 + number).rate for number in range(_PEAK_ROUNDS))


def _offer(offer: _Offer, *, bursts: bool) -> Seen:
    job = Job(
        port=offer.serving.port,
        rate=offer.rate,
        seconds=offer.seconds,
        lead_in=_LEAD_IN,
        connections=CONNECTIONS,
        bursts=bursts,
        seed=random.SystemRandom().getrandbits(32),
        tokens_file=str(offer.workload.tokens_file),
        paths_file=str(offer.workload.paths_file),
        body_hex=BODY.hex(),
        patience=_PATIENCE,
    )
    command = [sys.executable, "-m", "bench.load.open_loop", json.dumps(dataclasses.asdict(job))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        pin(process.pid, offer.cores.rest)
        output, error = process.communicate(timeout=offer.seconds + _PATIENCE + 120)
    if process.returncode:
        raise BenchError(f"The open loop ended without a figure: {error.strip()[-500:]}")
    return Seen(**json.loads(output))


def _ratio(ours: Sequence[Seen], theirs: Sequence[Seen]) -> Spread:
    return spread([one.p99_us / other.p99_us for one, other in zip(ours, theirs, strict=True)])


def _table(seen: Mapping[tuple[str, bool], Sequence[Seen]]) -> Table:
    head = ("arrivals, gateway", "p50, µs", "p99, µs", "p99 to nginx", "sent late, p50 / p99, µs", "generator busy")
    rows = []
    for (name, bursts), rounds in sorted(seen.items(), key=lambda item: item[0][1]):
        if any(one.unanswered for one in rounds):
            rows.append((f"{_ARRIVALS[bursts]}, {name}", "does not keep up", "", "", "", ""))
            continue
        p50, p99 = spread([one.p50_us for one in rounds]), spread([one.p99_us for one in rounds])
        late = [median(one.late_p50_us for one in rounds), median(one.late_p99_us for one in rounds)]
        rows.append(
            (
                f"{_ARRIVALS[bursts]}, {name}",
                f"{p50.median:.0f} ({p50.low:.0f}–{p50.high:.0f})",
                f"{p99.median:.0f} ({p99.low:.0f}–{p99.high:.0f})",
                f"{_ratio(rounds, seen[REFERENCE, bursts]).median:.2f}",
                " / ".join(f"{each:.0f}" for each in late),
                f"{median(one.busy for one in rounds):.0%}",
            )
        )
    return Table(head=head, rows=tuple(rows))


def _notes(peak: float, rounds: int, seconds: float) -> tuple[str, ...]:
    return (
        f"patgate's peak in a closed loop was {peak:,.0f} requests a second; every gateway is offered half of it, "
        f"in {rounds} interleaved rounds of {seconds:g} s each, over {CONNECTIONS} kept-alive connections.",
        "Open loop (`bench/load/open_loop.py`): a request's time runs from when it was due, not from when it was sent. "
        "The generator shares its core with the backend; its own lateness is in every time, and shown.",
        "Evenly: at equal distances. At random: exponentially distributed distances (a Poisson process), so that "
        "requests queue behind others also where the gateway has half of its time to spare.",
    )
