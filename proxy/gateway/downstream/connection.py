"""Client connections: the order of what happens on each.

Rules of this module:
1. A connection carries one exchange at a time. Requests that a client pipelines wait, bounded, and are answered in
   their order. A client that ends its connection before its answer is complete has left, and its exchange ends
   (docs/decisions/0009).
2. A connection is closed after any message whose end is in doubt.
3. What happens to requests is the connection's state (``connection_state``), which no flag repeats.
"""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final, cast

from proxy.core.ipc.clock import boottime_ns
from proxy.core.reasons import Reason
from proxy.core.request.client_address import ingress_id
from proxy.gateway.downstream.client_stream import LINGER_NS, SMALL, ClientStream
from proxy.gateway.downstream.connection_state import ConnectionEvent, ConnectionState, after
from proxy.gateway.exchange import Exchange, end_after
from proxy.gateway.http1.body import FramingError
from proxy.gateway.http1.grammar import HEAD_END
from proxy.gateway.http1.websocket import WebSocketBody

if TYPE_CHECKING:
    from proxy.gateway.downstream.listener import Listener

# A call through the module, ``time.x()``, costs twice as much.
_now_ns: Final = boottime_ns
_READ_AHEAD: Final = 64 * 1024
"""Bytes that a client may send ahead of the exchange in progress before it is read no further."""
_TURN: Final = 4
"""Requests of one connection that are answered at once before other connections have their turn."""
_WRITE_HIGH_WATER: Final = 256 * 1024
_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)++")
_NEVER: Final = 2**63

# Looking a member up in its enumeration costs more than the comparison with it.
_IDLE: Final = int(ConnectionState.IDLE)
_HEAD: Final = int(ConnectionState.HEAD)
_HELD: Final = int(ConnectionState.HELD)
_NEXT: Final = int(ConnectionState.NEXT)
_YIELDING: Final = int(ConnectionState.YIELDING)
_CLOSING: Final = int(ConnectionState.CLOSING)
_OPENED: Final = int(ConnectionEvent.OPENED)
_HEAD_BEGUN: Final = int(ConnectionEvent.HEAD_BEGUN)
_STARTED: Final = int(ConnectionEvent.STARTED)
_REFUSED: Final = int(ConnectionEvent.REFUSED)
_ENDED: Final = int(ConnectionEvent.ENDED)
_SETTLED: Final = int(ConnectionEvent.SETTLED)
_HOLD: Final = int(ConnectionEvent.HELD)
_YIELDED: Final = int(ConnectionEvent.YIELDED)
_RESUMED: Final = int(ConnectionEvent.RESUMED)
_LOST: Final = int(ConnectionEvent.LOST)


@lru_cache(maxsize=4096)
def _of_peer(host: str, scheme: bytes) -> tuple[str, bytes]:
    """The address of the peer ``host`` as it is logged, IPv4-mapped as IPv4, and its forwarding header lines."""
    # A peer at a unix socket has no address.
    address = ip_address(host) if host else host
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    peer = str(mapped or address)
    lines = b"\r\nX-Forwarded-For: %s\r\nX-Forwarded-Proto: %s"
    return peer, lines % (peer.encode("ascii"), scheme)


class ClientConnection(ClientStream):
    """One connection from a client."""

    __slots__ = ("announced", "forwarded_lines", "made_ns", "peer", "peer_trusted")

    def __init__(self, listener: Listener, host: str) -> None:
        super().__init__(listener)
        self.announced = False
        """The client has called its request the last one on this connection."""
        self.made_ns = 0
        self.peer, self.forwarded_lines = _of_peer(host, listener.scheme)
        self.peer_trusted = False

    def follow(self) -> None:
        """Take from the listener what a reload may have changed."""
        listener = self.listener
        self.pipeline = listener.pipeline
        self.limits = listener.limits
        self.peer_trusted = listener.trusts(self.peer)

    def address(self, x: Exchange) -> str:
        """The address of the client that sent ``x``: the peer's own, or the one that a trusted peer names."""
        fields = x.forwarded
        return self.peer if fields is None or not self.peer_trusted else self.listener.addresses.of(self.peer, fields)

    def ingress_id(self, x: Exchange) -> str:
        """The request id that a trusted peer gave ``x``; "" for none."""
        fields = x.forwarded
        return "" if fields is None or not self.peer_trusted else ingress_id(fields)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the connection, after its TLS handshake if it has one."""
        # uvloop's transports have the interface and not the base class.
        self.transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER)
        self.follow()
        self.state = after(self.state, _OPENED)
        self.made_ns = now = _now_ns()
        self.deadline = now + self.limits.head_ns
        self.listener.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange and forget the connection."""
        self.transport = None
        self.listener.lost(self)
        self.left()
        self.state = after(self.state, _LOST)
        if self.lingers is not None:
            self.lingers.begin(_now_ns() + LINGER_NS)
        self.listener.left()

    def data_received(self, data: bytes) -> None:
        """Use bytes for heads or the body of the exchange, or keep them for later."""
        state, x = self.state, self.exchange
        if state in (_IDLE, _HEAD) and not self.full:
            if self.buffer:
                # Only the new bytes are searched: a head that comes byte by byte must not be read again for each.
                since = max(0, len(self.buffer) - 3)
                data = self.buffer + data
                self.buffer = b""
                # An empty line in front of the head, cut in two, is skipped like a whole one.
                if state == _HEAD and data[0] != 0x0D and data.find(HEAD_END, since) < 0:
                    self._unfinished(data, since)
                    return
            self._heads(data)
        elif x is not None and not x.body_done:
            self._body(x, data)
        elif not self.closing:
            self._put_by(self.buffer + data)

    def eof_received(self) -> bool:
        """Note the end of the client's sending side; returns whether the connection stays open for an answer."""
        self.half_closed = True
        x, transport = self.exchange, self.transport
        if transport is None or self.closing or (x is not None and x.tunnel):
            return False
        # A TLS transport ends both directions at once.
        waits = self.limits.half_close and transport.can_write_eof()
        if x is None:
            return waits and (self.listener.held or self.state == _YIELDING) and bool(self.buffer)
        if not waits or not x.body_done or x.stream:
            # The client has left. No half-close counts for event streams: silence would hide for long that it is gone.
            broken = x.response_started or transport.get_write_buffer_size() > 0
            self.left()
            if broken:
                self.abort()
            return False
        if not self.buffer:
            x.keep_alive = False
        self.listener.unread.add(self)
        return True

    def pause_writing(self) -> None:
        """Stop reading the backend, because the client does not read fast enough."""
        self.full = True
        self.measure_unread()
        x = self.exchange
        if x is not None and x.upstream_connection is not None:
            x.upstream_connection.read_more(False)

    def resume_writing(self) -> None:
        """Read the backend again, or start waiting requests, because the client has read on."""
        self.full = False
        if self.pace is not None:
            self.pace.left_unread(0, 0)
        x = self.exchange
        if x is None:
            self.go_on()
        elif x.upstream_connection is not None and x.upstream_connection.read_more(True):
            self.touch()

    def switch(self, x: Exchange) -> None:
        """Make the connection a tunnel; bytes that the client has sent ahead belong to it (RFC 6455 section 4.1)."""
        x.body = WebSocketBody()
        x.body_done = False
        self.touch()
        self.resume()
        if self.buffer:
            data, self.buffer = self.buffer, b""
            self._body(x, data)
        if self.listener.closing_websockets:
            self.send_close()

    def send_close(self) -> None:
        """Send both ends of a WebSocket a Close frame "going away" (RFC 6455 section 7.4.1), once a frame ends."""
        x, ours = self.exchange, self.transport
        connection = None if x is None or not x.tunnel else x.upstream_connection
        if x is None or ours is None or connection is None or connection.transport is None:
            return
        theirs, outward, inward = connection.transport, connection.body, x.body
        if isinstance(inward, WebSocketBody) and isinstance(outward, WebSocketBody):
            x.bytes_out += outward.send_close(ours, masked=False)
            inward.send_close(theirs, masked=True)

    def respond(self, x: Exchange, response: bytes) -> None:
        """Write a complete response that the gateway itself gives, and finish ``x``."""
        if self.transport is not None:
            self.transport.write(response)
            x.bytes_out += len(response)
        self.pipeline.complete(x)

    def finished(self, x: Exchange, now_ns: int) -> None:
        """Close after the response to ``x``, complete at ``now_ns``, or start the requests that were pipelined."""
        self.exchange = None
        self.state = after(self.state, _ENDED)
        last = self.half_closed or self.draining
        if not x.keep_alive or (last and not self.buffer):
            self.shut(announced=self.announced and x.body_done and x.bytes_out <= SMALL)
            return
        self.deadline = now_ns + self.limits.keepalive_ns
        # While the client does not read, the next answer would only pile up behind this one.
        self.go_on()

    def end(self) -> None:
        """Close the connection: at once if it is idle, else with the answer of its exchange. Nothing more is begun."""
        x, transport = self.exchange, self.transport
        self.buffer = b""
        self.peer_trusted = False
        if x is not None:
            x.keep_alive = False
        elif transport is not None:
            self.left()
            transport.close()

    @property
    def draining(self) -> bool:
        """Whether the connection closes after its next answer, because its listener drains."""
        return self.listener.draining

    def idle(self) -> bool:
        """Whether nothing has arrived and nothing is unread on a connection without an exchange."""
        state = self.state
        return state in (_IDLE, _HEAD) and not self.buffer and not self.full

    def idle_since(self) -> int:
        """Since when (CLOCK_BOOTTIME, ns) an idle connection has been idle."""
        limits = self.limits
        if self.deadline == self.made_ns + limits.head_ns:
            return self.made_ns
        return self.deadline - limits.keepalive_ns

    def late(self) -> None:
        """Act on the deadline, which has passed."""
        x, transport = self.exchange, self.transport
        if self.reads_on():
            self.touch()
            return
        self.deadline = _NEVER
        if transport is None:
            return
        if x is None and transport.get_write_buffer_size():
            # The client does not read the end of an answer; closing would wait for ever.
            self.abort()
        elif self.state == _CLOSING:
            transport.abort()
        elif x is not None:
            self.pipeline.timed_out(x)
        elif self.buffer:
            self._refuse_head(Reason.REQUEST_TIMEOUT, self.buffer)
        else:
            self.leave()

    def go_on(self) -> None:
        """Start the requests that arrived while none could start, unless the client has answers to read first."""
        state = self.state
        if self.full:
            return
        if state in (_IDLE, _HEAD, _HELD):
            self.resume()
            if self.buffer:
                data, self.buffer = self.buffer, b""
                self._heads(data)
        elif state in (_NEXT, _YIELDING):
            # The requests in the buffer start without this call, and may need more bytes.
            self.resume()

    def _heads(self, data: bytes) -> None:
        """Start one request after the other out of ``data`` while each is answered at once."""
        if self.listener.held:
            # An empty line in front of a head leaves its time running.
            if data[0] != 0x0D or self.state != _HEAD:
                self.state = after(self.state, _HOLD)
            self._put_by(data)
            return
        for _ in range(_TURN):
            data = self._head(data)
            if self.state == _NEXT and not self.full:
                data, self.buffer = self.buffer + data, b""
            if not data:
                break
        else:
            # Nothing is started before other connections have had their turn.
            self.state = after(self.state, _YIELDED)
            self._put_by(data)
            asyncio.get_running_loop().call_soon(self._in_turn)
            return
        self.state = after(self.state, _SETTLED)

    def _in_turn(self) -> None:
        self.state = after(self.state, _RESUMED)
        self.go_on()

    def _put_by(self, data: bytes) -> None:
        """Keep bytes that cannot be used yet, and read no more while they are many."""
        self.buffer = data
        if len(data) > _READ_AHEAD:
            self.pause()

    def _head(self, data: bytes) -> bytes:
        """Start the request that ``data`` begins with, or skip empty lines; returns the bytes behind those."""
        listener, limits = self.listener, self.limits
        head, end, rest = data.partition(HEAD_END)
        if not end or data[0] == 0x0D:
            return self._no_head(data)
        if len(head) + len(HEAD_END) > limits.max_head:
            self._unfinished(data, 0)
            return b""
        now = _now_ns()
        x = Exchange(self, now, listener.next_id())
        self.exchange = x
        self.state = after(self.state, _STARTED)
        if self.pace is not None:
            self.pace.left_unread(0, 0)
        self.deadline = now + limits.answer_ns
        reason = listener.parser.parse(x, head)
        if reason is Reason.REQUEST_MALFORMED:
            # Which of two faults counts must not depend on how many segments the head came in.
            reason = listener.refusal(head, 0) or reason
        if rest:
            if reason is None and x.body is not None:
                self._body(x, rest)
                if x.client is None:  # the exchange has ended
                    return b""
            else:
                self.buffer = rest
        if reason is not None:
            # The end of this message is in doubt, so nothing after it is read.
            end_after(x, head)
            self.pipeline.refuse_head(x, reason, head)
            return b""
        if not x.keep_alive:
            self.announced = True
        elif listener.draining or (self.half_closed and not self.buffer):
            x.keep_alive = False
        if not x.body_done and not x.expects_continue:
            self.deadline = now + limits.body_idle_ns
        self.pipeline.begin(x)
        return b""

    def _body(self, x: Exchange, data: bytes) -> None:
        body, limits = x.body, self.limits
        assert body is not None
        try:
            pieces, rest = body.feed(data)
        except FramingError:
            self._body_refused(x, Reason.REQUEST_MALFORMED)
            return
        x.bytes_in += sum(map(len, pieces))
        if x.tunnel:
            if not self.full:
                # A client that does not read gets no more time for sending.
                self.touch()
        elif body.done:
            x.body_done = True
            if self.pace is not None:
                self.pace.body_ended()
            self.buffer = rest
            self.touch()
        else:
            self.body_moved(x)
        if limits.max_body is not None and x.bytes_in > limits.max_body and not x.tunnel:
            self._body_refused(x, Reason.BODY_TOO_LARGE)
            return
        self.pipeline.body(x, pieces)
        if x.upstream_connection is None and x.bytes_in > _READ_AHEAD and not x.body_done:
            # There is no connection to send it on yet. The forward phase reads on once it has one.
            self.pause()

    def _body_refused(self, x: Exchange, reason: Reason) -> None:
        x.keep_alive = False
        x.body_done = False
        if x.response_started:
            self.abort()
        else:
            self.pipeline.refuse(x, reason)

    def _no_head(self, data: bytes) -> bytes:
        """Skip an empty line, or keep a head that is not complete; returns the bytes behind an empty line."""
        empty = _EMPTY_LINES.match(data)
        if empty is not None:
            # RFC 9112 section 2.2: empty lines before the request line are ignored. The time for a head runs on.
            return data[empty.end() :]
        self._unfinished(data, 0)
        return b""

    def _unfinished(self, data: bytes, since: int) -> None:
        """Keep part of a head for later, unless it cannot become valid. Bytes before ``since`` have been searched."""
        reason = self.listener.refusal(data, since)
        if reason is None and data.find(HEAD_END, since) >= 0:
            reason = Reason.REQUEST_MALFORMED
        if reason is not None:
            self._refuse_head(reason, data)
        elif self.half_closed:
            self.shut()
        else:
            # The time for a head runs from its first byte; what is left of the time between requests does not count.
            if self.state != _HEAD:
                self.deadline = _now_ns() + self.limits.head_ns
            self.state = after(self.state, _HEAD_BEGUN)
            self.buffer = data

    def _refuse_head(self, reason: Reason, data: bytes) -> None:
        x = Exchange(self, _now_ns(), self.listener.next_id())
        end_after(x, data)
        self.exchange = x
        self.state = after(self.state, _REFUSED)
        self.pipeline.refuse_head(x, reason, data)
