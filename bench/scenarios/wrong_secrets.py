"""A flood of wrong secrets: 5,000 a second with the public prefix of a known token, beside valid tokens.

The flood is open loop, evenly spread over its connections: it sends each request when it is due, answered or not.
Valid tokens are sent at a fixed rate as well (``bench.load.open_loop``), so that waiting counts. Rounds alternate,
without the flood and with it or the other way round. That no argon2 runs is read from the node's own metric.
"""

from __future__ import annotations

import re
import select
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from multiprocessing.connection import Connection
from typing import Final

from bench.backends.origin import run_origin
from bench.errors import BenchError
from bench.load.open_loop import Seen
from bench.load.token_generator import wrong_secrets
from bench.load.workload import mint, write_workload
from bench.report.figures import Figure, Part, Run, Table, spread
from bench.system.cpu_time import cpu_ns
from bench.testbed import LOOPBACK, beside, lateness, probe, received, run_testbed, warm_tokens

RATE: Final = 5000
ROUNDS: Final = 5
SECONDS: Final = 5.0
TOKENS: Final = 1000
CONNECTIONS: Final = 100
PROBE_RATE: Final = 1000.0
_POOL: Final = 100_000
"""Number of distinct wrong secrets; then they repeat."""
_LEAST_SHARE: Final = 0.98
"""Share of the flood's rate that has to be reached for a valid figure."""
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_STATUS_LENGTH: Final = len(b"HTTP/1.1 200 ")
_CONFIGURATION: Final = """\
upstreams:
  origin: {{ servers: ["http://127.0.0.1:{origin}"] }}
routes:
  - {{ path: "/v1/{{entity}}", upstream: origin }}
  - {{ path: "/v1/{{entity}}/{{id}}", upstream: origin }}
"""


def measure(run: Run) -> Part:
    """Flood with ``run.entries`` requests a second. Raises BenchError if any was not refused with 401."""
    rate, rounds, seconds = run.entries or RATE, run.rounds or ROUNDS, run.seconds or SECONDS
    calm: list[Seen] = []
    flooded: list[Seen] = []
    floods: list[Mapping[str, float]] = []
    shares: list[float] = []
    workload = write_workload(run.directory, mint(run.tokens or TOKENS))
    with ExitStack() as stack:
        origin = stack.enter_context(run_origin(run.directory, run.cores))
        text = _CONFIGURATION.format(origin=origin.port)
        testbed = stack.enter_context(run_testbed(run.directory / "patgate", run.cores, text, workload.tokens))
        warm_tokens(testbed.port, "/v1/things/1", workload.tokens)
        known = workload.tokens[0]
        before = testbed.settled("patgate_argon2_total"), testbed.metric("patgate_resolves_total")
        for number in range(rounds):
            for flooding in (False, True)[:: 1 if number % 2 == 0 else -1]:
                used, began = cpu_ns((testbed.worker,)), time.monotonic()
                if not flooding:
                    calm.append(probe(testbed, workload, run.cores, rate=PROBE_RATE, seconds=seconds, seed=number))
                    continue
                with beside(flood, run.cores.rest, testbed.port, known, rate, number) as pipe:
                    received(pipe, 60, "the flood began")
                    flooded.append(probe(testbed, workload, run.cores, rate=PROBE_RATE, seconds=seconds, seed=number))
                    pipe.send("stop")
                    floods.append(received(pipe, 60, "the flood was answered"))
                shares.append((cpu_ns((testbed.worker,)) - used) / 1e9 / (time.monotonic() - began))
        hashed = testbed.settled("patgate_argon2_total") - before[0]
        asked = testbed.metric("patgate_resolves_total") - before[1]
    slowest = min(one["sent"] / one["seconds"] for one in floods)
    if slowest < rate * _LEAST_SHARE:
        raise BenchError(f"The flood came at {slowest:,.0f}/s and not at {rate:,}/s: this machine is too busy for it.")
    return _part(rate, seconds, calm, flooded, floods, shares, hashed, asked)


def _part(
    rate: int,
    seconds: float,
    calm: list[Seen],
    flooded: list[Seen],
    floods: list[Mapping[str, float]],
    shares: list[float],
    hashed: float,
    asked: float,
) -> Part:
    what = f"{rate:,}/s wrong secrets of a known prefix"
    ratios = spread([among.p99_us / without.p99_us for among, without in zip(flooded, calm, strict=True)])
    rows = [
        (name, *(f"{spread([getattr(one, field) for one in seen]).median / 1e3:.2f}" for field in _COLUMNS))
        for name, seen in (("without the flood", calm), ("with it", flooded))
    ]
    return Part(
        figures=(
            Figure(what=f"{what}: argon2 runs", spread=spread([hashed]), bound=0),
            Figure(what=f"{what}: questions to the authority", spread=spread([asked])),
            Figure(what=f"{what}: p99 of valid tokens, ratio to without", spread=ratios, bound=2, aim=1.3),
        ),
        tables=(
            Table(head=("valid tokens", "p50, ms", "p99, ms", "sent late, p99, ms"), rows=tuple(rows)),
        ),
        notes=(
            f"{len(calm)} rounds of {seconds:g} s each without the flood and with it, in turn; valid tokens at "
            f"{PROBE_RATE:g}/s at random moments.",
            f"The flood: {sum(one['sent'] for one in floods):,.0f} requests over {CONNECTIONS} connections, evenly "
            f"spread, every one answered 401. The worker was busy for {spread(shares).median:.0%} of its core.",
            *lateness([*calm, *flooded]),
        ),
    )  # fmt: skip


_COLUMNS: Final = ("p50_us", "p99_us", "late_p99_us")


def flood(pipe: Connection, port: int, known: str, rate: int, seed: int) -> None:
    """Send wrong secrets at ``rate`` a second until a message arrives; then send their number and the time taken.

    Sends a message when it starts. Raises BenchError if one was answered with anything but 401, or not at all.
    """
    requests = [
        b"GET /v1/things/1 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\n\r\n" % token
        for token in islice(wrong_secrets(known, seed), _POOL)
    ]
    flooders = [socket.create_connection((LOOPBACK, port)) for _ in range(CONNECTIONS)]
    with select.epoll() as poll, ExitStack() as stack:
        for one in flooders:
            stack.enter_context(one)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            poll.register(one, select.EPOLLIN)
        poll.register(pipe.fileno(), select.EPOLLIN)
        pipe.send("started")
        _flood(pipe, poll, {one.fileno(): one for one in flooders}, requests, rate)


def _flood(
    pipe: Connection, poll: select.epoll, flooders: Mapping[int, socket.socket], requests: Sequence[bytes], rate: int
) -> None:
    in_turn = tuple(flooders.values())
    ends = dict.fromkeys(flooders, b"")
    statuses: Counter[bytes] = Counter()
    sent, began, ended = 0, time.monotonic(), 0.0
    while not ended or sum(statuses.values()) < sent:
        for descriptor, _ in poll.poll(0.001, CONNECTIONS):
            if descriptor == pipe.fileno():
                try:
                    pipe.recv()
                except EOFError:
                    return
                ended = time.monotonic()
                poll.unregister(descriptor)
                continue
            data = flooders[descriptor].recv(1 << 16)
            if not data:
                raise BenchError("The gateway closed a connection of the flood.")
            data = ends[descriptor] + data
            statuses.update(_STATUS.findall(data))
            ends[descriptor] = data[1 - _STATUS_LENGTH :]
        due = 0 if ended else round((time.monotonic() - began) * rate) - sent
        for _ in range(due):
            in_turn[sent % CONNECTIONS].sendall(requests[sent % _POOL])
            sent += 1
    if set(statuses) != {b"401"}:
        raise BenchError(f"Wrong secrets were answered with {sorted(statuses)}.")
    pipe.send({"sent": sent, "seconds": ended - began})
