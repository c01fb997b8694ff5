"""Many connections that do little: idle after one request, or slow with a head or a body that never ends.

A crowd lives in a process of its own (``stand.beside``), which one thread serves with epoll. It says when it stands,
and on being asked how it fares; whoever the gateway shuts out comes back at once.
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
"""Addresses of 127.0.0.0/8 that clients come from, so that no port is ever short."""
_BIND_ADDRESS_NO_PORT: Final = 24
"""IP_BIND_ADDRESS_NO_PORT of ip(7): the port is chosen at connect, and may serve several destinations."""
_AT_ONCE: Final = 100


class Manner(StrEnum):
    """How a connection behaves once it is open."""

    IDLE = "idle"
    """Makes one request, reads the answer, and keeps silent."""
    SLOW = "slow"
    """Sends the beginning of a request, and of what follows one byte now and then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Connections of one manner: how many, and what they send, one of ``openings`` after the other."""

    manner: Manner
    number: int
    openings: Sequence[bytes]
    pace: float = 1.0
    """Seconds between two bytes of a slow one."""


class _Client:
    __slots__ = ("answered", "group", "opening", "socket")

    def __init__(self, group: Group, opening: bytes, connected: socket.socket) -> None:
        self.group = group
        self.opening = opening
        self.socket = connected
        self.answered = False


class _Crowd:
    def __init__(self, port: int, groups: Sequence[Group]) -> None:
        self._port = port
        self._groups = groups
        self._epoll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._turns: list[deque[_Client]] = [deque() for _ in groups]
        self._owed = [0.0] * len(groups)
        self._opened = 0
        self.answered = 0
        self.shut_out = 0

    def open(self) -> None:
        """Connect everyone, not so many at a time that the listener's queue overflows."""
        for at, group in enumerate(self._groups):
            for number in range(group.number):
                self._turns[at].append(self._connect(group, group.openings[number % len(group.openings)]))
                if number % _AT_ONCE == 0:
                    self.listen(0.0)
        while self.answered < sum(group.number for group in self._groups if group.manner is Manner.IDLE):
            self.listen(1.0)

    def close(self) -> None:
        """Everyone leaves."""
        for client in self._clients.values():
            client.socket.close()
        self._epoll.close()

    def listen(self, seconds: float) -> None:
        """Take note of what the gateway has sent or ended, for at most so long."""
        for descriptor, _ in self._epoll.poll(seconds, 1000):
            client = self._clients[descriptor]
            try:
                data = client.socket.recv(65536)
            except OSError:
                data = b""
            if data and client.group.manner is Manner.IDLE:
                # Answers are small and come whole; a second one would be none that was asked for.
                if client.answered or not data.startswith(b"HTTP/1.1 200 "):
                    raise ValueError("an idle client got an answer that it did not ask for, or a refusal")
                client.answered = True
                self.answered += 1
            elif not data or client.group.manner is Manner.SLOW:
                self._again(client)

    def trickle(self, elapsed: float) -> None:
        """Let the slow ones send what is due after ``elapsed`` seconds, in turn."""
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
                    self._again(client)

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

    def _again(self, client: _Client) -> None:
        self.shut_out += 1
        self.answered -= client.answered
        del self._clients[client.socket.fileno()]
        client.socket.close()
        fresh = self._connect(client.group, client.opening)
        client.socket, client.answered = fresh.socket, False
        self._clients[client.socket.fileno()] = client


def crowd(pipe: Connection, port: int, groups: Sequence[Group]) -> None:
    """Be the clients of ``port`` until the pipe ends. Says ``standing`` once all are there, and answers any message."""
    with closing(_Crowd(port, groups)) as everyone:
        everyone.open()
        pipe.send(_state(everyone))
        _keep(pipe, everyone)


def _keep(pipe: Connection, everyone: _Crowd) -> None:
    last = time.monotonic()
    while True:
        if pipe.poll(0):
            try:
                pipe.recv()
            except EOFError:
                return
            pipe.send(_state(everyone))
        everyone.listen(_TICK_SECONDS)
        now = time.monotonic()
        everyone.trickle(now - last)
        last = now


def _state(everyone: _Crowd) -> Mapping[str, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "answered": everyone.answered,
        "shut_out": everyone.shut_out,
        "cpu": used.ru_utime + used.ru_stime,
    }
