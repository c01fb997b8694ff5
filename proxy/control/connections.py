"""Connections of the control listener on TCP: their maximum number and their timeouts.

The process that serves them also serves the workers, so clients must not tie it up (docs/threat-model.md section 8).

Rules of this module:
1. At most ``MOST`` are open. A further one replaces the connection that has been idle longest; if all are busy, it is
   closed. A connection is busy only while its authenticated request is processed; while a client is unknown, sends or
   reads, it is idle, so that slow clients cannot hold every place.
2. A request head has ``KEEPALIVE_SECONDS`` from the end of the last response, or from the start of the connection. A
   body has ``request_parsing.BODY_SECONDS``, a handler ``Operation.seconds``, and reading the response
   ``ANSWER_SECONDS``.
3. Bytes that are no HTTP request get a problem that repeats nothing of them, and are not logged.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.web_protocol import RequestHandler

from proxy.control.middleware import Refused
from proxy.control.problems import MALFORMED, problem, refusal_of

MOST: Final = 512
KEEPALIVE_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 30.0
LINGER_SECONDS: Final = 2.0
"""How long the rest of an unwanted body is read, so that the response can arrive (RFC 9112 section 9.6)."""


class ServerConnections:
    """The connections of one server; ``refused`` is called for bytes that are no HTTP request."""

    def __init__(self, server: web.Server, refused: Refused, most: int = MOST) -> None:
        self.server = server
        self.refused = refused
        self._most = most
        self._idle: dict[Connection, None] = {}
        self._open: set[Connection] = set()

    def __len__(self) -> int:
        return len(self._open)

    def accept(self) -> Connection:
        """Create the protocol of a new connection."""
        return Connection(self)

    def opened(self, connection: Connection) -> bool:
        """Add a connection, dropping the longest idle one if necessary; false when there is no room."""
        if len(self._open) >= self._most:
            if not self._idle:
                return False
            longest = next(iter(self._idle))
            longest.drop()
            self.closed(longest)
        self._open.add(connection)
        self._idle[connection] = None
        return True

    def busy(self, connection: Connection) -> None:
        """Mark a connection as busy."""
        self._idle.pop(connection, None)

    def idle(self, connection: Connection) -> None:
        """Mark an open connection as idle from now."""
        if connection in self._open:
            self._idle.pop(connection, None)
            self._idle[connection] = None

    def closed(self, connection: Connection) -> None:
        """Remove a connection."""
        self._open.discard(connection)
        self._idle.pop(connection, None)


class _NoAccessLog(AbstractAccessLogger):
    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Do nothing: refusals are logged elsewhere, and the audit log has the rest."""

    @property
    def enabled(self) -> bool:
        return False


class Connection(RequestHandler):
    """One connection; reports to its listener whether it is busy."""

    __slots__ = ("_answer_timer", "_listener", "_open_transport")

    def __init__(self, listener: ServerConnections) -> None:
        super().__init__(
            listener.server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEPALIVE_SECONDS,
            lingering_time=LINGER_SECONDS,
            auto_decompress=False,
            access_log_class=_NoAccessLog,
        )
        self._listener = listener
        self._answer_timer: asyncio.TimerHandle | None = None
        self._open_transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection, or drop it when there is no room."""
        if isinstance(transport, asyncio.Transport):
            self._open_transport = transport
        super().connection_made(transport)
        if not self._listener.opened(self):
            self.drop()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Unregister the connection."""
        self._listener.closed(self)
        self._stop_timer()
        self._open_transport = None
        super().connection_lost(exc)

    def drop(self) -> None:
        """Abort the connection and discard unsent data."""
        if self._open_transport is not None:
            self._open_transport.abort()

    def processing(self) -> None:
        """Mark the connection as busy: its authenticated request is processed."""
        self._listener.busy(self)

    def receiving(self) -> None:
        """Mark the connection as idle: the client is sending the body."""
        self._listener.idle(self)

    def answering(self) -> None:
        """Mark the connection as idle and limit the time in which the client reads the response."""
        self._stop_timer()
        self._listener.idle(self)
        self._answer_timer = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self.drop)

    def log_access(self, request: web.BaseRequest, response: web.StreamResponse, time: float | None) -> None:
        """Stop the response timer; aiohttp calls this when the response has been written."""
        del request, response, time
        self._stop_timer()
        self._listener.idle(self)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer bytes that are no HTTP request; the parser's message is dropped because it repeats what was sent."""
        del status, exc, message
        self._listener.refused(request, MALFORMED)
        answer = problem(MALFORMED)
        answer.force_close()
        return answer

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Turn error responses of aiohttp itself into problems too."""
        if isinstance(resp, web.HTTPException):
            known = refusal_of(resp)
            if known is not None:
                resp = problem(known)
        return await super().finish_response(request, resp, start_time)

    def _stop_timer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None


class Site(web.BaseSite):
    """A listening socket whose connections are managed by ``ServerConnections``."""

    __slots__ = ("_bound", "_listener")

    def __init__(self, runner: web.BaseRunner, bound: socket.socket, listener: ServerConnections) -> None:
        super().__init__(runner)
        self._bound = bound
        self._listener = listener

    @property
    def name(self) -> str:
        """The name for aiohttp."""
        return "control"

    async def start(self) -> None:
        """Accept connections."""
        await super().start()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._listener.accept, sock=self._bound, backlog=self._backlog)
