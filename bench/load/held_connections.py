"""Many held connections: idle after one request, or slow with a head or a body that never ends.

They run in a process of their own (``testbed.beside``), in one thread with epoll. The process sends its state when all
are connected, and in reply to any message; a connection that the gateway closes is reopened at once.
"""

from __future__ import annotations

import resource
import select
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.connection import Connection
from typing import Final

from bench.testbed import LOOPBACK

_TICK_SECONDS: Final = 0.01
_SOURCES: Final = 16
"""Number of source addresses in 127.0.0.0/8, so that the ports of one are never used up."""
_BIND_ADDRESS_NO_PORT: Final = 24
"""IP_BIND_ADDRESS_NO_PORT of ip(7): the port is chosen at connect, and may serve several destinations."""
_BATCH: Final = 100


class Manner(StrEnum):
    """How a connection behaves once it is open."""

    IDLE = "idle"
    """Sends one request, reads the answer, and stays silent."""
    SLOW = "slow"
    """Sends the beginning of a request, and then one byte at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Connections of one manner: how many, and what they send first, using ``openings`` in turn."""

    manner: Manner
    number: int
    openings: Sequence[bytes]
    pace: float = 1.0
    """Seconds between two bytes of a slow connection."""


class _Client:
    __slots__ = ("answered", "group", "opening", "socket")

    def __init__(self, group: Group, opening: bytes, connected: socket.socket) -> None:
        self.group = group
        self.opening = opening
        self.socket = connected
        self.answered = False


class _Connections:
    def __init__(self, port: int, groups: Sequence[Group]) -> None:
        self._port = port
        self._groups = groups
        self._epoll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._turns: list[deque[_Client]] = [deque() for _ in groups]
        self._owed = [0.0] * len(groups)
        self._opened = 0
        self.answered = 0
        self.cut_off = 0

    def open(self) -> None:
        """Connect all clients, in batches that do not overflow the listener's queue."""
        for at, group in enumerate(self._groups):
            for number in range(group.number):
                self._turns[at].append(self._connect(group, group.openings[number % len(group.openings)]))
                if number % _BATCH == 0:
                    self.listen(0.0)
        while self.answered < sum(group.number for group in self._groups if group.manner is Manner.IDLE):
            self.listen(1.0)

    def close(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            client.socket.close()
        self._epoll.close()

    def listen(self, seconds: float) -> None:
        """Handle what the gateway has sent or closed, for at most this long."""
        for descriptor, _ in self._epoll.poll(seconds, 1000):
            client = self._clients[descriptor]
            try:
                data = client.socket.recv(65536)
            except OSError:
                data = b""
            if data and client.group.manner is Manner.IDLE:
                # Answers are small and arrive whole; a second one would be unsolicited.
                if client.answered or not data.startswith(b"HTTP/1.1 200 "):
                    raise ValueError("an idle client got an unsolicited answer, or a refusal")
                client.answered = True
                self.answered += 1
            elif not data or client.group.manner is Manner.SLOW:
                self._reconnect(client)

    def trickle(self, elapsed: float) -> None:
        """Send the bytes that slow clients owe after ``elapsed`` seconds, in turn."""
        for at, group in enumerate(self._groups):
            if group.manner is not Manner.SLOW:
                continue
            self._owed[at] += elapsed * group.number / group.pace
            turn = self._turns[at]
            while self._owed[at] >= 1:
                self._owed[at] -= 1
                client = turn.popleft()
                turn.append(client)
                try:
                    client.socket.send(b"a")
                except OSError:
                    self._reconnect(client)

    def _connect(self, group: Group, opening: bytes) -> _Client:
        self._opened += 1
        connected = socket.socket()
        connected.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        connected.bind((f"127.0.0.{2 + self._opened % _SOURCES}", 0))
        connected.connect((LOOPBACK, self._port))
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.sendall(opening)
        connected.setblocking(False)
        client = _Client(group, opening, connected)
        self._clients[connected.fileno()] = client
        self._epoll.register(connected.fileno(), select.EPOLLIN)
        return client

    def _reconnect(self, client: _Client) -> None:
        self.cut_off += 1
        self.answered -= client.answered
        del self._clients[client.socket.fileno()]
        client.socket.close()
        fresh = self._connect(client.group, client.opening)
        client.socket, client.answered = fresh.socket, False
        self._clients[client.socket.fileno()] = client


def hold_connections(pipe: Connection, port: int, groups: Sequence[Group]) -> None:
    """Hold connections to ``port`` until the pipe ends. Sends the state once all are open, and in reply to messages."""
    with closing(_Connections(port, groups)) as clients:
        clients.open()
        pipe.send(_state(clients))
        _keep(pipe, clients)


def _keep(pipe: Connection, clients: _Connections) -> None:
    last = time.monotonic()
    while True:
        if pipe.poll(0):
            try:
                pipe.recv()
            except EOFError:
                return
            pipe.send(_state(clients))
        clients.listen(_TICK_SECONDS)
        now = time.monotonic()
        clients.trickle(now - last)
        last = now


def _state(clients: _Connections) -> Mapping[str, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "answered": clients.answered,
        "cut_off": clients.cut_off,
        "cpu": used.ru_utime + used.ru_stime,
    }
