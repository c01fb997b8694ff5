"""The clients of the benchmarks that are written here: they do what their figure says they do."""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Event, Thread

import pytest

from bench import flood, strangers
from bench.crowd import Group, Manner, crowd
from bench.errors import BenchError
from bench.stand import heard
from bench.workload import mint

REFUSAL = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Answers every head with ``answer``; keeps what it was sent."""

    def __init__(self, answer: bytes, *, closing: bool = False) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.received: dict[int, bytes] = {}
        self.over = Event()
        self._answer = answer
        self._closing = closing

    def serve(self) -> None:
        connections: list[socket.socket] = []
        with selectors.DefaultSelector() as ready, self.listener:
            ready.register(self.listener, selectors.EVENT_READ)
            while not self.over.is_set():
                for key, _ in ready.select(0.02):
                    if key.fileobj is self.listener:
                        connections.append(self.listener.accept()[0])
                        ready.register(connections[-1], selectors.EVENT_READ, len(connections))
                    elif isinstance(key.fileobj, socket.socket) and not self._answered(key.fileobj, key.data):
                        ready.unregister(key.fileobj)
                        key.fileobj.close()
        for connection in connections:
            connection.close()

    def _answered(self, connection: socket.socket, number: int) -> bool:
        with suppress(OSError):
            data = connection.recv(1 << 16)
            self.received[number] = self.received.get(number, b"") + data
            connection.sendall(self._answer * data.count(b"\r\n\r\n"))
            return bool(data) and not self._closing
        return False


@contextmanager
def serving(answer: bytes, *, closing: bool = False) -> Iterator[Server]:
    server = Server(answer, closing=closing)
    thread = Thread(target=server.serve, name="server")
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        thread.join()


@contextmanager
def running(client: Callable[[Connection], None]) -> Iterator[Connection]:
    """The client in a thread and not, as in a benchmark, in a process; the other end of its pipe."""
    ours, theirs = Pipe()

    def run() -> None:
        with theirs, suppress(BenchError):
            client(theirs)

    thread = Thread(target=run, name="client")
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join()


def seconds_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_idle_clients_ask_once_each_and_stay() -> None:
    group = Group(manner=Manner.IDLE, number=250, openings=[b"GET /a HTTP/1.1\r\n\r\n", b"GET /b HTTP/1.1\r\n\r\n"])
    with serving(ANSWER) as server, running(lambda pipe: crowd(pipe, server.port, [group])) as pipe:
        assert heard(pipe, 30, "they stand")["answered"] == 250
        pipe.send("still there?")
        state = heard(pipe, 30, "they answer")
        assert (state["answered"], state["shut_out"]) == (250, 0)
    requests = list(server.received.values())
    assert requests.count(group.openings[0]) == requests.count(group.openings[1]) == 125


def test_slow_clients_send_a_byte_at_a_time() -> None:
    group = Group(manner=Manner.SLOW, number=10, openings=[b"GET /a HTTP/1.1\r\nX: "], pace=0.1)
    with serving(ANSWER) as server, running(lambda pipe: crowd(pipe, server.port, [group])) as pipe:
        heard(pipe, 30, "they stand")
        began = time.monotonic()
        seconds_until(lambda: sum(b"X: aaa" in data for data in server.received.values()) == 10)
        assert time.monotonic() - began > 0.2


def test_whoever_is_shut_out_comes_back() -> None:
    group = Group(manner=Manner.SLOW, number=3, openings=[b"GET /a HTTP/1.1\r\nX: "], pace=0.1)
    with serving(b"", closing=True) as server, running(lambda pipe: crowd(pipe, server.port, [group])) as pipe:
        heard(pipe, 30, "they stand")
        seconds_until(lambda: len(server.received) > 9)
        pipe.send("how often?")
        assert heard(pipe, 30, "they answer")["shut_out"] >= 6


def test_a_flood_comes_at_its_rate_and_ends_when_told() -> None:
    (known,) = mint(1)
    with serving(REFUSAL) as server, running(lambda pipe: flood.flood(pipe, server.port, known, 500, 1)) as pipe:
        heard(pipe, 30, "it goes")
        seconds_until(lambda: sum(map(len, server.received.values())) > 20_000)
        pipe.send("enough")
        told = heard(pipe, 30, "it has ended")
    assert told["sent"] == sum(data.count(b"\r\n\r\n") for data in server.received.values())
    assert told["sent"] / told["seconds"] <= 510
    tokens = set(re.findall(rb"Bearer (\S+)", b"".join(server.received.values())))
    assert len(tokens) == told["sent"]
    assert known.encode() not in tokens


def test_a_flood_that_is_let_in_gives_no_figure() -> None:
    (known,) = mint(1)
    with serving(ANSWER) as server, running(lambda pipe: flood.flood(pipe, server.port, known, 100, 1)) as pipe:
        heard(pipe, 30, "it goes")
        seconds_until(lambda: bool(server.received))
        pipe.send("enough")
        with pytest.raises(BenchError):
            heard(pipe, 30, "it has ended")


def test_every_stranger_is_sent_once_and_counted() -> None:
    count = 3 * strangers.CONNECTIONS * strangers.AHEAD + 7
    with serving(REFUSAL) as server, running(lambda pipe: strangers.flood(pipe, server.port, count)) as pipe:
        assert heard(pipe, 60, "all were answered") == {401: count}
    tokens = re.findall(rb"Bearer (\S+)", b"".join(server.received.values()))
    assert len(tokens) == len(set(tokens)) == count
