"""Slow clients: the effect of 2,000 heads and 500 bodies that never end on the throughput of other clients.

Each slow client sends one byte a second, ten times as much as the usual tools send, and reconnects at once when the
gateway cuts it off. Rounds alternate: wrk drives the gateway as fast as it answers, first alone and then among the slow
clients, or the other way round. A round is longer than the time limit for a head, so that it includes the cutting off.
In the end the slow clients are alone: the worker's CPU is then all theirs, however busy the machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.load.held_connections import Group, Manner, hold_connections
from bench.load.workload import Workload, mint, write_workload
from bench.load.wrk import drive
from bench.report.figures import Better, Figure, Part, Run, Table, spread
from bench.system.cpu_time import cpu_ns
from bench.system.machine import Cores
from bench.system.nginx import free_port, run_nginx
from bench.testbed import Testbed, beside, raise_descriptor_limit, received, run_testbed, warm_tokens

HEADS: Final = 2000
BODIES: Final = 500
PACE_SECONDS: Final = 1.0
ROUNDS: Final = 3
SECONDS: Final = 12.0
TOKENS: Final = 1000
_HEAD_SECONDS: Final = 10

_ORIGIN: Final = """
server {{
  listen 127.0.0.1:{port} backlog=4096;
  keepalive_requests 1000000000;
  client_body_timeout 1h;
  client_max_body_size 0;
  location = /answer {{ return 200 'taken'; }}
  location /v1/uploads/ {{ proxy_pass http://127.0.0.1:{port}/answer; }}
  location / {{ return 200 '{{"id":"4f1f2c3d","name":"a thing","state":"active"}}'; }}
}}
"""
_CONFIGURATION: Final = """\
upstreams:
  origin: {{ servers: ["http://127.0.0.1:{origin}"] }}
routes:
  - {{ path: "/v1/{{entity}}", upstream: origin }}
  - {{ path: "/v1/{{entity}}/{{id}}", upstream: origin }}
timeouts: {{ request_head: {head_seconds}s }}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Round:
    rate: float
    per_cpu_second: float
    """Requests of the other clients for each second of CPU that the worker used in total."""


def measure(run: Run) -> Part:
    """Drive the gateway alone and among slow clients. Raises BenchError if an answer to the other clients was wrong."""
    heads = run.entries or HEADS
    bodies = heads * BODIES // HEADS
    rounds, seconds = run.rounds or ROUNDS, run.seconds or SECONDS
    raise_descriptor_limit(4 * (heads + bodies) + 1000)
    alone: list[_Round] = []
    among: list[_Round] = []
    cut = share = 0.0
    workload = write_workload(run.directory, mint(run.tokens or TOKENS))
    with ExitStack() as stack:
        origin = stack.enter_context(_origin(run.directory, run.cores))
        text = _CONFIGURATION.format(origin=origin, head_seconds=_HEAD_SECONDS)
        testbed = stack.enter_context(run_testbed(run.directory / "patgate", run.cores, text, workload.tokens))
        warm_tokens(testbed.port, "/v1/things/1", workload.tokens)
        drive(testbed.port, workload, run.cores, seconds=2, seed=1)
        groups = [
            Group(manner=Manner.SLOW, number=heads, openings=[_head(workload)], pace=PACE_SECONDS),
            Group(manner=Manner.SLOW, number=bodies, openings=[_body(workload)], pace=PACE_SECONDS),
        ]
        for number in range(rounds):
            for slow in (False, True)[:: 1 if number % 2 == 0 else -1]:
                if not slow:
                    alone.append(_round(testbed, workload, run.cores, seconds, number))
                    continue
                with beside(hold_connections, run.cores.rest, testbed.port, groups) as pipe:
                    received(pipe, 60, "every slow client was connected")
                    among.append(_round(testbed, workload, run.cores, seconds, number))
                    pipe.send("state")
                    cut += received(pipe, 30, "the slow clients answered")["cut_off"]
        with beside(hold_connections, run.cores.rest, testbed.port, groups) as pipe:
            received(pipe, 60, "every slow client was connected")
            began, before = time.monotonic(), cpu_ns((testbed.worker,))
            time.sleep(seconds)
            share = (cpu_ns((testbed.worker,)) - before) / 1e9 / (time.monotonic() - began)
    if seconds > _HEAD_SECONDS + 1 and cut < rounds * heads:
        raise BenchError(f"Only {cut:,.0f} slow clients were cut off in {rounds} rounds with {heads:,} slow heads.")
    return _part(f"{heads:,} slow heads and {bodies:,} slow bodies", seconds, cut / rounds, share, alone, among)


def _part(what: str, seconds: float, cut: float, share: float, alone: list[_Round], among: list[_Round]) -> Part:
    pairs = list(zip(among, alone, strict=True))
    rates = spread([100 * slow.rate / free.rate for slow, free in pairs])
    rows = [
        (what, f"{spread([one.rate for one in found]).median:,.0f}",
         f"{spread([one.per_cpu_second for one in found]).median:,.0f}")
        for what, found in (("alone", alone), ("among slow clients", among))
    ]  # fmt: skip
    return Part(
        figures=(
            Figure(what=f"{what}: throughput of the others", spread=rates, bound=90, aim=95, unit=" %",
                   better=Better.HIGHER),
            Figure(what=f"{what}: what they take of the worker's core", spread=spread([100 * share]), unit=" %"),
        ),
        tables=(Table(head=("the others", "requests/s", "requests per CPU second"), rows=tuple(rows)),),
        notes=(
            f"{len(alone)} rounds of {seconds:g} s alone and as many among the slow ones, in turn.",
            f"A slow client sends a byte every {PACE_SECONDS:g} s. {cut:,.0f} were cut off in a round, as heads are "
            f"{_HEAD_SECONDS} s after their first byte, and came back at once.",
        ),
    )  # fmt: skip


def _round(testbed: Testbed, workload: Workload, cores: Cores, seconds: float, number: int) -> _Round:
    before = cpu_ns((testbed.worker,))
    driven = drive(testbed.port, workload, cores, seconds=seconds, seed=number + 2)
    used = cpu_ns((testbed.worker,)) - before
    return _Round(rate=driven.rate, per_cpu_second=driven.requests / used * 1e9)


def _head(workload: Workload) -> bytes:
    """A head without its end."""
    token = workload.tokens[0]
    return f"GET /v1/things/1 HTTP/1.1\r\nHost: slow\r\nAuthorization: Bearer {token}\r\nX-Slow: ".encode()


def _body(workload: Workload) -> bytes:
    """A head with the beginning of its body."""
    token = workload.tokens[0]
    head = (
        f"PUT /v1/uploads/1 HTTP/1.1\r\nHost: slow\r\nAuthorization: Bearer {token}\r\nContent-Length: 1000000\r\n\r\n"
    )
    return head.encode() + b"the beginning"


@contextmanager
def _origin(directory: Path, cores: Cores) -> Iterator[int]:
    """A backend that answers a request without a body at once, and one with a body after the body's end."""
    port = free_port()
    with run_nginx(directory / "origin", _ORIGIN.format(port=port), port, cores.rest):
        yield port
