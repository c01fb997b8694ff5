"""The byte stream of a client connection: flow control, minimum rates, deadlines, and the ways to close it.

Rules of this module:
1. Closing lets the client read the answer: the sending side is shut first, bytes that still arrive are thrown away, and
   a deadline ends it. Only a connection whose answer must not look complete is reset.
2. Deadlines are checked by one coarse sweep per worker; there is no timer per connection.
3. A connection that is not read is in ``listener.unread``: the event loop does not see its end (``disconnect``).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from proxy.core.ipc.clock import boottime_ns
from proxy.gateway.downstream.connection_state import ConnectionEvent, ConnectionState, after
from proxy.gateway.downstream.disconnect import break_off
from proxy.gateway.downstream.lingering_close import Linger
from proxy.gateway.downstream.min_rate import Pace, unread
from proxy.gateway.exchange import Exchange

if TYPE_CHECKING:
    from proxy.gateway.downstream.listener import Listener

# A call through the module, ``time.x()``, costs twice as much.
_now_ns: Final = boottime_ns
# Looking a member up in its enumeration costs more than the comparison with it.
_CLOSING: Final = int(ConnectionState.CLOSING)
_CLOSED: Final = int(ConnectionState.CLOSED)
_SHUT: Final = int(ConnectionEvent.SHUT)
_LEFT: Final = int(ConnectionEvent.LEFT)

LINGER_NS: Final = 2_000_000_000
"""How long a connection that is closing waits for the client to close it, too."""
_NEVER: Final = 2**63
SMALL: Final = 64 * 1024
"""The longest answer after which a connection may be closed without waiting for the client. Of a longer one much can be
in the kernel, where bytes that arrive against the rule would destroy it."""


class ClientStream(asyncio.Protocol):
    """The transport of one client, with the state that its flow control and its end depend on."""

    __slots__ = (
        "buffer",
        "deadline",
        "exchange",
        "full",
        "half_closed",
        "limits",
        "lingers",
        "listener",
        "pace",
        "paused",
        "pipeline",
        "state",
        "transport",
    )

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.pipeline = listener.pipeline
        self.limits = listener.limits
        self.transport: asyncio.Transport | None = None
        self.state = int(ConnectionState.OPENING)
        """A ``ConnectionState``; changed by ``after`` only."""
        self.exchange: Exchange | None = None
        self.buffer = b""
        """Bytes that have arrived and belong to no exchange yet."""
        self.deadline = _NEVER
        self.paused = False
        """Input: the gateway does not read it for now."""
        self.half_closed = False
        """Input: the client has ended it."""
        self.full = False
        """Output: the client does not read fast enough."""
        self.pace: Pace | None = None
        self.lingers: Linger | None = None

    @property
    def closing(self) -> bool:
        """Whether the connection is being closed, or is closed."""
        return self.state in (_CLOSING, _CLOSED)

    def read_more(self, more: bool) -> None:
        """Read the client, or (False) leave its bytes in the kernel for a while."""
        if more:
            self.resume()
        else:
            self.pause()

    def pause(self) -> None:
        """Leave the client's bytes in the kernel."""
        transport = self.transport
        if self.paused or transport is None:
            return
        self.paused = True
        transport.pause_reading()
        self.listener.unread.add(self)
        if self.pace is not None and self.pace.paused(_now_ns()):
            # From here on the connection waits for the backend.
            before = self.deadline
            self.touch()
            self.deadline = max(before, self.deadline)

    def resume(self) -> None:
        """Read the client again."""
        transport = self.transport
        if not self.paused or transport is None:
            return
        self.paused = False
        transport.resume_reading()
        if not self.half_closed:
            self.listener.unread.discard(self)
        x = self.exchange
        if self.pace is not None and self.pace.resumed(_now_ns()) and x is not None and not x.tunnel:
            self.body_moved(x)

    def touch(self) -> None:
        """Start the time of the exchange again, because bytes moved."""
        x, limits = self.exchange, self.limits
        given = limits.answer_ns
        if x is not None and (x.tunnel or x.stream) and not self.full:
            # Both ends may be silent for long; a client that does not read may not.
            given = limits.tunnel_ns if x.tunnel else limits.stream_ns
        elif x is not None and x.upstream is not None:
            given = x.upstream.response_ns
        self.deadline = _now_ns() + given

    def body_moved(self, x: Exchange) -> None:
        """Set the deadline for the next part of the body."""
        limits = self.limits
        self.deadline = self.paced().body_deadline(
            x.bytes_in, _now_ns(), idle_ns=limits.body_idle_ns, rate=limits.client_rate
        )

    def reads_on(self) -> bool:
        """Whether the client has read enough since the last check. The end of an answer gets one check for free."""
        transport, idle = self.transport, self.exchange is None
        if transport is None or (self.pace is None and not idle):
            return False
        pace, waiting = self.paced(), unread(transport)
        measured = pace.measured()
        if pace.fetches(waiting, _now_ns(), rate=self.limits.client_rate):
            return True
        # A TLS transport's own buffer cannot be distinguished from the kernel's.
        held = transport.get_write_buffer_size() if transport.can_write_eof() else waiting
        return idle and not measured and held > 0

    def measure_unread(self) -> None:
        """Remember how many bytes the client has yet to read."""
        if (transport := self.transport) is not None:
            self.paced().left_unread(unread(transport), _now_ns())

    def paced(self) -> Pace:
        """The measured rates of this connection, which most connections never need."""
        if self.pace is None:
            self.pace = Pace()
        return self.pace

    def shut(self, *, announced: bool = False) -> None:
        """Close after the client has read what was written, without a reset that could destroy it.

        ``announced``: the client has sent all of the request that it called its last one, so that nothing follows
        (RFC 9112 section 9.6) and no reset threatens.
        """
        transport = self.transport
        if transport is None or self.closing:
            return
        # Nothing may have arrived behind the request against the rule.
        announced = announced and not self.buffer
        self.state = after(self.state, _SHUT)
        self.buffer = b""
        if self.half_closed:
            transport.close()
            return
        self.deadline = _now_ns() + LINGER_NS
        if announced and transport.get_write_buffer_size() <= SMALL:
            transport.close()
            return
        if not transport.can_write_eof():
            # TLS: ``lingering_close`` has the reason. The transport still sends its buffer before it ends.
            self.resume()
            self.lingers = self.listener.linger(transport, _NEVER)
            transport.close()
            return
        waiting = transport.get_write_buffer_size()
        transport.write_eof()
        self.resume()
        if waiting:
            # A slow reader has the time of an answer to read the rest, and more while it reads.
            self.touch()
            self.measure_unread()

    def left(self) -> None:
        """End the exchange at once, because the client has left; the event loop may close the connection later."""
        self.state = after(self.state, _LEFT)
        x, self.exchange = self.exchange, None
        if x is not None:
            self.pipeline.left(x)

    def leave(self) -> None:
        """Close an idle connection, because its time is over or its place is needed."""
        self.state = after(self.state, _SHUT)
        self.deadline = _now_ns() + LINGER_NS
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Reset the connection at once: the bytes that were sent must not look like a complete answer.

        A reset says so even where the end of the connection is the end of the body (HTTP/1.0).
        """
        if self.transport is not None:
            break_off(self.transport)
