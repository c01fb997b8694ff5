"""A listener: its open client connections, the limits and objects they share, the deadline sweep, reload and drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from heapq import nsmallest
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Protocol

from proxy.core.ipc.clock import boottime_ns
from proxy.core.networks import Network, is_within
from proxy.core.reasons import Reason
from proxy.core.request.client_address import ClientAddresses
from proxy.gateway.downstream.client_stream import ClientStream
from proxy.gateway.downstream.connection import ClientConnection
from proxy.gateway.downstream.disconnect import has_left
from proxy.gateway.downstream.limits import DownstreamLimits
from proxy.gateway.downstream.lingering_close import Linger
from proxy.gateway.http1.partial_head import request_refusal
from proxy.gateway.http1.websocket import WebSocketBody
from proxy.gateway.phases.parse import HeadParser

if TYPE_CHECKING:
    from proxy.gateway.pipeline import Decider


class Other(Protocol):
    """A connection without requests: its PROXY header is being read, or it lingers after its last answer."""

    deadline: int

    def late(self) -> None:
        """End the connection; ``deadline``, in nanoseconds of CLOCK_BOOTTIME, has passed."""
        ...


_JUDGED: Final = 4096
"""Addresses of peers of which it is remembered whether they are trusted."""
_LOW: Final = [b"%03x" % low for low in range(0x1000)]
"""The last digits of request ids, because formatting a number costs more than looking it up."""


class Listener:
    """The connections of one listener, and the objects and limits that they share.

    ``boot`` begins every request id of this process; ``trusted`` are the networks whose forwarding headers are
    believed; with ``local_trusted`` that of peers at a unix socket, which have no address, is believed too.
    """

    def __init__(
        self,
        *,
        pipeline: Decider,
        parser: HeadParser,
        trusted: Sequence[Network],
        limits: DownstreamLimits,
        boot: bytes,
        tls: bool,
        local_trusted: bool = False,
    ) -> None:
        self.pipeline = pipeline
        self.parser = parser
        self.trusted = tuple(trusted)
        self.addresses = ClientAddresses(self.trusted)
        self.local_trusted = local_trusted
        self._judged: dict[str, bool] = {}
        self.limits = limits
        self.scheme = b"https" if tls else b"http"
        self.connections: set[ClientConnection] = set()
        self.unread: set[ClientStream] = set()
        """Connections that the event loop does not read, so that it does not see their end."""
        self.others: set[Other] = set()
        self.arriving = 0
        self._boot = boot
        self._number = 0
        self._id_head = boot + b"00000"
        self.held = False
        self.draining = False
        self.closing_websockets = False
        self.empty = asyncio.Event()
        self.waiting: set[Callable[[], None]] = set()

    @property
    def open(self) -> int:
        """Number of connections that take a descriptor: open ones, arriving ones, and lingering ones."""
        return len(self.connections) + self.arriving + len(self.others)

    def connection(self, host: str) -> ClientConnection:
        """A protocol object for a new connection from the address ``host``, "" at a unix socket."""
        return ClientConnection(self, host)

    def next_id(self) -> bytes:
        """The id of the next request: the common beginning and a number, in hexadecimal."""
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        low = number & 0xFFF
        if not low:
            self._id_head = b"%s%05x" % (self._boot, number >> 12)
        return self._id_head + _LOW[low]

    def refusal(self, data: bytes, since: int) -> Reason | None:
        """Why ``data``, part of a head that was searched up to ``since``, cannot become valid; None if it can."""
        limits = self.limits
        return request_refusal(data, since, max_line=limits.max_request_line, max_head=limits.max_head)

    def trusts(self, peer: str) -> bool:
        """Whether forwarding headers of the peer at this address ("" at a unix socket) are believed."""
        if not peer:
            return self.local_trusted
        if not self.trusted:
            return False
        judged = self._judged
        if (known := judged.get(peer)) is None:
            if len(judged) >= _JUDGED:
                judged.clear()
            known = judged[peer] = is_within(ip_address(peer), self.trusted)
        return known

    def opened(self, connection: ClientConnection) -> None:
        """Count a connection whose handshake is done."""
        self.arriving -= 1
        self.connections.add(connection)
        self.pipeline.count_connection(1)

    def lost(self, connection: ClientConnection) -> None:
        """Forget a connection that was opened."""
        self.connections.discard(connection)
        self.unread.discard(connection)
        self.pipeline.count_connection(-1)

    def left(self) -> None:
        """Note that a connection was closed, or that an arriving one never opened."""
        if self.draining and not self.open:
            self.empty.set()
        if self.waiting:
            self._wake()

    def linger(self, transport: asyncio.Transport, deadline: int) -> Linger | None:
        """Keep the connection of a TLS transport open that is about to be closed; None where that is not possible."""
        try:
            linger = Linger(transport, deadline, self._lingered)
        except OSError:
            return None
        self.others.add(linger)
        return linger

    def idle_longest(self, most: int, *, seconds: float) -> list[ClientConnection]:
        """At most ``most`` of the connections that have been idle for ``seconds``, the longest idle first."""
        latest = boottime_ns() - int(seconds * 1e9)
        idle = [(since, id(c), c) for c in self.connections if c.idle() and (since := c.idle_since()) < latest]
        return [connection for _, _, connection in nsmallest(most, idle)]

    def sweep(self, now_ns: int) -> None:
        """End connections that have passed their deadline, and those whose client has left unnoticed."""
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
        """Take over the settings of ``other``, also for open connections; these and their exchanges stay."""
        self.pipeline = other.pipeline
        self.parser = other.parser
        self.trusted = other.trusted
        self.addresses = other.addresses
        self.local_trusted = other.local_trusted
        self._judged.clear()
        self.limits = other.limits
        self.scheme = other.scheme
        for connection in self.connections:
            connection.follow()

    def end_all(self) -> None:
        """End every connection, because its peer may not be accepted any more."""
        for connection in list(self.connections):
            connection.end()

    def hold(self) -> None:
        """Start no request until ``release``; requests that arrive meanwhile wait."""
        self.held = True

    def release(self) -> None:
        """Start requests again, those that waited first."""
        self.held = False
        for connection in list(self.connections):
            connection.go_on()

    def leave(self) -> None:
        """Close each connection after its next answer."""
        self.draining = True

    def drain(self) -> None:
        """Close idle connections now and others after their exchange; send WebSockets a Close (RFC 6455)."""
        self.draining = self.closing_websockets = True
        if self.open:
            self.empty.clear()
        else:
            self.empty.set()
        for connection in list(self.connections):
            if connection.exchange is None and not connection.buffer:
                connection.shut()
            else:
                connection.send_close()

    def hang_up(self) -> None:
        """End the WebSockets that have been sent a Close."""
        for connection in list(self.connections):
            if _close_sent(connection):
                assert connection.exchange is not None
                self.pipeline.hang_up(connection.exchange)

    def _gone(self, connection: ClientStream) -> bool:
        """Whether the client of an exchange has left while the gateway does not read its connection."""
        transport = connection.transport
        if connection.exchange is None or transport is None:
            return False
        return has_left(transport, half_close=self.limits.half_close and transport.can_write_eof())

    def _lingered(self, linger: Linger) -> None:
        self.others.discard(linger)
        self.left()

    def _wake(self) -> None:
        """Let acceptors that paused check whether there is room again."""
        waiting, self.waiting = self.waiting, set()
        for check in waiting:
            check()


def _close_sent(client: ClientConnection) -> bool:
    """Whether the client of a WebSocket has been sent a Close frame."""
    x = client.exchange
    connection = None if x is None or not x.tunnel else x.upstream_connection
    return connection is not None and isinstance(connection.body, WebSocketBody) and connection.body.close_sent
