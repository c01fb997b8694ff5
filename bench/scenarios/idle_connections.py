"""Idle connections: the memory of 9,000 that each authenticated once, and their effect on the latency of active ones.

Two patgates with one configuration run on one core: one that holds the idle connections and one that holds none. Memory
is the first one's, before and after. Then the same requests at the same rate go to each in turn (open loop,
``bench.load.open_loop``), so that only the connections differ.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

from bench.backends.origin import run_origin
from bench.errors import BenchError
from bench.load.held_connections import Group, Manner, hold_connections
from bench.load.open_loop import Seen
from bench.load.workload import Workload, mint, write_workload
from bench.report.figures import Figure, Part, Run, Table, spread
from bench.testbed import beside, lateness, probe, raise_descriptor_limit, received, run_testbed, warm_tokens

CONNECTIONS: Final = 9000
ROUNDS: Final = 5
SECONDS: Final = 5.0
TOKENS: Final = 1000
RATE: Final = 1000.0
_WARM_SECONDS: Final = 2.0
_KIB: Final = 1024
_CONFIGURATION: Final = """\
upstreams:
  origin: {{ servers: ["http://127.0.0.1:{origin}"] }}
routes:
  - {{ path: "/v1/{{entity}}", upstream: origin }}
  - {{ path: "/v1/{{entity}}/{{id}}", upstream: origin }}
timeouts: {{ keepalive: 1h }}
"""


def measure(run: Run) -> Part:
    """Hold ``run.entries`` idle connections. Raises BenchError if one of them was closed meanwhile."""
    number, rounds, seconds = run.entries or CONNECTIONS, run.rounds or ROUNDS, run.seconds or SECONDS
    raise_descriptor_limit(number + 1000)
    without: list[Seen] = []
    among: list[Seen] = []
    workload = write_workload(run.directory, mint(run.tokens or TOKENS))
    with ExitStack() as stack:
        origin = stack.enter_context(run_origin(run.directory, run.cores))
        text = _CONFIGURATION.format(origin=origin.port)
        testbeds = [
            stack.enter_context(run_testbed(run.directory / name, run.cores, text, workload.tokens))
            for name in ("free", "crowded")
        ]
        for testbed in testbeds:
            warm_tokens(testbed.port, "/v1/things/1", workload.tokens)
            probe(testbed, workload, run.cores, rate=RATE, seconds=_WARM_SECONDS, seed=-1)
        free, crowded = testbeds
        before = crowded.resident()
        group = Group(manner=Manner.IDLE, number=number, openings=_openings(workload))
        pipe = stack.enter_context(beside(hold_connections, run.cores.rest, crowded.port, [group]))
        received(pipe, 300, "every idle connection had its answer")
        each = (crowded.resident() - before) / _KIB / number
        for turn in range(rounds):
            for testbed, seen in ((free, without), (crowded, among))[:: 1 if turn % 2 == 0 else -1]:
                seen.append(probe(testbed, workload, run.cores, rate=RATE, seconds=seconds, seed=turn))
        pipe.send("state")
        state = received(pipe, 30, "the idle connections answered")
        if state["cut_off"] or crowded.descriptors() < number:
            raise BenchError(f"{state['cut_off']:,.0f} of {number:,} idle connections were closed meanwhile.")
        later = (crowded.resident() - before) / _KIB / number
    return _part(number, seconds, each, later, without, among)


def _part(number: int, seconds: float, each: float, later: float, without: list[Seen], among: list[Seen]) -> Part:
    ratios = spread([crowded.p99_us / free.p99_us for crowded, free in zip(among, without, strict=True)])
    rows = [
        (name, *(f"{spread([getattr(one, field) for one in seen]).median / 1e3:.2f}" for field in _COLUMNS))
        for name, seen in (("none idle", without), (f"{number:,} idle", among))
    ]
    return Part(
        figures=(
            Figure(what=f"{number:,} idle connections: memory of the worker for each", spread=spread([each]), bound=40,
                   aim=20, unit=" KiB"),
            Figure(what=f"{number:,} idle connections: p99 of active ones, ratio to none idle", spread=ratios,
                   bound=1.5),
        ),
        tables=(Table(head=("active connections", "p50, ms", "p99, ms", "sent late, p99, ms"), rows=tuple(rows)),),
        notes=(
            f"Each idle connection made one request with one of {TOKENS:,} valid tokens. When the active ones had been "
            f"served for a while beside them, it was {later:.1f} KiB for each. The kernel's own buffers are not in it.",
            f"{len(without)} rounds of {seconds:g} s at {RATE:g}/s to each of two patgates on one core, in turn.",
            *lateness([*without, *among]),
        ),
    )  # fmt: skip


_COLUMNS: Final = ("p50_us", "p99_us", "late_p99_us")


def _openings(workload: Workload) -> list[bytes]:
    return [
        f"GET /v1/things/1 HTTP/1.1\r\nHost: idle\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        for token in workload.tokens
    ]
