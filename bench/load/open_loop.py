"""An open-loop load generator: the time at which each request is due is fixed before the first is sent.

A closed loop (wrk) sends the next request when the last is answered, so a gateway that stalls gets fewer requests
meanwhile and the stall is counted once. Here the latency of a request runs from its due time to the last byte of its
answer, so waiting for a connection or for this process counts (Tene's "coordinated omission").

Why one of our own: of Debian's, h2load paces (``--rps``) but sends the same header fields with each request, so neither
token nor traceparent could vary, and it measures from the sending; wrk, ab, siege and hey are closed loops; wrk2 and
vegeta are not packaged. The loop is epoll and a timerfd and not uvloop, whose timers (libuv) tick in milliseconds,
longer than an answer takes.

The generator reports how late it sent (``late_p99_us``: from due to sent) and how busy it was: a figure measured while
it was late or near its limit is the generator's own and not the gateway's.

It is a program of its own, so that it has its core's cache and no other thread:
``python -m bench.load.open_loop JOB``, with a ``Job`` as JSON, prints a ``Seen`` as JSON.
"""

import ctypes
import dataclasses
import gc
import json
import os
import random
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.report.figures import percentile

_NS: Final = 1_000_000_000
_TFD_TIMER_ABSTIME: Final = 1
_LEAD_NS: Final = 50_000_000
"""Time between the preparations and the first request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Parameters of one run."""

    port: int
    rate: float
    """Requests due per second."""
    seconds: float
    """Duration of the measured part; ``lead_in`` precedes it."""
    lead_in: float
    """Seconds at the same rate before the measured part: connections open, caches fill."""
    connections: int
    bursts: bool
    """Whether requests arrive at random (a Poisson process) and not evenly."""
    seed: int
    tokens_file: str
    paths_file: str
    body_hex: str
    """What every answer has to end with."""
    patience: float
    """Seconds after the last request is due, at which an unanswered request counts as such."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """The result of one run. Times in µs, from a request's due time to the last byte of its answer."""

    requests: int
    unanswered: int
    """Requests without an answer when patience ended; the times are meaningless then."""
    p50_us: float
    p99_us: float
    max_us: float
    late_p50_us: float
    late_p99_us: float
    busy: float
    """Share of its core that the generator needed."""


def schedule(count: int, rate: float, rng: random.Random | None) -> tuple[int, ...]:
    """The due times of ``count`` requests: ns from the start, ascending, ``rate`` a second.

    Evenly spaced, or, with ``rng``, at random and independent: intervals are exponentially distributed.
    """
    if rng is None:
        return tuple(round(number * _NS / rate) for number in range(count))
    due, at = [], 0.0
    for _ in range(count):
        due.append(round(at * _NS))
        at += rng.expovariate(rate)
    return tuple(due)


def build(paths: Sequence[str], tokens: Sequence[str], port: int, count: int, rng: random.Random) -> list[bytes]:
    """``count`` distinct requests, as ``wrk.lua`` builds them."""
    run = rng.getrandbits(64)
    return [
        (
            f"GET {rng.choice(paths)}?page={number % 97}&limit={10 + number % 50}&cursor={number:016x} HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{port}\r\nUser-Agent: python-requests/2.32.3\r\nAccept-Encoding: gzip, deflate\r\n"
            f"Accept: application/json\r\nAuthorization: Bearer {rng.choice(tokens)}\r\n"
            f"traceparent: 00-{run:016x}{number + 1:016x}-{number + 1:016x}-01\r\n\r\n"
        ).encode()
        for number in range(count)
    ]


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timer:
    """timerfd_create(2), which Python has from 3.13 on: a descriptor that becomes readable at a time of the clock."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._spec = _Itimerspec()
        self.descriptor: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, at_ns: int) -> None:
        """Become readable when time.monotonic_ns() reaches ``at_ns``, at once if it has; replaces the previous time."""
        self._spec.value.seconds, self._spec.value.nanoseconds = divmod(at_ns, _NS)
        self._libc.timerfd_settime(self.descriptor, _TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None)

    def close(self) -> None:
        os.close(self.descriptor)


class Connection:
    """One kept-alive connection with at most one request on it."""

    __slots__ = ("held", "number", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.number = -1
        self.held = b""


def drive(
    port: int, requests: Sequence[bytes], due: Sequence[int], *, body: bytes, connections: int, patience: float
) -> tuple[list[int], list[int]]:
    """Send each request when it is due, on the connection that has been idle for longest.

    Returns ns from due to answered, and from due to sent, in the order of the requests; -1 for what was not answered
    (or sent) in time. Raises BenchError for an answer that is not a 200 that ends with ``body``, and for a connection
    that is closed.
    """
    poll, timer = select.epoll(), Timer()
    every = [Connection(port) for _ in range(connections)]
    by_descriptor = {one.socket.fileno(): one for one in every}
    for descriptor in (*by_descriptor, timer.descriptor):
        poll.register(descriptor, select.EPOLLIN)
    idle, waiting = deque(every), deque[int]()
    total, coming, missing = len(due), 0, len(due)
    answered, sent, now = [-1] * total, [-1] * total, time.monotonic_ns
    start = now() + _LEAD_NS
    end = start + due[-1] + round(patience * _NS)
    timer.set(start + due[0])
    try:
        while missing and now() < end:
            for descriptor, _ in poll.poll(1.0):
                if descriptor == timer.descriptor:
                    at = now()
                    while coming < total and start + due[coming] <= at:
                        waiting.append(coming)
                        coming += 1
                    timer.set(start + due[coming] if coming < total else end)
                else:
                    one = by_descriptor[descriptor]
                    if _received(one, body):
                        answered[one.number] = now() - start - due[one.number]
                        missing -= 1
                        idle.append(one)
                while waiting and idle:
                    one, number = idle.popleft(), waiting.popleft()
                    one.number = number
                    one.socket.sendall(requests[number])
                    sent[number] = now() - start - due[number]
    except OSError as error:
        raise BenchError(f"A connection failed during the run: {error.strerror}.") from None
    finally:
        timer.close()
        poll.close()
        for one in every:
            one.socket.close()
    return answered, sent


def _received(one: Connection, body: bytes) -> bool:
    """Read what there is; whether the answer is complete."""
    data = one.socket.recv(65536)
    if not data:
        raise BenchError("A connection was closed during the run.")
    if one.held:
        data = one.held + data
    if not data.endswith(body):
        one.held = data
        return False
    if not data.startswith(b"HTTP/1.1 200 "):
        raise BenchError("An answer was not a 200.")
    one.held = b""
    return True


def run(job: Job) -> Seen:
    """Prepare everything, send it, and reckon. Raises BenchError."""
    rng = random.Random(job.seed)
    tokens, paths = (Path(name).read_text().split() for name in (job.tokens_file, job.paths_file))
    first, count = round(job.rate * job.lead_in), round(job.rate * (job.lead_in + job.seconds))
    due = schedule(count, job.rate, rng if job.bursts else None)
    requests = build(paths, tokens, job.port, count, rng)
    gc.collect()
    gc.disable()
    began, used = time.monotonic(), time.process_time()
    answered, sent = drive(
        job.port,
        requests,
        due,
        body=bytes.fromhex(job.body_hex),
        connections=job.connections,
        patience=job.patience,
    )
    busy = (time.process_time() - used) / (time.monotonic() - began)
    times, late = answered[first:], sent[first:]
    return Seen(
        requests=len(times),
        unanswered=times.count(-1),
        p50_us=percentile(times, 0.5) / 1e3,
        p99_us=percentile(times, 0.99) / 1e3,
        max_us=max(times) / 1e3,
        late_p50_us=percentile(late, 0.5) / 1e3,
        late_p99_us=percentile(late, 0.99) / 1e3,
        busy=busy,
    )


def main() -> int:
    """Returns 1, with the sentence on standard error, when there is nothing that may be believed."""
    try:
        seen = run(Job(**json.loads(sys.argv[1])))
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(dataclasses.asdict(seen)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
