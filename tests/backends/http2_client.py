"""HTTP/2 without TLS, by prior knowledge, with ``h2``: sends headers and trailers exactly as the test gives them."""

from __future__ import annotations

import asyncio
from typing import Any

from h2.config import H2Configuration  # type: ignore[import-not-found,unused-ignore]
from h2.connection import H2Connection  # type: ignore[import-not-found,unused-ignore]
from h2.events import (  # type: ignore[import-not-found,unused-ignore]
    ConnectionTerminated,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)

from tests.backends.line import Line, work


class Client:
    def __init__(self, line: Line) -> None:
        del line  # it reports no events

    async def do_request(
        self, port: int, headers: list[list[str]], body: str | None = None, trailers: list[list[str]] | None = None
    ) -> int | None:
        """The status of one request on a connection of its own; None if the server resets it."""
        # h2 neither validates nor normalizes the headers: servers must withstand such clients.
        connection = H2Connection(
            H2Configuration(
                validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding="latin-1"
            )
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        connection.initiate_connection()
        stream = connection.get_next_available_stream_id()
        connection.send_headers(stream, [(name, value) for name, value in headers], end_stream=body is None)
        if body is not None:
            connection.send_data(stream, body.encode(), end_stream=not trailers)
            if trailers:
                connection.send_headers(stream, [(name, value) for name, value in trailers], end_stream=True)
        try:
            return await self._answer(connection, reader, writer)
        finally:
            writer.close()

    @staticmethod
    async def _answer(connection: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int | None:
        status = None
        while True:
            writer.write(connection.data_to_send())
            data = await asyncio.wait_for(reader.read(1 << 16), 15)
            if not data:
                return status
            for event in connection.receive_data(data):
                if isinstance(event, ResponseReceived):
                    status = next(int(value) for name, value in event.headers if name in (":status", b":status"))
                elif isinstance(event, (StreamReset, ConnectionTerminated)):
                    return None
                elif isinstance(event, StreamEnded):
                    return status


if __name__ == "__main__":
    work(Client)
