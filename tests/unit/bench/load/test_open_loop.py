"""The open-loop generator: due times, distinct requests, and latencies that include waiting."""

from __future__ import annotations

import random
import re
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from threading import Event, Thread

import pytest

from bench.errors import BenchError
from bench.load import open_loop
from tests.support.process import HANGS_SECONDS

BODY = b"the body"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n" + BODY


@contextmanager
def backend(*, after: Event | None = None, stall: float = 30.0) -> Iterator[int]:
    """Answers each request on one connection, the first once ``after`` is set or ``stall`` is over; gives its port."""
    stalls = [after or Event()] if after is not None or stall < 30 else []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            held = b""
            while data := connection.recv(65536):
                held += data
                while b"\r\n\r\n" in held:
                    if stalls:
                        stalls.pop().wait(stall)
                    held = held.partition(b"\r\n\r\n")[2]
                    try:
                        connection.sendall(ANSWER)
                    except OSError:
                        return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(HANGS_SECONDS)


def requests(count: int) -> list[bytes]:
    return open_loop.build(["/v1/a", "/v1/b"], ["one", "two"], 80, count, random.Random(1))


def test_an_even_schedule_is_due_at_equal_distances() -> None:
    assert open_loop.schedule(5, 1000, None) == (0, 1_000_000, 2_000_000, 3_000_000, 4_000_000)


def test_a_random_schedule_keeps_its_rate_and_its_order() -> None:
    due = open_loop.schedule(20_000, 1000, random.Random(7))
    distances = [later - earlier for earlier, later in pairwise(due)]
    assert all(distance >= 0 for distance in distances)
    mean = sum(distances) / len(distances)
    assert mean == pytest.approx(1e6, rel=0.05)
    # Of an exponential distribution the deviation is the mean.
    deviation = (sum((distance - mean) ** 2 for distance in distances) / len(distances)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.05)


def test_requests_are_distinct_and_each_has_its_own_trace() -> None:
    built = requests(1000)
    assert len(set(built)) == len(built)
    traces = [re.findall(rb"^traceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-01\r$", one, re.MULTILINE) for one in built]
    assert all(len(trace) == 1 for trace in traces)
    assert len({trace[0] for trace in traces}) == len(built)


def test_every_request_is_answered() -> None:
    with backend() as port:
        answered, sent = open_loop.drive(
            port, requests(200), open_loop.schedule(200, 2000, None), body=BODY, connections=1, patience=30
        )
    assert all(time > 0 for time in answered)
    assert all(0 <= late < time for late, time in zip(sent, answered, strict=True))


def test_the_time_that_a_request_waits_for_a_connection_counts() -> None:
    """The gateway stalls on the first request for 100 ms while nine more become due: each of them waited for it."""
    due = open_loop.schedule(10, 1000, None)
    with backend(stall=0.1) as port:
        answered, sent = open_loop.drive(port, requests(10), due, body=BODY, connections=1, patience=HANGS_SECONDS)
    assert answered[0] >= 100_000_000
    for number in range(1, 10):
        assert answered[number] > sent[number] >= answered[0] - due[number]


def test_requests_without_an_answer_in_time_are_reported() -> None:
    never = Event()
    with backend(after=never) as port:
        answered, _ = open_loop.drive(port, requests(3), (0, 0, 0), body=BODY, connections=1, patience=0.05)
        never.set()
    assert answered == [-1, -1, -1]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 8\r\n\r\nthe body", b""])
def test_a_wrong_answer_and_a_closed_connection_give_no_figure(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(BenchError):
            open_loop.drive(
                listener.getsockname()[1], requests(2), (0, 0), body=BODY, connections=1, patience=HANGS_SECONDS
            )
        thread.join(HANGS_SECONDS)


def test_the_timer_is_ready_at_its_time_and_not_before() -> None:
    timer = open_loop.Timer()
    try:
        at = time.monotonic_ns() + 20_000_000
        timer.set(at)
        assert select.select([timer.descriptor], [], [], 30)[0]
        assert time.monotonic_ns() >= at
    finally:
        timer.close()
