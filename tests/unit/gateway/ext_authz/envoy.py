"""A client that calls ``Check`` as Envoy does, on one connection."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

from tests.unit.gateway.ext_authz.calls import METHOD, Verdict, verdict
from tests.unit.gateway.kit import until


class Envoy:
    """A client of gRPC with one connection; what it has received is kept by stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="ascii"))
        self.h2.initiate_connection()
        self.data: dict[int, bytes] = {}
        self.status: dict[int, str] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.settings: dict[int, int] = {}
        self.goaway: list[int] = []
        self.closed = False
        self.flush()
        self._task = asyncio.create_task(self._read(), name="envoy")

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    def begin(self, message: bytes | None, *, path: bytes = METHOD, frame: bytes | None = None, **more: str) -> int:
        """Send a call, which ends unless ``message`` is None."""
        number = self.h2.get_next_available_stream_id()
        fields = {":method": "POST", ":scheme": "http", ":path": path.decode(), ":authority": "patgate"}
        fields |= {"content-type": "application/grpc", "te": "trailers"}
        fields |= {name.replace("_", "-"): value for name, value in more.items()}
        self.h2.send_headers(number, list(fields.items()))
        if message is not None:
            data = (struct.pack(">BI", 0, len(message)) if frame is None else frame) + message
            while data:
                room = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size)
                assert room, "the window is smaller than a message may be"
                self.h2.send_data(number, data[:room], end_stream=len(data) <= room)
                data = data[room:]
        self.flush()
        return number

    async def call(self, message: bytes, **more: Any) -> Verdict:
        number = self.begin(message, **more)
        await until(lambda: number in self.ended or number in self.resets or self.closed)
        assert self.status.get(number) == "0", (self.status, self.resets, self.closed)
        return self.answer(number)

    def answer(self, number: int) -> Verdict:
        data = self.data[number]
        assert struct.unpack(">BI", data[:5]) == (0, len(data) - 5)
        return verdict(data[5:])

    async def failure(self, number: int) -> str | None:
        """The status of gRPC of a call that failed, None if it was reset."""
        await until(lambda: number in self.ended or number in self.resets or self.closed)
        return self.status.get(number)

    async def _read(self) -> None:
        while frame := await self._frame():
            if frame[3] == 7:
                # For ``h2`` a GOAWAY ends a connection at once; Envoy still takes its answers (RFC 9113 6.8).
                self.goaway.append(int.from_bytes(frame[13:17], "big"))
                continue
            for event in self.h2.receive_data(frame):
                if isinstance(event, DataReceived):
                    self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
                elif isinstance(event, ResponseReceived | TrailersReceived):
                    fields = {str(name): str(value) for name, value in event.headers}
                    if "grpc-status" in fields:
                        self.status[event.stream_id] = fields["grpc-status"]
                elif isinstance(event, StreamEnded):
                    self.ended.add(event.stream_id)
                elif isinstance(event, StreamReset):
                    self.resets[event.stream_id] = int(event.error_code)
                elif isinstance(event, RemoteSettingsChanged):
                    self.settings |= {int(code): each.new_value for code, each in event.changed_settings.items()}
            self.flush()
        self.closed = True

    async def _frame(self) -> bytes:
        """The next frame with its head; b"" at the end."""
        try:
            head = await self.reader.readexactly(9)
            return head + await self.reader.readexactly(int.from_bytes(head[:3], "big"))
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""

    async def close(self) -> None:
        self.writer.transport.abort()
        await asyncio.wait([self._task])
