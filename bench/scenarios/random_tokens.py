"""Random tokens: 10,000,000 of them, each well-formed and none known, beside valid tokens.

Unknown tokens are sent as fast as they are refused, pipelined on each of a hundred connections. The grant cache has
exactly as many entries as there are valid tokens, so that one entry for an unknown token would evict a valid one. For
valid tokens cache hits are counted: requests that the worker decided without asking the authority. Memory is read
before the first unknown token, so that everything kept about them counts.
"""

from __future__ import annotations

import re
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from multiprocessing.connection import Connection
from statistics import median
from typing import Final

from bench.backends.origin import run_origin
from bench.errors import BenchError
from bench.load.open_loop import Seen
from bench.load.token_generator import unknown_tokens
from bench.load.workload import mint, write_workload
from bench.report.figures import Figure, Part, Run, Table, spread
from bench.testbed import (
    LOOPBACK,
    MIB,
    beside,
    lateness,
    probe,
    raise_descriptor_limit,
    received,
    resident,
    run_testbed,
    warm_tokens,
)

COUNT: Final = 10_000_000
TOKENS: Final = 1000
CONNECTIONS: Final = 128
AHEAD: Final = 16
"""Requests that one connection pipelines."""
PROBE_SECONDS: Final = 10.0
_PROBE_RATE: Final = 100.0
_PATIENCE_SECONDS: Final = 120.0
"""A worker under full load of unknown tokens may delay others; the table has the latencies."""
_ALLOWED: Final = 'outcome="allowed"'
_SILENCE_SECONDS: Final = 60.0
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_CONFIGURATION: Final = """\
upstreams:
  origin: {{ servers: ["http://127.0.0.1:{origin}"] }}
routes:
  - {{ path: "/v1/{{entity}}", upstream: origin }}
  - {{ path: "/v1/{{entity}}/{{id}}", upstream: origin }}
cache: {{ entries: {entries} }}
"""


def measure(run: Run) -> Part:
    """Present ``run.entries`` unknown tokens. Raises BenchError if an answer to a known token was wrong."""
    count, seconds = run.entries or COUNT, run.seconds or PROBE_SECONDS
    raise_descriptor_limit(4 * CONNECTIONS + 1000)
    workload = write_workload(run.directory, mint(run.tokens or TOKENS))
    with ExitStack() as stack:
        origin = stack.enter_context(run_origin(run.directory, run.cores))
        text = _CONFIGURATION.format(origin=origin.port, entries=len(workload.tokens))
        testbed = stack.enter_context(run_testbed(run.directory / "patgate", run.cores, text, workload.tokens))
        warm_tokens(testbed.port, "/v1/things/1", workload.tokens)
        calm = probe(testbed, workload, run.cores, rate=_PROBE_RATE, seconds=seconds, seed=1)
        hits, argon2 = testbed.settled("patgate_cache_hits_total"), testbed.metric("patgate_argon2_total")
        asked = testbed.metric("patgate_requests_total", _ALLOWED)
        memory, of_authority = testbed.resident(), resident(testbed.authority)
        probes: list[Seen] = []
        began = time.monotonic()
        with beside(flood, run.cores.rest, testbed.port, count) as pipe:
            while not probes or not pipe.poll():
                probes.append(
                    probe(testbed, workload, run.cores, rate=_PROBE_RATE, seconds=seconds, seed=2 + len(probes),
                          patience=_PATIENCE_SECONDS)
                )  # fmt: skip
            statuses: Mapping[int, int] = received(pipe, 0, "every unknown token was answered")
            lasted = time.monotonic() - began
        if not statuses or set(statuses) - {401, 503}:
            raise BenchError(f"Unknown tokens were answered with {dict(statuses)}.")
        hits = testbed.settled("patgate_cache_hits_total") - hits
        asked = testbed.metric("patgate_requests_total", _ALLOWED) - asked
        return Part(
            figures=(
                Figure(what=f"{count:,} random tokens: change of the valid tokens' hit rate",
                       spread=spread([100 - 100 * hits / asked]), bound=1, aim=0, unit=" points"),
                Figure(what=f"{count:,} random tokens: growth of the worker's memory",
                       spread=spread([(testbed.resident() - memory) / MIB]), bound=16, aim=0, unit=" MiB"),
                Figure(what=f"{count:,} random tokens: growth of the authority's memory",
                       spread=spread([(resident(testbed.authority) - of_authority) / MIB]), unit=" MiB"),
                Figure(what=f"{count:,} random tokens: argon2 runs",
                       spread=spread([testbed.settled("patgate_argon2_total") - argon2]), bound=0),
            ),
            tables=(
                Table(head=("valid tokens", "p50, ms", "p99, ms"),
                      rows=(("alone", f"{calm.p50_us / 1e3:.2f}", f"{calm.p99_us / 1e3:.2f}"),
                            ("among unknown tokens", f"{median(one.p50_us for one in probes) / 1e3:.2f}",
                             f"{median(one.p99_us for one in probes) / 1e3:.2f}"))),
            ),
            notes=(
                f"{sum(statuses.values()) / lasted:,.0f} unknown tokens a second, as fast as they were answered: "
                + ", ".join(f"{number:,} with {status}" for status, number in sorted(statuses.items()))
                + f". Meanwhile {asked:,.0f} requests of {len(workload.tokens):,} valid tokens at {_PROBE_RATE:g}/s; "
                f"the cache has room for {len(workload.tokens):,} grants.",
                "401 is a refusal by the authority or by its cached answer; 503 is the answer to an unknown token "
                "when too many lookups are waiting, and costs the authority nothing.",
                *lateness([calm, *probes]),
            ),
        )  # fmt: skip


def flood(pipe: Connection, port: int, count: int) -> None:
    """Present ``count`` unknown tokens, and send how many were answered with each status."""
    statuses: Counter[int] = Counter()
    tokens = islice(unknown_tokens(time.monotonic_ns()), count)
    poll = select.poll()
    connections: dict[int, _Flooder] = {}
    for _ in range(CONNECTIONS):
        one = _Flooder(port)
        if one.send(tokens):
            connections[one.socket.fileno()] = one
            poll.register(one.socket, select.POLLIN)
    while connections:
        ready = poll.poll(_SILENCE_SECONDS * 1000)
        if not ready:
            raise BenchError(f"No unknown token was answered for {_SILENCE_SECONDS:g} s.")
        for descriptor, _ in ready:
            one = connections[descriptor]
            statuses.update(one.receive())
            if not one.waiting and not one.send(tokens):
                poll.unregister(descriptor)
                del connections[descriptor]
                one.socket.close()
    pipe.send(dict(statuses))


class _Flooder:
    """One connection and the number of its unanswered requests."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((LOOPBACK, port), timeout=_SILENCE_SECONDS)
        self.waiting = 0
        self._end = b""

    def send(self, tokens: Iterator[bytes]) -> bool:
        """Send the next requests; whether there were any left to send."""
        some = list(islice(tokens, AHEAD))
        if some:
            self.waiting = len(some)
            self.socket.sendall(
                b"".join(
                    [b"GET /v1/things/1 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\n\r\n" % one for one in some]
                )
            )
        return bool(some)

    def receive(self) -> list[int]:
        """The statuses of the answers that have begun to arrive. Raises BenchError if the connection was closed."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise BenchError("The gateway closed a connection with unknown tokens.")
        # An answer's beginning may be cut anywhere: the kept end is shorter than one, so nothing counts twice.
        data = self._end + data
        found = [int(status) for status in _STATUS.findall(data)]
        self._end = data[-(len(b"HTTP/1.1 200 ") - 1) :]
        self.waiting -= len(found)
        return found
