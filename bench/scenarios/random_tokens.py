"""Random tokens without end: 10,000,000 of them, each well-formed and none known, beside tokens that are.

The strangers come as fast as they are refused, many ahead of their answers on each of a hundred connections. The cache
of grants is exactly as large as there are valid tokens, so that one stranger's entry too many would push a valid token
out. What is counted of those is hits: requests that the worker decided without asking anybody. Memory is read before
the first stranger, so that whatever is ever kept of them counts.
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
from bench.load.token_generator import strangers
from bench.load.workload import mint, write_workload
from bench.report.figures import Figure, Part, Run, Table, spread
from bench.testbed import (
    LOOPBACK,
    MIB,
    beside,
    heard,
    introduce,
    lateness,
    probe,
    raise_descriptor_limit,
    resident,
    standing,
)

COUNT: Final = 10_000_000
TOKENS: Final = 1000
CONNECTIONS: Final = 128
AHEAD: Final = 16
"""Requests that one connection sends at once."""
PROBE_SECONDS: Final = 10.0
_PROBE_RATE: Final = 100.0
_PATIENCE_SECONDS: Final = 120.0
"""A worker that is given all the strangers it can take may keep others waiting; how long is in the table."""
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
    """Present ``run.entries`` unknown tokens. Raises BenchError when an answer to a known token was wrong."""
    count, seconds = run.entries or COUNT, run.seconds or PROBE_SECONDS
    raise_descriptor_limit(4 * CONNECTIONS + 1000)
    workload = write_workload(run.directory, mint(run.tokens or TOKENS))
    with ExitStack() as stack:
        origin = stack.enter_context(run_origin(run.directory, run.cores))
        text = _CONFIGURATION.format(origin=origin.port, entries=len(workload.tokens))
        stand = stack.enter_context(standing(run.directory / "patgate", run.cores, text, workload.tokens))
        introduce(stand.port, "/v1/things/1", workload.tokens)
        calm = probe(stand, workload, run.cores, rate=_PROBE_RATE, seconds=seconds, seed=1)
        hits, argon2 = stand.settled("patgate_cache_hits_total"), stand.metric("patgate_argon2_total")
        asked = stand.metric("patgate_requests_total", _ALLOWED)
        memory, of_authority = stand.resident(), resident(stand.authority)
        probes: list[Seen] = []
        began = time.monotonic()
        with beside(flood, run.cores.rest, stand.port, count) as pipe:
            while not pipe.poll():
                probes.append(
                    probe(stand, workload, run.cores, rate=_PROBE_RATE, seconds=seconds, seed=2 + len(probes),
                          patience=_PATIENCE_SECONDS)
                )  # fmt: skip
            statuses: Mapping[int, int] = heard(pipe, 0, "every stranger was answered")
            lasted = time.monotonic() - began
        if not statuses or set(statuses) - {401, 503}:
            raise BenchError(f"Strangers were answered with {dict(statuses)}.")
        hits = stand.settled("patgate_cache_hits_total") - hits
        asked = stand.metric("patgate_requests_total", _ALLOWED) - asked
        return Part(
            figures=(
                Figure(what=f"{count:,} random tokens: change of the valid tokens' hit rate",
                       spread=spread([100 - 100 * hits / asked]), bound=1, aim=0, unit=" points"),
                Figure(what=f"{count:,} random tokens: growth of the worker's memory",
                       spread=spread([(stand.resident() - memory) / MIB]), bound=16, aim=0, unit=" MiB"),
                Figure(what=f"{count:,} random tokens: growth of the authority's memory",
                       spread=spread([(resident(stand.authority) - of_authority) / MIB]), unit=" MiB"),
                Figure(what=f"{count:,} random tokens: argon2 runs",
                       spread=spread([stand.settled("patgate_argon2_total") - argon2]), bound=0),
            ),
            tables=(
                Table(head=("valid tokens", "p50, ms", "p99, ms"),
                      rows=(("without strangers", f"{calm.p50_us / 1e3:.2f}", f"{calm.p99_us / 1e3:.2f}"),
                            ("among them", f"{median(one.p50_us for one in probes) / 1e3:.2f}",
                             f"{median(one.p99_us for one in probes) / 1e3:.2f}"))),
            ),
            notes=(
                f"{sum(statuses.values()) / lasted:,.0f} strangers a second, as fast as they were answered: "
                + ", ".join(f"{number:,} with {status}" for status, number in sorted(statuses.items()))
                + f". Meanwhile {asked:,.0f} requests of {len(workload.tokens):,} valid tokens at {_PROBE_RATE:g}/s; "
                f"the cache has room for {len(workload.tokens):,} grants.",
                "401 is a refusal after asking the authority or remembering its answer; 503 is the answer to a "
                "stranger when too many are waiting to be asked about, and costs the authority nothing.",
                *lateness([calm, *probes]),
            ),
        )  # fmt: skip


def flood(pipe: Connection, port: int, count: int) -> None:
    """Present ``count`` strangers and send how many were answered with which status."""
    statuses: Counter[int] = Counter()
    tokens = islice(strangers(time.monotonic_ns()), count)
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
            raise BenchError(f"No stranger was answered for {_SILENCE_SECONDS:g} s.")
        for descriptor, _ in ready:
            one = connections[descriptor]
            statuses.update(one.receive())
            if not one.waiting and not one.send(tokens):
                poll.unregister(descriptor)
                del connections[descriptor]
                one.socket.close()
    pipe.send(dict(statuses))


class _Flooder:
    """One connection, with the requests on it that have no answer yet."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((LOOPBACK, port), timeout=_SILENCE_SECONDS)
        self.waiting = 0
        self._end = b""

    def send(self, tokens: Iterator[bytes]) -> bool:
        """Send what may go ahead; whether there was anything left to send."""
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
        """The statuses of the answers that have begun to arrive. Raises BenchError when the connection was closed."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise BenchError("The gateway closed a stranger's connection.")
        # An answer's beginning may be cut anywhere: what is kept is shorter than one, so nothing counts twice.
        data = self._end + data
        found = [int(status) for status in _STATUS.findall(data)]
        self._end = data[-(len(b"HTTP/1.1 200 ") - 1) :]
        self.waiting -= len(found)
        return found
