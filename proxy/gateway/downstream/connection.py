"""The listen phase: client connections, and the order of what happens on each.

Rules of this module:
1. A connection carries one exchange at a time; what a client sends ahead waits, bounded, and is answered in its order.
   A client that ends its connection before its answer has left, and takes the exchange along (docs/decisions/0009).
2. A connection is closed after any message whose end is in doubt. Closing lets the client read the answer: the sending
   side is shut first, what still arrives is thrown away, and a deadline ends it.
3. Deadlines are looked at by one coarse sweep per worker; there is no timer per connection.
"""

from __future__ import annotations

import asyncio
import re
import time
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final, cast

from proxy.core.reasons import Reason
from proxy.gateway.downstream.disconnect import break_off
from proxy.gateway.downstream.lingering_close import Linger
from proxy.gateway.downstream.min_rate import Pace, unread
from proxy.gateway.exchange import Exchange, end_after
from proxy.gateway.http1.body import FramingError
from proxy.gateway.http1.grammar import HEAD_END
from proxy.gateway.http1.websocket import WebSocketBody

if TYPE_CHECKING:
    from proxy.gateway.downstream.listener import Listener

# A call through the module, ``time.x()``, costs twice as much.
_now_ns: Final = time.monotonic_ns
_READ_AHEAD: Final = 64 * 1024
"""Bytes that a client may send ahead of the exchange in progress before it is read no further."""
_TURN: Final = 4
"""Requests of one connection that are answered at once before others have their turn."""
_WRITE_HIGH_WATER: Final = 256 * 1024
_LINGER_NS: Final = 2_000_000_000
_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)++")
_NEVER: Final = 2**63


class ClientConnection(asyncio.Protocol):
    """One connection from a client."""

    __slots__ = (
        "buffer",
        "busy",
        "closing",
        "deadline",
        "exchange",
        "forwarded_lines",
        "full",
        "half_closed",
        "head_begun",
        "lingers",
        "listener",
        "made_ns",
        "pace",
        "paused",
        "peer",
        "peer_trusted",
        "reading_head",
        "transport",
    )

    def __init__(self, listener: Listener, host: str) -> None:
        self.listener = listener
        self.transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None
        self.buffer = b""
        self.busy = False
        self.closing = False
        self.full = False
        self.half_closed = False
        self.paused = False
        self.reading_head = False
        self.head_begun = False
        self.deadline = _NEVER
        self.made_ns = 0
        self.pace: Pace | None = None
        self.lingers: Linger | None = None
        address = ip_address(host)
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        self.peer = str(mapped or address)
        self.peer_trusted = listener.trusts(address)
        lines = b"\r\nX-Forwarded-For: %s\r\nX-Forwarded-Proto: %s"
        self.forwarded_lines = lines % (self.peer.encode("ascii"), listener.scheme)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        listener = self.listener
        # uvloop's transports have the interface and not the base class.
        self.transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER)
        self.made_ns = now = _now_ns()
        self.deadline = now + listener.head_ns
        listener.arriving -= 1
        listener.connections.add(self)
        listener.pipeline.recorder.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        listener = self.listener
        listener.connections.discard(self)
        listener.unread.discard(self)
        listener.pipeline.recorder.connections -= 1
        self.left()
        if self.lingers is not None:
            self.lingers.begin(_now_ns() + _LINGER_NS)
        listener.left()

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        x = self.exchange
        if x is None and not self.full and not self.busy:
            if self.buffer:
                # Only what is new is searched: a head that comes byte by byte must not be read anew for each.
                since = max(0, len(self.buffer) - 3)
                data = self.buffer + data
                self.buffer = b""
                # An empty line in front of the head, cut in two, is skipped like a whole one.
                if self.reading_head and data[0] != 0x0D and data.find(HEAD_END, since) < 0:
                    self._unfinished(data, since)
                    return
            self._heads(data)
        elif x is not None and not x.body_done:
            self._body(x, data)
        else:
            self._put_by(self.buffer + data)

    def eof_received(self) -> bool:
        self.half_closed = True
        x, transport = self.exchange, self.transport
        if transport is None or self.closing or (x is not None and x.tunnel):
            return False
        # A TLS transport ends both directions at once.
        waits = self.listener.half_close and transport.can_write_eof()
        if x is None:
            return waits and (self.listener.held or self.busy) and bool(self.buffer)
        if not waits or not x.body_done or x.stream:
            # It has left. Nobody half-closes an event stream: silence would hide for long that the reader is gone.
            broken = x.response_started or transport.get_write_buffer_size() > 0
            self.left()
            if broken:
                self.abort()
            return False
        if not self.buffer:
            x.keep_alive = False
        self.listener.unread.add(self)
        return True

    def left(self) -> None:
        """The client has left: what it waited for ends at once, not only when the loop has closed its connection."""
        self.closing = True
        x, self.exchange = self.exchange, None
        if x is not None:
            self.listener.pipeline.left(x)

    def pause_writing(self) -> None:
        self.full = True
        self._unread()
        x = self.exchange
        if x is not None and x.upstream_connection is not None and x.upstream_connection.transport is not None:
            x.upstream_connection.transport.pause_reading()

    def resume_writing(self) -> None:
        self.full = False
        if self.pace is not None:
            self.pace.left_unread(0, 0)
        x = self.exchange
        if x is None:
            if not self.closing:
                self.go_on()
        elif x.upstream_connection is not None and x.upstream_connection.transport is not None:
            x.upstream_connection.transport.resume_reading()
            self.touch()

    def read_more(self, more: bool) -> None:
        """Read the client, or (False) leave its bytes in the kernel for a while."""
        if more:
            self._resume()
        else:
            self._pause()

    def touch(self) -> None:
        """Something moved: the exchange gets its whole time again."""
        x, listener = self.exchange, self.listener
        given = listener.answer_ns
        if x is not None and (x.tunnel or x.stream) and not self.full:
            # Both ends may be silent for long; a client that does not read may not.
            given = listener.tunnel_ns if x.tunnel else listener.stream_ns
        elif x is not None and x.upstream is not None:
            given = x.upstream.response_ns
        self.deadline = _now_ns() + given

    def switch(self, x: Exchange) -> None:
        """The connection is a tunnel from now on; what the client has sent ahead is the tunnel's (RFC 6455, 4.1)."""
        x.body = WebSocketBody()
        x.body_done = False
        self.touch()
        self._resume()
        if self.buffer:
            data, self.buffer = self.buffer, b""
            self._body(x, data)
        if self.listener.parting:
            self.part()

    def part(self) -> None:
        """Say to both ends of a WebSocket that the gateway goes away (RFC 6455 section 7.4.1), once a frame ends."""
        x, ours = self.exchange, self.transport
        connection = None if x is None or not x.tunnel else x.upstream_connection
        if x is None or ours is None or connection is None or connection.transport is None:
            return
        theirs, outward, inward = connection.transport, connection.body, x.body
        if isinstance(inward, WebSocketBody) and isinstance(outward, WebSocketBody):
            x.bytes_out += outward.part(ours, masked=False)
            inward.part(theirs, masked=True)

    def respond(self, x: Exchange, response: bytes) -> None:
        """Write a whole response of the gateway's own and finish ``x``."""
        if self.transport is not None:
            self.transport.write(response)
            x.bytes_out += len(response)
        self.listener.pipeline.complete(x)

    def finished(self, x: Exchange, now_ns: int) -> None:
        """The response to ``x`` was complete at ``now_ns``: close, or go on with what the client sent ahead."""
        self.exchange = None
        last = self.half_closed or self.listener.draining
        if not x.keep_alive or self.closing or (last and not self.buffer):
            self.shut()
            return
        self.deadline = now_ns + self.listener.keepalive_ns
        if not self.full:
            # Otherwise the next answer would only gather behind this one, with nothing to hold it back.
            self.go_on()

    def shut(self) -> None:
        """Close after what has been written is read, without a reset that could destroy it."""
        transport = self.transport
        if transport is None or self.closing:
            return
        self.closing = True
        self.buffer = b""
        if self.half_closed:
            transport.close()
            return
        self.deadline = _now_ns() + _LINGER_NS
        if not transport.can_write_eof():
            # TLS: ``linger`` has the reason, and what is still here goes out before the transport ends.
            self._resume()
            self.lingers = self.listener.linger(transport, _NEVER)
            transport.close()
            return
        waiting = transport.get_write_buffer_size()
        transport.write_eof()
        self._resume()
        if waiting:
            # A slow reader has the time of an answer to fetch what is still here, and more while it fetches some.
            self.touch()
            self._unread()

    def leave(self) -> None:
        """Close an idle connection: its time is over, or its place is needed."""
        self.closing = True
        self.deadline = _now_ns() + _LINGER_NS
        if self.transport is not None:
            self.transport.close()

    def idle_since(self) -> int:
        """Since when (CLOCK_MONOTONIC, ns) nothing has happened on a connection without an exchange."""
        if self.deadline == self.made_ns + self.listener.head_ns:
            return self.made_ns
        return self.deadline - self.listener.keepalive_ns

    def abort(self) -> None:
        """Break the connection at once: what was sent must not look whole.

        A reset says so even where the end of the connection is the end of the body (HTTP/1.0).
        """
        if self.transport is not None:
            break_off(self.transport)

    def late(self) -> None:
        """The deadline has passed."""
        x = self.exchange
        if self._reads_on():
            self.touch()
            return
        self.deadline = _NEVER
        if x is None and self.transport is not None and self.transport.get_write_buffer_size():
            # The end of an answer lies here and nobody fetches it; closing would wait for ever.
            self.abort()
        elif self.closing and self.transport is not None:
            self.transport.abort()
        elif x is not None:
            self.listener.pipeline.timed_out(x)
        elif self.buffer:
            self._refuse_head(Reason.REQUEST_TIMEOUT, self.buffer)
        else:
            self.leave()

    def go_on(self) -> None:
        """Begin what has come while nothing was begun."""
        self._resume()
        if self.buffer and not self.busy:
            data, self.buffer = self.buffer, b""
            self._heads(data)

    def _heads(self, data: bytes) -> None:
        """Begin one request after the other out of ``data`` while each is answered at once."""
        if self.listener.held:
            self.reading_head = False
            self._put_by(data)
            return
        self.busy = True
        for _ in range(_TURN):
            data = self._head(data)
            if self.exchange is not None or self.closing or self.reading_head or self.full:
                break
            data, self.buffer = self.buffer + data, b""
            if not data:
                break
        else:
            # Still busy, so that nothing is begun before the others have had their turn.
            self._put_by(data)
            asyncio.get_running_loop().call_soon(self._in_turn)
            return
        self.busy = False

    def _in_turn(self) -> None:
        self.busy = False
        if self.exchange is None and not self.closing and not self.full:
            self.go_on()

    def _put_by(self, data: bytes) -> None:
        """Keep what cannot be begun yet, and read no more while it is much."""
        self.buffer = data
        if len(data) > _READ_AHEAD:
            self._pause()

    def _head(self, data: bytes) -> bytes:
        listener = self.listener
        head, end, rest = data.partition(HEAD_END)
        if not end or data[0] == 0x0D:
            return self._no_head(data)
        if len(head) + len(HEAD_END) > listener.max_head:
            self._unfinished(data, 0)
            return b""
        now = _now_ns()
        x = Exchange(self, now, listener.next_id())
        self.exchange = x
        self.reading_head = self.head_begun = False
        if self.pace is not None:
            self.pace.left_unread(0, 0)
        self.deadline = now + listener.answer_ns
        reason = listener.parser.parse(x, head)
        if reason is Reason.REQUEST_MALFORMED:
            # Which of two faults counts must not depend on how many segments the head came in.
            reason = listener.refusal(head, 0) or reason
        if rest:
            if reason is None and x.body is not None:
                self._body(x, rest)
                if x.client is None:  # it has ended
                    return b""
            else:
                self.buffer = rest
        if reason is not None:
            # The end of this message cannot be known for certain, so nothing after it is read.
            end_after(x, head)
            listener.pipeline.refuse(x, reason)
            return b""
        if listener.draining or (self.half_closed and not self.buffer):
            x.keep_alive = False
        if not x.body_done and not x.expects_continue:
            self.deadline = now + listener.body_idle_ns
        listener.pipeline.begin(x)
        return b""

    def _body(self, x: Exchange, data: bytes) -> None:
        body = x.body
        assert body is not None
        try:
            pieces, rest = body.feed(data)
        except FramingError:
            self._body_refused(x, Reason.REQUEST_MALFORMED)
            return
        x.bytes_in += sum(map(len, pieces))
        if x.tunnel:
            if not self.full:
                # Whoever does not read gets no more time for what it sends.
                self.touch()
        elif body.done:
            x.body_done = True
            if self.pace is not None:
                self.pace.body_ended()
            self.buffer = rest
            self.touch()
        else:
            self._body_moved(x)
        if self.listener.max_body is not None and x.bytes_in > self.listener.max_body and not x.tunnel:
            self._body_refused(x, Reason.BODY_TOO_LARGE)
            return
        self.listener.pipeline.body(x, pieces)
        if x.upstream_connection is None and x.bytes_in > _READ_AHEAD and not x.body_done:
            # Nobody takes it yet. The forward phase reads on once it has a connection.
            self._pause()

    def _body_refused(self, x: Exchange, reason: Reason) -> None:
        x.keep_alive = False
        x.body_done = False
        if x.response_started:
            self.abort()
        else:
            self.listener.pipeline.refuse(x, reason)

    def _no_head(self, data: bytes) -> bytes:
        """What does not begin with a whole head: an empty line to skip, a head not yet complete, or none at all."""
        empty = _EMPTY_LINES.match(data)
        if empty is not None:
            # RFC 9112 section 2.2: empty lines before the request line are ignored.
            self.reading_head = False
            return data[empty.end() :]
        self._unfinished(data, 0)
        return b""

    def _unfinished(self, data: bytes, since: int) -> None:
        """Keep the beginning of a head for later, unless it cannot become one. What lies before ``since`` is known."""
        listener = self.listener
        reason = listener.refusal(data, since)
        if reason is None and data.find(HEAD_END, since) >= 0:
            reason = Reason.REQUEST_MALFORMED
        if reason is not None:
            self._refuse_head(reason, data)
        elif self.half_closed:
            self.shut()
        else:
            # The time for a head runs from its first byte, whatever is left of the time between requests.
            self.reading_head = True
            if not self.head_begun:
                self.head_begun = True
                self.deadline = _now_ns() + listener.head_ns
            self.buffer = data

    def _refuse_head(self, reason: Reason, data: bytes) -> None:
        x = Exchange(self, _now_ns(), self.listener.next_id())
        end_after(x, data)
        self.exchange = x
        self.listener.pipeline.refuse(x, reason)

    def _pause(self) -> None:
        if not self.paused and self.transport is not None:
            self.paused = True
            self.transport.pause_reading()
            self.listener.unread.add(self)
            if self.pace is not None and self.pace.paused(_now_ns()):
                # From here on it is the backend that is waited for.
                before = self.deadline
                self.touch()
                self.deadline = max(before, self.deadline)

    def _resume(self) -> None:
        if self.paused and self.transport is not None:
            self.paused = False
            self.transport.resume_reading()
            if not self.half_closed:
                self.listener.unread.discard(self)
            x = self.exchange
            if self.pace is not None and self.pace.resumed(_now_ns()) and x is not None and not x.tunnel:
                self._body_moved(x)

    def _body_moved(self, x: Exchange) -> None:
        listener = self.listener
        self.deadline = self._paced().body_deadline(
            x.bytes_in, _now_ns(), idle_ns=listener.body_idle_ns, rate=listener.client_rate
        )

    def _reads_on(self) -> bool:
        """Whether the client has fetched enough since the last look; the end of an answer has a first look, too."""
        transport, idle = self.transport, self.exchange is None
        if transport is None or (self.pace is None and not idle):
            return False
        pace, waiting = self._paced(), unread(transport)
        measured = pace.measured()
        if pace.fetches(waiting, _now_ns(), rate=self.listener.client_rate):
            return True
        # What a TLS transport still has to send cannot be told from what the kernel has.
        held = transport.get_write_buffer_size() if transport.can_write_eof() else waiting
        return idle and not measured and held > 0

    def _unread(self) -> None:
        """Remember what the client has yet to read."""
        if (transport := self.transport) is not None:
            self._paced().left_unread(unread(transport), _now_ns())

    def _paced(self) -> Pace:
        if self.pace is None:
            self.pace = Pace()
        return self.pace
