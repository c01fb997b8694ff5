"""The connections of the control listener on TCP: how many, and for how long.

The process that serves them also serves the workers, so nobody may tie it up (docs/threat-model.md §8).

Rules of this module:
1. At most ``MOST`` are open. One more takes the place of the one that has been idle longest; where all are busy, it is
   closed. Who is unknown, or waited for, is idle: busy is who is known and waits for us, so that nobody holds every
   place by sending or reading slowly.
2. A head has ``KEEPALIVE_SECONDS`` from the end of the last answer, or from the beginning; a body has its own time
   (``requests.BODY_SECONDS``), a handler too (``Operation.seconds``), and whoever reads the answer ``ANSWER_SECONDS``.
3. Bytes that are no request get a problem that repeats nothing of them, and leave nothing in the log.
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
"""How long the rest of a body that nobody wants is read, so that the answer can arrive (RFC 9112 section 9.6)."""


class ServerConnections:
    """The connections of one server; ``refused`` is told of what is no request."""

    def __init__(self, server: web.Server, refused: Refused, most: int = MOST) -> None:
        self.server = server
        self.refused = refused
        self._most = most
        self._idle: dict[Connection, None] = {}
        self._open: set[Connection] = set()

    def __len__(self) -> int:
        return len(self._open)

    def accept(self) -> Connection:
        """The protocol of a new connection."""
        return Connection(self)

    def opened(self, connection: Connection) -> bool:
        """Whether there is room for it, which may be made."""
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
        self._idle.pop(connection, None)

    def idle(self, connection: Connection) -> None:
        if connection in self._open:
            self._idle.pop(connection, None)
            self._idle[connection] = None

    def closed(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)


class _NoAccessLog(AbstractAccessLogger):
    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Refusals are logged where they are made; the rest is the audit log's."""

    @property
    def enabled(self) -> bool:
        return False


class Connection(RequestHandler):
    """One of them."""

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
        if isinstance(transport, asyncio.Transport):
            self._open_transport = transport
        super().connection_made(transport)
        if not self._listener.opened(self):
            self.drop()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._listener.closed(self)
        self._stop_timer()
        self._open_transport = None
        super().connection_lost(exc)

    def drop(self) -> None:
        """End it at once, with whatever was to be sent."""
        if self._open_transport is not None:
            self._open_transport.abort()

    def begun(self) -> None:
        """A request has arrived, or the rest of it."""
        self._listener.busy(self)

    def waiting(self) -> None:
        """The rest of it is being waited for."""
        self._listener.idle(self)

    def answering(self) -> None:
        """Its answer is being written: as fast as it is read."""
        self._stop_timer()
        self._listener.idle(self)
        self._answer_timer = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self.drop)

    def log_access(self, request: web.BaseRequest, response: web.StreamResponse, time: float | None) -> None:
        """Its answer has been written."""
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
        """The answer to what is no request; the parser's account of it repeats what was sent, so it goes nowhere."""
        del status, exc, message
        self._listener.refused(request, MALFORMED)
        answer = problem(MALFORMED)
        answer.force_close()
        return answer

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Answers that aiohttp itself has made become problems too."""
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
    """A listening socket whose connections are a ``Listener``'s."""

    __slots__ = ("_bound", "_listener")

    def __init__(self, runner: web.BaseRunner, bound: socket.socket, listener: ServerConnections) -> None:
        super().__init__(runner)
        self._bound = bound
        self._listener = listener

    @property
    def name(self) -> str:
        return "control"

    async def start(self) -> None:
        await super().start()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._listener.accept, sock=self._bound, backlog=self._backlog)
