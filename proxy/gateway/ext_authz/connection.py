"""The HTTP/2 connections of Envoy, and the gRPC calls on them.

Rules of this module:
1. The protocol is ``h2``'s. A connection that breaks it is closed; a stream that is no call of ``Check`` gets an error
   of gRPC, which Envoy takes for a refusal (``failure_mode_allow: false``).
2. All that a peer can make a connection keep is bounded: calls at a time, the bytes of one message, the bytes of all
   that are not complete (the window of the connection is opened only as calls end), and answers that are not read.
3. Deadlines are checked by the sweep of the listener, as for every connection of a worker.
4. Before a connection closes, a GOAWAY says so, so that Envoy asks on another one; calls that have begun are answered.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import NoSuchStreamError, ProtocolError, StreamClosedError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from proxy.gateway.downstream.connection_state import ConnectionState

if TYPE_CHECKING:
    from proxy.gateway.ext_authz.listener import EnvoyListener

METHOD: Final = b"/envoy.service.auth.v3.Authorization/Check"

MOST_CALLS: Final = 1000
"""Calls at a time on one connection; Envoy waits with more (SETTINGS_MAX_CONCURRENT_STREAMS)."""
MOST_METADATA: Final = 16 * 1024
"""Longest list of header fields of a call, in bytes as HTTP/2 counts them."""
WINDOW: Final = 1024 * 1024
"""Bytes of messages that one connection may have on the way or incomplete."""
_MOST_RESETS: Final = 1000
"""Calls that a peer may abandon more often than it lets one end (CVE-2023-44487)."""
_WRITE_HIGH_WATER: Final = 256 * 1024
_CONFIG: Final = H2Configuration(client_side=False, header_encoding=None)
_NEVER: Final = 2**63
_FRAME: Final = struct.Struct(">BI")
"""Before each message: whether it is compressed, and its length."""
_LAST_STREAM: Final = 2**31 - 1
_GOAWAY: Final = GoAwayFrame(stream_id=0, last_stream_id=_LAST_STREAM).serialize()
"""A GOAWAY that refuses no stream yet (RFC 9113 section 6.8). ``h2`` itself takes a GOAWAY for the end."""

# gRPC status codes.
_OK: Final = 0
_INVALID_ARGUMENT: Final = 3
_RESOURCE_EXHAUSTED: Final = 8
_UNIMPLEMENTED: Final = 12

_now_ns: Final = time.monotonic_ns


class _Stream:
    """One call: its message so far, then the answer that has yet to be sent."""

    __slots__ = ("abandon", "deadline", "metadata", "output", "received", "unopened")

    def __init__(self, metadata: list[tuple[bytes, bytes]], deadline: int) -> None:
        self.metadata = metadata
        self.received = bytearray()
        self.unopened = 0
        """Bytes by which the window of the connection is smaller because of this call."""
        self.output = b""
        self.abandon: Callable[[], None] | None = None
        """Ends the decision, which is no longer wanted; None while none is on its way."""
        self.deadline = deadline


class EnvoyConnection(asyncio.Protocol):
    """One connection from Envoy; ``host`` is the address of the peer, "" at a unix socket."""

    def __init__(self, listener: EnvoyListener, host: str) -> None:
        self._listener = listener
        self._host = host
        self._transport: asyncio.Transport | None = None
        self._h2 = H2Connection(config=_CONFIG)
        self._streams: dict[int, _Stream] = {}
        self._full = False
        self._said = False
        """Whether the GOAWAY has been sent."""
        self._ending = False
        """Whether it closes once it is idle."""
        self._resets = 0
        self.state = int(ConnectionState.OPENING)
        self.deadline = _NEVER

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the connection, after its TLS handshake if it has one."""
        self._transport = made = cast(asyncio.Transport, transport)
        made.set_write_buffer_limits(high=_WRITE_HIGH_WATER)
        self.state = int(ConnectionState.IDLE)
        ssl_object = made.get_extra_info("ssl_object")
        self._listener.opened(self)
        if ssl_object is not None and ssl_object.selected_alpn_protocol() not in ("h2", None):
            made.close()
            return
        longest = self._listener.max_message + _FRAME.size
        self._h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: MOST_CALLS,
                SettingCodes.MAX_HEADER_LIST_SIZE: MOST_METADATA,
                SettingCodes.INITIAL_WINDOW_SIZE: max(longest, 65_535),
            },
        )
        self._h2.decoder.max_header_list_size = MOST_METADATA
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(max(WINDOW, longest) - 65_535)
        self.deadline = _now_ns() + self._listener.limits.head_ns
        self._flush()
        if self._listener.draining:
            self.leave_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        """Abandon the calls that have not been answered, and forget the connection."""
        self._transport = None
        self.state = int(ConnectionState.CLOSED)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            if stream.abandon is not None:
                stream.abandon()
        self._listener.lost(self)

    def data_received(self, data: bytes) -> None:
        """Take frames, and begin the calls that are complete."""
        if self._transport is None or self._transport.is_closing():
            return
        try:
            events = self._h2.receive_data(data)
            for event in events:
                self._on(event)
        except ProtocolError:
            # ``h2`` has a GOAWAY with the reason ready.
            self._flush()
            self._transport.close()
            return
        self._flush()
        self._rest()

    def eof_received(self) -> bool:
        """Close the connection: its calls have no one to answer to."""
        return False

    def pause_writing(self) -> None:
        """Read no further calls from a peer that does not read its answers."""
        self._full = True
        if self._transport is not None:
            self._transport.pause_reading()
            self.deadline = _now_ns() + self._listener.limits.answer_ns

    def resume_writing(self) -> None:
        """Read again."""
        self._full = False
        if self._transport is not None:
            self._transport.resume_reading()
            self._rest()

    def idle(self) -> bool:
        """Whether no call is on its way."""
        return self.state == ConnectionState.IDLE and not self._streams and not self._full

    def idle_since(self) -> int:
        """Since when (CLOCK_MONOTONIC, ns) an idle connection has been idle."""
        return self.deadline - self._listener.limits.keepalive_ns

    def sweep(self, now_ns: int) -> None:
        """End calls whose message does not arrive, and the connection if its deadline has passed."""
        for number, stream in [each for each in self._streams.items() if each[1].deadline < now_ns]:
            self._drop(number, stream, ErrorCodes.CANCEL)
        if self.deadline < now_ns and self._transport is not None:
            self.deadline = _NEVER
            if self._full or self._transport.is_closing():
                self._transport.abort()
            else:
                self.leave()
        self._flush()

    def leave_soon(self) -> None:
        """Ask the peer for no further calls."""
        if self._transport is not None and not self._said and not self._transport.is_closing():
            self._said = True
            self._flush()
            self._transport.write(_GOAWAY)

    def end(self) -> None:
        """Close once every call that has begun is answered."""
        self.leave_soon()
        self._ending = True
        self._rest()

    def leave(self) -> None:
        """Close the connection, which is idle or has broken a rule."""
        if self._transport is not None and not self._transport.is_closing():
            self.state = int(ConnectionState.CLOSING)
            self._h2.close_connection()
            self._flush()
            self._transport.close()
            self.deadline = _now_ns() + self._listener.limits.head_ns

    def abort(self) -> None:
        """Reset the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _on(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._begin(event)
        elif isinstance(event, DataReceived):
            self._data(event)
        elif isinstance(event, StreamEnded):
            self._complete(event.stream_id)
        elif isinstance(event, WindowUpdated):
            numbers = [event.stream_id] if event.stream_id else list(self._streams)
            for number in numbers:
                if (stream := self._streams.get(number)) is not None and stream.output:
                    self._send(number, stream)
        elif isinstance(event, StreamReset):
            stream = self._streams.pop(event.stream_id, None)
            if stream is not None:
                self._reopen(stream)
                if stream.abandon is not None:
                    stream.abandon()
            self._resets += 1
            if self._resets > _MOST_RESETS:
                raise ProtocolError("too many calls were abandoned")
        elif isinstance(event, ConnectionTerminated) and self._transport is not None:
            # For ``h2`` this is the end of both directions, and a peer that leaves needs no more answers.
            self._transport.close()

    def _begin(self, event: RequestReceived) -> None:
        number = event.stream_id
        metadata = [(bytes(name), bytes(value)) for name, value in event.headers]
        stream = _Stream(metadata, _now_ns() + self._listener.limits.head_ns)
        self._streams[number] = stream
        self.deadline = _NEVER
        fields = dict(metadata)
        kind = fields.get(b"content-type", b"").partition(b";")[0]
        if fields.get(b":method") != b"POST" or kind not in (b"application/grpc", b"application/grpc+proto"):
            self._drop(number, stream, ErrorCodes.REFUSED_STREAM)
        elif fields.get(b":path") != METHOD:
            self._fail(number, stream, _UNIMPLEMENTED)

    def _data(self, event: DataReceived) -> None:
        stream, taken = self._streams.get(event.stream_id), event.flow_controlled_length or 0
        if stream is None:
            # Its answer has been sent, or it was dropped.
            if taken:
                self._h2.increment_flow_control_window(taken)
            return
        stream.unopened += taken
        stream.received += event.data
        if len(stream.received) < _FRAME.size:
            return
        compressed, length = _FRAME.unpack_from(stream.received)
        if compressed:
            self._fail(event.stream_id, stream, _UNIMPLEMENTED)
        elif length > self._listener.max_message:
            self._fail(event.stream_id, stream, _RESOURCE_EXHAUSTED)
        elif len(stream.received) > length + _FRAME.size:
            self._fail(event.stream_id, stream, _INVALID_ARGUMENT)

    def _complete(self, number: int) -> None:
        """Decide the call, whose message is complete."""
        stream = self._streams.get(number)
        if stream is None or stream.abandon is not None or stream.output:
            return
        data = stream.received
        if len(data) < _FRAME.size or len(data) != _FRAME.size + _FRAME.unpack_from(data)[1]:
            self._fail(number, stream, _INVALID_ARGUMENT)
            return
        stream.deadline = _NEVER  # the listener's own deadlines count from here
        message = bytes(memoryview(data)[_FRAME.size :])
        stream.received = bytearray()
        self._reopen(stream)
        self._listener.decide(self, number, self._host, message, stream.metadata)

    def decides(self, number: int, abandon: Callable[[], None]) -> None:
        """Note how the decision about a call, which has begun, can be abandoned."""
        if (stream := self._streams.get(number)) is not None:
            stream.abandon = abandon

    def answer(self, number: int, message: bytes | None) -> None:
        """Answer a call with this message; None: with an error, because its message is none of ``Check``."""
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.abandon = None
        if message is None:
            self._fail(number, stream, _INVALID_ARGUMENT)
        else:
            self._resets = max(0, self._resets - 1)
            stream.output = _FRAME.pack(0, len(message)) + message
            stream.deadline = _now_ns() + self._listener.limits.answer_ns
            if self._headers(number, [(b":status", b"200"), (b"content-type", b"application/grpc")]):
                self._send(number, stream)
            else:
                del self._streams[number]
        self._flush()
        self._rest()

    def drop(self, number: int) -> None:
        """End a call without an answer."""
        stream = self._streams.get(number)
        if stream is not None:
            stream.abandon = None
            self._drop(number, stream, ErrorCodes.INTERNAL_ERROR)
            self._flush()
            self._rest()

    def _headers(self, number: int, fields: list[tuple[bytes, bytes]], *, last: bool = False) -> bool:
        """Send header fields for a call; False if the peer has ended it, which the next event says."""
        try:
            self._h2.send_headers(number, fields, end_stream=last)
        except (StreamClosedError, NoSuchStreamError):
            return False
        return True

    def _send(self, number: int, stream: _Stream) -> None:
        """Send what the windows allow of the answer, and its status with the rest."""
        try:
            self._send_open(number, stream)
        except (StreamClosedError, NoSuchStreamError):
            del self._streams[number]

    def _send_open(self, number: int, stream: _Stream) -> None:
        while stream.output:
            room = min(self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size)
            if room <= 0:
                return
            piece, stream.output = stream.output[:room], stream.output[room:]
            self._h2.send_data(number, piece)
        self._h2.send_headers(number, [(b"grpc-status", b"%d" % _OK)], end_stream=True)
        del self._streams[number]

    def _fail(self, number: int, stream: _Stream, status: int) -> None:
        """Answer with an error of gRPC; what the peer still sends for this call is thrown away."""
        del self._streams[number]
        self._reopen(stream)
        status_field = (b"grpc-status", b"%d" % status)
        self._headers(number, [(b":status", b"200"), (b"content-type", b"application/grpc"), status_field], last=True)

    def _drop(self, number: int, stream: _Stream, code: ErrorCodes) -> None:
        del self._streams[number]
        self._reopen(stream)
        if stream.abandon is not None:
            stream.abandon()
        with suppress(StreamClosedError, NoSuchStreamError):
            self._h2.reset_stream(number, code)

    def _reopen(self, stream: _Stream) -> None:
        """Let the peer send as much on the connection as this call has sent."""
        if stream.unopened:
            self._h2.increment_flow_control_window(stream.unopened)
            stream.unopened = 0

    def _flush(self) -> None:
        if self._transport is not None and (data := self._h2.data_to_send()) and not self._transport.is_closing():
            self._transport.write(data)

    def _rest(self) -> None:
        """Start the time of an idle connection, or close it if it was announced."""
        if self._streams or self._full or self._transport is None or self._transport.is_closing():
            return
        if self._ending:
            self.leave()
        elif self.deadline == _NEVER:
            self.deadline = _now_ns() + self._listener.limits.keepalive_ns
