"""The HTTP/2 connections of Envoy, and the gRPC calls on them.

Rules of this module:
1. The protocol is ``h2``'s. A connection that breaks it is closed; a stream that is no call of ``Check`` gets an error
   of gRPC, which Envoy takes for a refusal (``failure_mode_allow: false``).
2. All that a peer can make a connection keep is bounded: calls at a time, the bytes of one message, the bytes of all
   that are not complete (the window of the connection is opened only as calls end), and answers that are not read.
3. Deadlines are checked by the sweep of the listener, as for every connection of a worker. A connection always has one,
   except while it has calls: these have their own.
4. Before a connection closes, a GOAWAY says so, so that Envoy asks on another one; calls that have begun are answered.
5. Errors of a peer are counted by their cause, and never logged: a peer could cause any number.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from proxy.core.ipc.clock import boottime_ns
from proxy.gateway.downstream.connection_state import ConnectionState
from proxy.gateway.ext_authz.byte_stream import NEVER, ByteStream
from proxy.gateway.ext_authz.errors import CallError
from proxy.observe import defects

if TYPE_CHECKING:
    from proxy.gateway.ext_authz.listener import EnvoyListener

METHOD: Final = b"/envoy.service.auth.v3.Authorization/Check"

MOST_CALLS: Final = 100
"""Calls at a time on one connection (SETTINGS_MAX_CONCURRENT_STREAMS). With more, Envoy opens another connection, which
may be another worker's."""
ACCEPTED_CALLS: Final = 2048
"""Calls at a time that a connection survives. A peer may send more than ``MOST_CALLS`` before it has seen that number;
Envoy's own limit is 1,024 by default."""
MEMORY_OF_ENDED_CALLS: Final = 1024
"""Calls of which a connection remembers how they ended, for frames that arrive late."""
MOST_METADATA: Final = 16 * 1024
"""Longest list of header fields of a call, in bytes as HTTP/2 counts them."""
WINDOW: Final = 1024 * 1024
"""Bytes of messages that one connection may have on the way or incomplete."""
_MOST_RESETS: Final = 1000
"""Calls that a peer may abandon more often than it lets one end (CVE-2023-44487)."""
_CONFIG: Final = H2Configuration(client_side=False, header_encoding=None)
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

_now_ns: Final = boottime_ns


class _Http2(H2Connection):
    MAX_CLOSED_STREAMS = MEMORY_OF_ENDED_CALLS


class _Stream:
    """One call: its message so far, then the answer that has yet to be sent."""

    __slots__ = ("abandon", "complete", "deadline", "metadata", "output", "received", "unopened")

    def __init__(self, metadata: list[tuple[bytes, bytes]], deadline: int) -> None:
        self.metadata = metadata
        self.received = bytearray()
        self.unopened = 0
        """Bytes by which the window of the connection is smaller because of this call."""
        self.complete = False
        """Whether the peer has sent all of the call."""
        self.output = b""
        self.abandon: Callable[[], object] | None = None
        """Ends the decision, which is no longer wanted; None while none is on its way."""
        self.deadline = deadline


class ArrivedCall(NamedTuple):
    """A call that is complete: its connection, its number there, the address of the peer, its message and metadata."""

    connection: EnvoyConnection
    number: int
    host: str
    message: bytes
    metadata: Sequence[tuple[bytes, bytes]]


class EnvoyConnection(ByteStream):
    """One connection from Envoy; ``host`` is the address of the peer, "" at a unix socket."""

    def __init__(self, listener: EnvoyListener, host: str) -> None:
        super().__init__(listener)
        self._host = host
        self._h2 = _Http2(config=_CONFIG)
        self._streams: dict[int, _Stream] = {}
        self._said = False
        """Whether the GOAWAY has been sent."""
        self._ending = False
        """Whether it closes once it is idle."""
        self._resets = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the connection, after its TLS handshake if it has one."""
        super().connection_made(transport)
        ssl_object = transport.get_extra_info("ssl_object")
        self.listener.opened(self)
        if ssl_object is not None and ssl_object.selected_alpn_protocol() not in ("h2", None):
            self.close()
            return
        self._initiate()
        self.write()
        if self.listener.draining:
            self.leave_soon()

    def _initiate(self) -> None:
        longest = self.listener.max_message + _FRAME.size
        announced = {
            SettingCodes.MAX_CONCURRENT_STREAMS: MOST_CALLS,
            SettingCodes.MAX_HEADER_LIST_SIZE: MOST_METADATA,
            SettingCodes.INITIAL_WINDOW_SIZE: max(longest, 65_535),
        }
        http2 = self._h2
        http2.local_settings = Settings(client=False, initial_values=announced)
        http2.decoder.max_header_list_size = MOST_METADATA
        http2.initiate_connection()
        # ``h2`` ends a connection with more calls than this.
        accepted = {**announced, SettingCodes.MAX_CONCURRENT_STREAMS: ACCEPTED_CALLS}
        http2.local_settings = Settings(client=False, initial_values=accepted)
        http2.increment_flow_control_window(max(WINDOW, longest) - 65_535)

    def connection_lost(self, exc: Exception | None) -> None:
        """Abandon the calls that have not been answered, and forget the connection."""
        super().connection_lost(exc)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            if stream.abandon is not None:
                stream.abandon()
        self.listener.lost(self)

    def take(self, data: bytes) -> bool:
        """Take frames, and begin the calls that are complete."""
        try:
            for event in self._h2.receive_data(data):
                self._on(event)
        except ProtocolError:
            # ``h2`` has a GOAWAY with the reason ready.
            self.listener.errors.add(CallError.PROTOCOL)
            self.close()
            return False
        except Exception as error:  # noqa: BLE001 - the state of the connection is in doubt, so it ends
            defects.report("frames of Envoy could not be read", error)
            self.abort()
            return False
        return True

    def ready(self) -> bytes:
        """The frames that are ready."""
        return self._h2.data_to_send()

    def idle(self) -> bool:
        """Whether no call is on its way."""
        return self.state == ConnectionState.IDLE and not self._streams and not self.full and not self.unread

    def idle_since(self) -> int:
        """Since when (CLOCK_BOOTTIME, ns) an idle connection has been idle."""
        return self.deadline - self.listener.limits.keepalive_ns

    def sweep(self, now_ns: int) -> None:
        """End calls whose message does not arrive, and the connection if its deadline has passed."""
        late = [each for each in self._streams.items() if each[1].deadline < now_ns]
        for number, stream in late:
            self.listener.errors.add(CallError.TIMEOUT)
            self._drop(number, stream, ErrorCodes.CANCEL)
        if late:
            self.flush()
            self.rest()
        if self.deadline < now_ns:
            self.deadline = NEVER
            if self.full or not self.open:
                self.abort()
            else:
                self.leave()

    def leave_soon(self) -> None:
        """Ask the peer for no further calls."""
        if self.open and not self._said:
            self._said = True
            self.write(_GOAWAY)

    def end(self) -> None:
        """Close once every call that has begun is answered."""
        self.leave_soon()
        self._ending = True
        self.rest()

    def leave(self, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Close the connection, which is idle or has broken a rule."""
        if self.open:
            with suppress(ProtocolError):
                self._h2.close_connection(code)
            self.close()

    def _on(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._begin(event)
        elif isinstance(event, DataReceived):
            self._data(event)
        elif isinstance(event, StreamEnded):
            self._complete(event.stream_id)
        elif isinstance(event, WindowUpdated):
            self._opened([event.stream_id] if event.stream_id else list(self._streams))
        elif isinstance(event, RemoteSettingsChanged):
            self._opened(list(self._streams))
        elif isinstance(event, StreamReset):
            stream = self._streams.pop(event.stream_id, None)
            if stream is not None:
                self._reopen(stream)
                if stream.abandon is not None:
                    stream.abandon()
            self._abandoned()
        elif isinstance(event, ConnectionTerminated):
            # For ``h2`` this is the end of both directions, and a peer that leaves needs no more answers.
            self.close()

    def _abandoned(self) -> None:
        """Count an abandoned call. Other calls on the connection are answered, as long as the peer begins no more."""
        self._resets += 1
        if self._resets == _MOST_RESETS + 1:
            self.listener.errors.add(CallError.ABANDONED)
            self.end()
        elif self._resets > 2 * _MOST_RESETS:
            self.leave(ErrorCodes.ENHANCE_YOUR_CALM)

    def _opened(self, numbers: list[int]) -> None:
        """Continue answers whose window may have been opened."""
        for number in numbers:
            if (stream := self._streams.get(number)) is not None and stream.output:
                self._send(number, stream)

    def _begin(self, event: RequestReceived) -> None:
        number = event.stream_id
        metadata = [(bytes(name), bytes(value)) for name, value in event.headers]
        stream = _Stream(metadata, _now_ns() + self.listener.limits.head_ns)
        self._streams[number] = stream
        if not self.full:
            self.deadline = NEVER
        fields = dict(metadata)
        kind = fields.get(b"content-type", b"").partition(b";")[0]
        if fields.get(b":method") != b"POST" or kind not in (b"application/grpc", b"application/grpc+proto"):
            self.listener.errors.add(CallError.NOT_A_CALL)
            self._drop(number, stream, ErrorCodes.REFUSED_STREAM)
        elif fields.get(b":path") != METHOD:
            self._fail(number, stream, _UNIMPLEMENTED, CallError.NOT_A_CALL)

    def _data(self, event: DataReceived) -> None:
        stream, taken = self._streams.get(event.stream_id), event.flow_controlled_length or 0
        if stream is None:
            # Its answer has been sent, or it was dropped.
            self._open_window(taken)
            return
        stream.unopened += taken
        stream.received += event.data
        if len(stream.received) < _FRAME.size:
            return
        compressed, length = _FRAME.unpack_from(stream.received)
        if compressed:
            self._fail(event.stream_id, stream, _UNIMPLEMENTED, CallError.MESSAGE)
        elif length > self.listener.max_message:
            self._fail(event.stream_id, stream, _RESOURCE_EXHAUSTED, CallError.TOO_LONG)
        elif len(stream.received) > length + _FRAME.size:
            self._fail(event.stream_id, stream, _INVALID_ARGUMENT, CallError.MESSAGE)

    def _complete(self, number: int) -> None:
        """Decide the call, whose message is complete."""
        stream = self._streams.get(number)
        if stream is None or stream.abandon is not None or stream.output:
            return
        stream.complete = True
        data = stream.received
        if len(data) < _FRAME.size or len(data) != _FRAME.size + _FRAME.unpack_from(data)[1]:
            self._fail(number, stream, _INVALID_ARGUMENT, CallError.MESSAGE)
            return
        stream.deadline = NEVER  # the listener's own deadlines count from here
        message = bytes(memoryview(data)[_FRAME.size :])
        stream.received = bytearray()
        self._reopen(stream)
        self.listener.decide(ArrivedCall(self, number, self._host, message, stream.metadata))

    def decides(self, number: int, abandon: Callable[[], object]) -> None:
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
            self._fail(number, stream, _INVALID_ARGUMENT, CallError.MESSAGE)
        else:
            self._resets = max(0, self._resets - 1)
            stream.output = _FRAME.pack(0, len(message)) + message
            stream.deadline = _now_ns() + self.listener.limits.answer_ns
            if self._headers(number, [(b":status", b"200"), (b"content-type", b"application/grpc")]):
                self._send(number, stream)
            else:
                del self._streams[number]
        self.flush()
        self.rest()

    def drop(self, number: int) -> None:
        """End a call without an answer."""
        stream = self._streams.get(number)
        if stream is not None:
            stream.abandon = None
            self._drop(number, stream, ErrorCodes.INTERNAL_ERROR)
            self.flush()
            self.rest()

    def _headers(self, number: int, fields: list[tuple[bytes, bytes]], *, last: bool = False) -> bool:
        """Send header fields for a call; False if the peer has ended it or the connection, as the next event says."""
        try:
            self._h2.send_headers(number, fields, end_stream=last)
        except ProtocolError:
            return False
        return True

    def _send(self, number: int, stream: _Stream) -> None:
        """Send what the windows allow of the answer, and its status with the rest."""
        try:
            self._send_open(number, stream)
        except ProtocolError:
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

    def _fail(self, number: int, stream: _Stream, status: int, cause: CallError) -> None:
        """Answer with an error of gRPC; of what the peer still sends for this call nothing is kept."""
        self.listener.errors.add(cause)
        del self._streams[number]
        self._reopen(stream)
        status_field = (b"grpc-status", b"%d" % status)
        self._headers(number, [(b":status", b"200"), (b"content-type", b"application/grpc"), status_field], last=True)
        if not stream.complete:
            # RFC 9113 section 8.1. Otherwise the call would stay open for as long as the peer likes.
            self._reset(number, ErrorCodes.NO_ERROR)

    def _drop(self, number: int, stream: _Stream, code: ErrorCodes) -> None:
        del self._streams[number]
        self._reopen(stream)
        if stream.abandon is not None:
            stream.abandon()
        self._reset(number, code)

    def _reset(self, number: int, code: ErrorCodes) -> None:
        with suppress(ProtocolError):
            self._h2.reset_stream(number, code)

    def _reopen(self, stream: _Stream) -> None:
        """Let the peer send as much on the connection as this call has sent."""
        self._open_window(stream.unopened)
        stream.unopened = 0

    def _open_window(self, size: int) -> None:
        if size:
            with suppress(ProtocolError):
                self._h2.increment_flow_control_window(size)

    def rest(self) -> None:
        """Start the time of an idle connection, or close it if it was announced."""
        if self._streams or self.full or self.unread or not self.open:
            return
        if self._ending:
            self.leave()
        elif self.deadline == NEVER:
            self.deadline = _now_ns() + self.listener.limits.keepalive_ns
