"""What the connections of one listener share: limits, deadlines, and who is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from heapq import nsmallest
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Final, Protocol

from proxy.core.reasons import Reason
from proxy.gateway.downstream.connection import ClientConnection
from proxy.gateway.downstream.disconnect import has_left
from proxy.gateway.downstream.lingering_close import Linger
from proxy.gateway.http1.partial_head import request_refusal
from proxy.gateway.http1.websocket import WebSocketBody
from proxy.gateway.phases.parse import HeadParser

if TYPE_CHECKING:
    from proxy.gateway.pipeline import Decider


class Other(Protocol):
    """A connection that no request can come on: it has yet to be introduced, or has had its answer."""

    deadline: int

    def late(self) -> None:
        """The deadline, in nanoseconds of CLOCK_MONOTONIC, has passed."""
        ...


_LOW: Final = [b"%03x" % low for low in range(0x1000)]
"""The last digits of request ids, for formatting a number costs more than looking it up."""


class Listener:
    """What the connections of one listener share. Times in seconds, sizes in bytes.

    ``boot`` begins every request id of this process; ``trusted`` are the networks whose forwarding headers are
    believed. ``client_rate`` is how many bytes a second a client must send of a body, or take of an answer, on average;
    0 is any. ``half_close`` says that a client which ends its sending side after its request waits for the answer all
    the same.
    """

    def __init__(
        self,
        *,
        pipeline: Decider,
        parser: HeadParser,
        trusted: Sequence[IPv4Network | IPv6Network],
        boot: bytes,
        max_head: int,
        max_request_line: int,
        max_body: int | None,
        head_seconds: float,
        body_idle_seconds: float,
        keepalive_seconds: float,
        answer_seconds: float,
        tunnel_seconds: float,
        stream_seconds: float,
        tls: bool,
        client_rate: int = 0,
        half_close: bool = False,
    ) -> None:
        self.pipeline = pipeline
        self.parser = parser
        self.trusted = tuple(trusted)
        self.max_head = max_head
        self.max_request_line = max_request_line
        self.max_body = max_body
        self.head_ns = int(head_seconds * 1e9)
        self.body_idle_ns = int(body_idle_seconds * 1e9)
        self.keepalive_ns = int(keepalive_seconds * 1e9)
        self.answer_ns = int(answer_seconds * 1e9)
        self.tunnel_ns = int(tunnel_seconds * 1e9)
        self.stream_ns = int(stream_seconds * 1e9)
        self.scheme = b"https" if tls else b"http"
        self.client_rate = client_rate
        self.half_close = half_close
        self.connections: set[ClientConnection] = set()
        self.unread: set[ClientConnection] = set()
        """Those that the loop does not read, and so does not see the end of."""
        self.others: set[Other] = set()
        self.arriving = 0
        self._boot = boot
        self._number = 0
        self._id_head = boot + b"00000"
        self.held = False
        self.draining = False
        self.parting = False
        self.empty = asyncio.Event()
        self.waiting: set[Callable[[], None]] = set()

    @property
    def open(self) -> int:
        """How many connections take a descriptor: those that are served, have yet to begin, or linger."""
        return len(self.connections) + self.arriving + len(self.others)

    def connection(self, host: str) -> ClientConnection:
        """The protocol of a new connection, whose client is at the address ``host``."""
        return ClientConnection(self, host)

    def next_id(self) -> bytes:
        """The id of the next request: what begins them all and a number, in hexadecimal."""
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        low = number & 0xFFF
        if not low:
            self._id_head = b"%s%05x" % (self._boot, number >> 12)
        return self._id_head + _LOW[low]

    def refusal(self, data: bytes, since: int) -> Reason | None:
        """Why ``data``, the beginning of a request searched up to ``since``, cannot become a head; None if it can."""
        return request_refusal(data, since, max_line=self.max_request_line, max_head=self.max_head)

    def trusts(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether forwarding headers of this peer are believed."""
        return is_within(address, self.trusted)

    def left(self) -> None:
        """A connection has gone, or one that was arriving never came."""
        if self.draining and not self.open:
            self.empty.set()
        if self.waiting:
            self._wake()

    def linger(self, transport: asyncio.Transport, deadline: int) -> Linger | None:
        """Keep the connection of a TLS transport that is about to be closed; None where that is not possible."""
        try:
            linger = Linger(transport, deadline, self._lingered)
        except OSError:
            return None
        self.others.add(linger)
        return linger

    def idle_longest(self, most: int, *, seconds: float) -> list[ClientConnection]:
        """At most ``most`` of the connections that nothing has happened on for ``seconds``, the longest idle first."""
        latest = time.monotonic_ns() - int(seconds * 1e9)
        idle = [
            (since, id(c), c)
            for c in self.connections
            if c.exchange is None
            and not c.buffer
            and not c.closing
            and not c.full
            and (since := c.idle_since()) < latest
        ]
        return [connection for _, _, connection in nsmallest(most, idle)]

    def sweep(self, now_ns: int) -> None:
        """End what has passed its deadline, and what has left unnoticed."""
        for connection in [each for each in self.unread if self._gone(each)]:
            connection.left()
            connection.abort()
        late = [connection for connection in self.connections if connection.deadline < now_ns]
        for connection in late:
            connection.late()
        for other in [each for each in self.others if each.deadline < now_ns]:
            other.late()
        self._wake()

    def follow(self, other: Listener) -> None:
        """Treat connections, those of now too, as ``other`` would; who is there, and what goes on, stays."""
        self.pipeline = other.pipeline
        self.parser = other.parser
        self.trusted = other.trusted
        self.max_head = other.max_head
        self.max_request_line = other.max_request_line
        self.max_body = other.max_body
        self.head_ns = other.head_ns
        self.body_idle_ns = other.body_idle_ns
        self.keepalive_ns = other.keepalive_ns
        self.answer_ns = other.answer_ns
        self.tunnel_ns = other.tunnel_ns
        self.stream_ns = other.stream_ns
        self.scheme = other.scheme
        self.client_rate = other.client_rate
        self.half_close = other.half_close
        for connection in self.connections:
            connection.peer_trusted = self.trusts(ip_address(connection.peer))

    def hold(self) -> None:
        """Begin no request until ``release``; what arrives meanwhile waits."""
        self.held = True

    def release(self) -> None:
        """Begin requests again, those that waited first."""
        self.held = False
        for connection in list(self.connections):
            if connection.exchange is None and not connection.closing and not connection.full:
                connection.go_on()

    def leave(self) -> None:
        """Let every answer close its connection from now on."""
        self.draining = True

    def drain(self) -> None:
        """Close idle connections now, and the others after the exchange they carry; WebSockets are told (RFC 6455)."""
        self.draining = self.parting = True
        if self.open:
            self.empty.clear()
        else:
            self.empty.set()
        for connection in list(self.connections):
            if connection.exchange is None and not connection.buffer:
                connection.shut()
            else:
                connection.part()

    def hang_up(self) -> None:
        """End the WebSockets that have been told."""
        for connection in list(self.connections):
            if _told(connection):
                assert connection.exchange is not None
                self.pipeline.hang_up(connection.exchange)

    def _gone(self, connection: ClientConnection) -> bool:
        """Whether the client of an exchange has left while its connection is not read."""
        transport = connection.transport
        if connection.exchange is None or transport is None:
            return False
        return has_left(transport, half_close=self.half_close and transport.can_write_eof())

    def _lingered(self, linger: Linger) -> None:
        self.others.discard(linger)
        self.left()

    def _wake(self) -> None:
        """Let those who wait for room look whether there is any."""
        waiting, self.waiting = self.waiting, set()
        for look in waiting:
            look()


def _told(client: ClientConnection) -> bool:
    """Whether the client of a WebSocket has been told that it ends."""
    x = client.exchange
    connection = None if x is None or not x.tunnel else x.upstream_connection
    return connection is not None and isinstance(connection.body, WebSocketBody) and connection.body.said


def is_within(address: IPv4Address | IPv6Address, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    """Whether an address is in one of ``networks``; an IPv4-mapped one counts as IPv4 (RFC 4291 section 2.5.5.2)."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks)
