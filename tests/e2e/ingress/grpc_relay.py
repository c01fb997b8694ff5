"""A relay between Envoy and patgate's listener ``ext_authz``, which can change the parts of each call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded

from tests.e2e.ingress.relay import Change, Line, unchanged
from tests.support.process import HANGS_SECONDS, LOOPBACK
from tests.unit.gateway.ext_authz.calls import fields, part, varint
from tests.unit.gateway.ext_authz.envoy import Envoy

_TEXTS = {2: b"(method)", 4: b"(path)", 5: b"(host)"}
"""Fields of the request beside its headers, by their number."""
_HEADERS, _BODIES = 13, (11, 12)


class GrpcRelay:
    """The server, on an event loop in its own thread; a context manager.

    ``change`` is applied to every header line, and to the fields ``(method)``, ``(path)`` and ``(host)`` as if they
    were lines. ``calls`` has the lines of each call as they came, and ``has_body`` whether it had a body.
    """

    def __init__(self, port: int) -> None:
        self.change: Change = unchanged
        self.calls: list[list[Line]] = []
        self.has_body: list[bool] = []
        self.port = 0
        self._patgate = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),), name="grpc relay", daemon=True)

    def __enter__(self) -> GrpcRelay:
        self._thread.start()
        assert self._listening.wait(HANGS_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._serve, LOOPBACK, 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            self._listening.set()
            await self._stop.wait()
            for task in self._tasks:
                task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        http2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        http2.initiate_connection()
        received: dict[int, bytes] = {}
        patgate = Envoy(*await asyncio.open_connection(LOOPBACK, self._patgate))
        try:
            writer.write(http2.data_to_send())
            while data := await reader.read(65_536):
                for event in http2.receive_data(data):
                    if isinstance(event, DataReceived):
                        received[event.stream_id] = received.get(event.stream_id, b"") + event.data
                        http2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
                    elif isinstance(event, StreamEnded):
                        message = received.pop(event.stream_id)
                        await self._answer(http2, event.stream_id, patgate, self._changed(message[5:]))
                writer.write(http2.data_to_send())
        except (OSError, asyncio.CancelledError):
            return
        finally:
            await patgate.close()
            writer.close()
            self._tasks.discard(task)

    async def _answer(self, http2: H2Connection, number: int, patgate: Envoy, message: bytes) -> None:
        asked = patgate.begin(message)
        status = await patgate.failure(asked)
        http2.send_headers(number, [(":status", "200"), ("content-type", "application/grpc")])
        if asked in patgate.data:
            http2.send_data(number, patgate.data[asked])
        http2.send_headers(number, [("grpc-status", status or "13")], end_stream=True)

    def _changed(self, message: bytes) -> bytes:
        lines: list[Line] = []
        body = False

        def changed(line: Line) -> list[Line]:
            lines.append(line)
            return self.change(line)

        def of_http(number: int, value: bytes) -> bytes:
            nonlocal body
            body = body or number in _BODIES
            if number in _TEXTS:
                return b"".join(part(number, text) for _, text in changed((_TEXTS[number], value)))
            if number == _HEADERS:
                return part(number, b"".join(map(of_header, [each for _, each in fields(value)])))
            return part(number, value)

        def of_header(entry: bytes | int) -> bytes:
            assert isinstance(entry, bytes)
            found = dict(fields(entry))
            name, text = found.get(1, b""), found.get(3, b"")
            assert isinstance(name, bytes) and isinstance(text, bytes)
            return b"".join(part(1, part(1, key) + part(3, value)) for key, value in changed((name, text)))

        made = inside(message, (1, 4, 2), of_http)
        self.calls.append(lines)
        self.has_body.append(body)
        return made


def inside(message: bytes, path: tuple[int, ...], change: Callable[[int, bytes], bytes]) -> bytes:
    """``message`` with ``change`` applied to the fields of the message at ``path``; numbers are kept."""
    made = b""
    for number, value in fields(message):
        if isinstance(value, int):
            made += varint(number << 3) + varint(value)
        elif not path:
            made += change(number, value)
        elif number == path[0]:
            made += part(number, inside(value, path[1:], change))
        else:
            made += part(number, value)
    return made
